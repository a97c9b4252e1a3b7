# syntax=docker/dockerfile:1
# The image holds one static program and nothing else.
#   docker build -t pkgswarm .
#   docker run -p 127.0.0.1:7070:7070 -v pkgswarm:/var/lib/pkgswarm pkgswarm
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/pkgswarm ./cmd/pkgswarm
# The directories of the data and of the state, as the user of the last stage
# owns them; volumes mounted there take over owner and mode. They are copied with
# what is above them: a directory that COPY itself makes is open to all, and the
# program refuses that.
RUN install -d -m 0700 -o 65532 -g 65532 /out/image/tmp \
    /out/image/var/lib/pkgswarm/data /out/image/var/lib/pkgswarm/state

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/pkgswarm /pkgswarm
COPY --from=build --chown=65532:65532 /out/image /
USER 65532:65532
ENV PKGSWARM_DATA=/var/lib/pkgswarm/data \
    PKGSWARM_STATE=/var/lib/pkgswarm/state \
    PKGSWARM_LISTEN=127.0.0.1:7070 \
    HOME=/var/lib/pkgswarm
VOLUME ["/var/lib/pkgswarm/data", "/var/lib/pkgswarm/state"]
EXPOSE 7070 7071
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/pkgswarm", "status", "--quiet"]
ENTRYPOINT ["/pkgswarm"]
CMD ["serve"]
