// Package remotebee reads Hyperbees over the network in few round trips, with
// Hyperbee's extension of the replication protocol, and answers others that do.
//
// A reader that has to wait for a block of a look-up, or of a range, tells a peer
// what it looks for. The reference answers with the numbers of the blocks that are
// read for it, which are then fetched all at once. [Extension] sends the blocks
// themselves, proven like any others, to a reader that allows it, as those of
// [Open] do: such a look-up takes one round trip, and a range one for every
// bee.RangeHint blocks.
//
// Readers tell peers the keys that they look up; where these are private, use a
// plain bee.Open over a session. An answer costs the peer that gives it at most
// maxBlocks blocks to be read, and all answers together blocksPerSecond; questions
// beyond are not answered (SEC-20).
package remotebee

import (
	"context"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"golang.org/x/time/rate"
)

const (
	// maxBlocks bounds the blocks of one answer, as the reference does.
	maxBlocks = bee.RangeHint + 128
	// lookupTime is how long answering one message may take.
	lookupTime = time.Second
	// blocksPerSecond and blocksBurst bound the blocks of all answers.
	blocksPerSecond = 100_000
	blocksBurst     = 400_000
	// maxTrees is how many trees an Extension keeps for the next question.
	maxTrees = 64
)

// Extension answers the questions of other readers from what is stored here;
// it goes into replicate.Config.Extensions under bee.ExtensionName.
func Extension() replicate.Extension {
	a := answerer{limit: rate.NewLimiter(blocksPerSecond, blocksBurst)}
	return a.answer
}

// An answerer keeps trees, for their decoded blocks.
type answerer struct {
	limit *rate.Limiter

	mu    sync.Mutex
	trees map[replicate.Core]*bee.Tree
}

func (a *answerer) answer(c replicate.Core, payload []byte, reply func([]byte), push func(...uint64) bool) {
	m := bee.DecodeExtension(payload)
	if m.Get == nil && m.Range == nil || a.limit.Tokens() <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	var blocks []uint64
	if m.Get != nil {
		blocks = a.tree(c).Touched(ctx, m.Get.Version, m.Get.Key, maxBlocks)
	} else {
		blocks = a.tree(c).TouchedRange(ctx, *m.Range, maxBlocks)
	}
	a.limit.ReserveN(time.Now(), 1+len(blocks))
	if len(blocks) == 0 || push(blocks...) {
		return
	}
	for _, m := range bee.EncodeCache(blocks) {
		reply(m)
	}
}

// tree returns the tree over the blocks of c that are stored.
func (a *answerer) tree(c replicate.Core) *bee.Tree {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.trees[c]; t != nil {
		return t
	}
	if len(a.trees) >= maxTrees || a.trees == nil {
		a.trees = make(map[replicate.Core]*bee.Tree)
	}
	t := bee.Open(stored{c}, bee.Options{CacheBlocks: 1024})
	a.trees[c] = t
	return t
}

// stored is a core as a log of which some blocks are missing.
type stored struct{ c replicate.Core }

func (s stored) Length() uint64     { return s.c.Tree().Length }
func (s stored) Fork() uint64       { return s.c.Tree().Fork }
func (s stored) Has(i uint64) bool  { return s.c.Has(i) }
func (s stored) Prefetch(...uint64) {}
func (s stored) Get(ctx context.Context, i uint64) ([]byte, error) {
	return s.c.Get(ctx, i)
}

// Open opens a tree that is read from c and, where blocks are missing there,
// from the peers that open finds: the Open of a replicator or a swarm. The
// caller closes the session, and c after it.
func Open(open func(replicate.Core, replicate.SessionOptions) (*replicate.Session, error), c replicate.Core,
	o bee.Options, so replicate.SessionOptions) (*bee.Tree, *replicate.Session, error) {
	var s *replicate.Session
	ready := make(chan struct{})
	so.AllowPush = true
	extensions := map[string]func(replicate.PeerID, []byte){}
	for name, f := range so.Extensions {
		extensions[name] = f
	}
	extensions[bee.ExtensionName] = func(_ replicate.PeerID, payload []byte) {
		if m := bee.DecodeExtension(payload); len(m.Blocks) > 0 {
			<-ready
			if s != nil {
				s.Prefetch(m.Blocks...)
			}
		}
	}
	so.Extensions = extensions
	s, err := open(c, so)
	close(ready)
	if err != nil {
		return nil, nil, err
	}
	o.Ask = func(version uint64, key []byte) {
		s.SendBest(bee.ExtensionName, bee.EncodeGet(bee.GetRequest{Version: version, Key: key}))
	}
	o.AskRange = func(r bee.RangeRequest) {
		s.SendBest(bee.ExtensionName, bee.EncodeRange(r))
	}
	return bee.Open(s, o), s, nil
}
