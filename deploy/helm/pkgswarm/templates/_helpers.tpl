{{- define "pkgswarm.labels" -}}
app.kubernetes.io/name: pkgswarm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "pkgswarm.selector" -}}
app.kubernetes.io/name: pkgswarm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
