package bench

import (
	"archive/zip"
	"bytes"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

// away is the upstream's distance in the benchmarks of cold answers.
const away = 20 * time.Millisecond

// BenchmarkCold is goal P5: what a node that does not have a file adds to asking
// the upstream, 20 ms away, for it.
func BenchmarkCold(b *testing.B) {
	b.Run("small", func(b *testing.B) {
		goUp, cargoUp := goupstream.New(b), madeUp(b, make([]int, 2000)...)
		const version = "v1.1.%d"
		goUp.Add(b, "example.com/a", "v1.0.0", map[string]string{"go.mod": "module example.com/a\n"})
		for i := range 2000 {
			v := fmt.Sprintf(version, i)
			goUp.Put("example.com/a", v+".info", fmt.Appendf(nil, `{"Version":%q,"Time":"2024-05-06T07:08:09Z"}`, v))
		}
		far(goUp)
		cargoUp.Delay(away)
		n := startNode(b, node.Config{GoUpstream: goUp.URL, SumDB: goUp.Key, CargoUpstream: cargoUp.Index()})
		compareCold(b, ".info", 2, func(i int) (ours, theirs string) {
			file := fmt.Sprintf("/example.com/a/@v/"+version+".info", i)
			return n.URL() + "/go" + file, goUp.URL + file
		})
		compareCold(b, "index file", 2, func(i int) (ours, theirs string) {
			return n.URL() + "/cargo/" + indexPath(i), cargoUp.URL + "/index/" + indexPath(i)
		})
	})
	b.Run("zip", func(b *testing.B) {
		up := goupstream.New(b)
		big := noise(2, 50<<20)
		for i := range rounds {
			addStored(b, up, fmt.Sprintf("example.com/big%d", i), big)
		}
		up.Add(b, "example.com/a", "v1.0.0", map[string]string{"go.mod": "module example.com/a\n"})
		far(up)
		n := startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"})
		get(b, n.URL()+"/go/example.com/a/@v/v1.0.0.zip") // connections are open
		var ours, theirs []float64
		for i := range rounds {
			file := fmt.Sprintf("/example.com/big%d/@v/v1.0.0.zip", i)
			d, _ := get(b, up.URL+file)
			theirs = append(theirs, milliseconds(d))
			d, _ = get(b, n.URL()+"/go"+file)
			ours = append(ours, milliseconds(d))
			untilStored(b, n.URL()+"/go"+file)
		}
		addExcess("first byte of a 50 MB zip", 5, ours, theirs)
	})
	b.Run("crate", func(b *testing.B) {
		up := madeUp(b, slicesOf(rounds+1, 50<<20)...)
		up.Delay(away)
		n := cargoNode(b, up, node.Config{})
		get(b, n.URL()+crate(rounds)) // connections are open, config.json is known
		for i := range rounds {
			get(b, n.URL()+"/cargo/"+indexPath(i))
		}
		var ours, theirs []float64
		for i := range rounds {
			d, _ := get(b, fmt.Sprintf("%s/dl/crate%d/crate%[2]d-1.0.0.crate", up.URL, i))
			theirs = append(theirs, milliseconds(d))
			d, _ = get(b, n.URL()+crate(i))
			ours = append(ours, milliseconds(d))
			untilStored(b, n.URL()+crate(i))
		}
		addExcess("first byte of a 50 MB crate", 5, ours, theirs)
	})
}

// compareCold asks for files that the node does not have, here and directly.
func compareCold(b *testing.B, what string, want float64, urls func(i int) (ours, theirs string)) {
	warm, direct := urls(0)
	get(b, warm) // connections are open
	get(b, direct)
	const each = 20
	var ours, theirs []float64
	for round := range rounds {
		var mine, other []float64
		for i := range each {
			u, v := urls(1 + round*each + i)
			_, d := get(b, u)
			mine = append(mine, milliseconds(d))
			_, d = get(b, v)
			other = append(other, milliseconds(d))
		}
		ours, theirs = append(ours, median(mine)), append(theirs, median(other))
	}
	addExcess(what, want, ours, theirs)
}

func addExcess(what string, want float64, ours, theirs []float64) {
	add(figure{"P5", "cold " + what, "ms", median(ours), median(theirs), "direct", excess(ours, theirs), "+%.1f ms", want, false})
}

// far puts the upstream 20 ms away.
func far(up *goupstream.Server) {
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(away)
		next.ServeHTTP(w, r)
	})
}

// addStored adds a module whose zip is not compressed: it is made in no time.
func addStored(b *testing.B, up *goupstream.Server, path string, data []byte) {
	var buf bytes.Buffer
	mod := fmt.Appendf(nil, "module %s\n", path)
	z := zip.NewWriter(&buf)
	for name, content := range map[string][]byte{"go.mod": mod, "noise": data} {
		w, err := z.CreateHeader(&zip.FileHeader{Name: path + "@v1.0.0/" + name, Method: zip.Store})
		if err != nil {
			b.Fatal(err)
		}
		w.Write(content)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	up.Put(path, "v1.0.0.mod", mod)
	up.Put(path, "v1.0.0.zip", buf.Bytes())
	up.Record(b, path, "v1.0.0")
}

// untilStored waits until the node is done with a file, so that its work on one
// does not count for the next.
func untilStored(b *testing.B, url string) {
	b.Helper()
	for {
		resp, err := http.Head(url)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.Header.Get("Pkgswarm-Source") == "disk" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
