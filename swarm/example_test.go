package swarm_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/remotebee"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// One node serves a Hyperbee over TCP, another one reads it, knowing its key. Each
// could as well be a program in JavaScript (package integration runs these two):
//
//	// reads it: node read.mjs KEY PORT
//	import net from 'node:net'
//	import Corestore from 'corestore'
//	import Hyperbee from 'hyperbee'
//	import SecretStream from '@hyperswarm/secret-stream'
//
//	const [key, port] = process.argv.slice(2)
//	const store = new Corestore('copy')
//	store.replicate(new SecretStream(true, net.connect(port)))
//	const colours = new Hyperbee(store.get(key), { keyEncoding: 'utf-8', valueEncoding: 'utf-8' })
//	await colours.update({ wait: true })
//	for await (const { key, value } of colours.createReadStream()) console.log(key, value)
//	process.exit()
//
//	// serves one: node serve.mjs PORT
//	import net from 'node:net'
//	import Corestore from 'corestore'
//	import Hyperbee from 'hyperbee'
//	import SecretStream from '@hyperswarm/secret-stream'
//
//	const store = new Corestore('colours')
//	const colours = new Hyperbee(store.get({ name: 'colours' }))
//	await colours.put('apple', 'red')
//	net.createServer((socket) => store.replicate(new SecretStream(false, socket)))
//	  .listen(process.argv[2], () => console.log(colours.core.key.toString('hex')))
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	// The one that serves.
	store, remove := tempStore()
	defer remove()
	c, err := store.Named("colours")
	check(err)
	defer c.Close()
	colours := bee.Open(c, bee.Options{})
	check(colours.Put(ctx, []byte("apple"), []byte("red")))
	check(colours.Put(ctx, []byte("banana"), []byte("yellow")))
	server, err := swarm.New(swarm.Config{Key: identity(), Listen: []string{"127.0.0.1:0"}})
	check(err)
	running.Go(func() { server.Run(ctx) })
	serving, err := server.Open(c, replicate.SessionOptions{})
	check(err)
	defer serving.Close()

	// The one that reads: blocks come when they are needed, each proven.
	copies, remove := tempStore()
	defer remove()
	replica, err := copies.Open(c.Key())
	check(err)
	defer replica.Close()
	client, err := swarm.New(swarm.Config{Key: identity(), Peers: []string{server.Addrs()[0].String()}})
	check(err)
	running.Go(func() { client.Run(ctx) })
	tree, session, err := remotebee.Open(client.Open, replica, bee.Options{}, replicate.SessionOptions{})
	check(err)
	defer session.Close()
	_, err = session.Update(ctx) // learns the length
	check(err)
	for e, err := range tree.Range(ctx, bee.Range{}) {
		check(err)
		fmt.Printf("%s %s\n", e.Key, e.Value)
	}
	// Output:
	// apple red
	// banana yellow
}

func identity() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(nil)
	check(err)
	return key
}

func tempStore() (store *core.Store, remove func()) {
	dir, err := os.MkdirTemp("", "swarm-example-")
	check(err)
	store, err = core.OpenStore(dir, core.Options{})
	check(err)
	return store, func() {
		store.Close()
		os.RemoveAll(dir)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
