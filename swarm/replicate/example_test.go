package replicate_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log"
	"net"
	"os"
	"sync"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// Two nodes exchange a core over a connection. Package swarm does the same with
// listeners, dialling and discovery around it.
func Example() {
	writer, closeWriter := openStore()
	defer closeWriter()
	reader, closeReader := openStore()
	defer closeReader()
	w, err := writer.Named("greetings")
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Append([]byte("hello"), []byte("world")); err != nil {
		log.Fatal(err)
	}

	// The writer serves what its store has, to those who know the key.
	serving := replicate.New(replicate.Config{
		Open: func(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
			c, err := writer.ByDiscovery(dk)
			if err != nil {
				return nil, nil, err
			}
			return c, func() { c.Close() }, nil
		},
	})
	reading := replicate.New(replicate.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	ours, theirs := net.Pipe()
	wg.Go(func() { exchange(ctx, serving, theirs, secretstream.Server) })
	wg.Go(func() { exchange(ctx, reading, ours, secretstream.Client) })

	// The reader knows nothing but the key.
	c, err := reader.Open(w.Key())
	if err != nil {
		log.Fatal(err)
	}
	s, err := reading.Open(c, replicate.SessionOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for i := range uint64(2) {
		block, err := s.Get(ctx, i)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(block))
	}
	s.Close()
	c.Close()
	cancel()
	wg.Wait()
	// Output:
	// hello
	// world
}

// exchange runs one end of a connection.
func exchange(ctx context.Context, r *replicate.Replicator, conn net.Conn,
	start func(context.Context, net.Conn, secretstream.Config) (*secretstream.Conn, error)) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		log.Fatal(err)
	}
	stream, err := start(ctx, conn, secretstream.Config{Key: key})
	if err != nil {
		log.Fatal(err)
	}
	m := protomux.New(stream)
	serve, err := r.Attach(m, replicate.Identity{
		Peer: replicate.PeerID(stream.Remote()), HandshakeHash: stream.HandshakeHash(), Initiator: stream.Initiator(),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { serve(ctx) })
	m.Run()
	cancel()
	wg.Wait()
}

func openStore() (s *core.Store, closeIt func()) {
	dir, err := os.MkdirTemp("", "replicate-example-")
	if err != nil {
		log.Fatal(err)
	}
	if s, err = core.OpenStore(dir, core.Options{}); err != nil {
		log.Fatal(err)
	}
	return s, func() {
		s.Close()
		os.RemoveAll(dir)
	}
}
