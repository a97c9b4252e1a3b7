package node

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
)

// Banner returns what a person wants to know at the start, in at most ten lines.
func (n *Node) Banner() string {
	var b strings.Builder
	url := n.URL()
	fmt.Fprintf(&b, "pkgswarm %s is ready at %s\n", n.c.Version, url)
	fmt.Fprintf(&b, "  cargo   sparse+%s/cargo/\n", url)
	for _, f := range n.fronts {
		if strings.HasPrefix(f.prefix, "/registries/") {
			fmt.Fprintf(&b, "          sparse+%s%s  (private)\n", url, f.prefix)
		}
	}
	fmt.Fprintf(&b, "  go      export GOPROXY=%s/go\n", url)
	fmt.Fprintf(&b, "          (pkgswarm setup tells both)\n")
	fmt.Fprintf(&b, "  from    %s\n", n.upstreamLine())
	st := n.artifacts.Stats()
	limit := "no limit"
	if st.Cap > 0 {
		limit = "at most " + humanize.Bytes(uint64(st.Cap))
	}
	fmt.Fprintf(&b, "  data    %s: %s, %s (%s)\n", n.c.Data, plural(int(st.Files), "artifact"), humanize.Bytes(uint64(st.Bytes)), limit)
	fmt.Fprintf(&b, "  peers   %s\n", n.peersLine())
	if n.c.Mirror.Logs {
		fmt.Fprintf(&b, "  mirror  %s of %s\n", n.mirrorLine(), plural(len(n.c.Registries), "registry key"))
	}
	return b.String()
}

func (n *Node) upstreamLine() string {
	if n.c.Offline {
		return "disk and peers only (--offline)"
	}
	return strings.Join(n.upstreams(), " ")
}

// mirrorLine says what is mirrored.
func (n *Node) mirrorLine() string {
	switch {
	case n.c.Mirror.Files == "":
		return "all package logs"
	case n.c.Mirror.Want != nil:
		return "all package logs, and the files of a lock file,"
	}
	return "all package logs and files"
}

// shortList names the first few of a list.
func shortList(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], " "), len(list)-most)
}

// peersLine says who the peers are, and whether the local network is searched.
func (n *Node) peersLine() string {
	var parts []string
	if addr := n.SwarmAddr(); addr != "" {
		parts = append(parts, "listening on "+addr)
	}
	if len(n.c.Peers) > 0 {
		parts = append(parts, "dialling "+shortList(n.c.Peers, 3))
	}
	if n.c.LAN {
		parts = append(parts, "found on the local network (--no-lan stops that)")
	}
	if n.c.FleetTokenFile != "" {
		parts = append(parts, "members of the fleet only")
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, "\n          ")
}
