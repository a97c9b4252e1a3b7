package secretstream_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log"
	"net"

	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// Two peers that know nothing of each other but what the handshake proves.
func Example() {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		log.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	here, there := net.Pipe()
	go func() {
		c, err := secretstream.Server(ctx, there, secretstream.Config{Key: other})
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		if err := errors.Join(c.WriteMessage([]byte("hello")), c.Flush()); err != nil {
			log.Fatal(err)
		}
	}()
	c, err := secretstream.Client(ctx, here, secretstream.Config{Key: key})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	message, err := c.ReadMessage()
	fmt.Println(string(message), err)
	// Output: hello <nil>
}
