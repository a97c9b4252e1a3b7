package bee_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2b"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// A memLog is a log in memory.
type memLog struct {
	mu     sync.Mutex
	blocks [][]byte
	reads  int
}

func (l *memLog) Length() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.blocks))
}

func (l *memLog) Get(_ context.Context, i uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if i >= uint64(len(l.blocks)) {
		return nil, fmt.Errorf("no block %d", i)
	}
	return l.blocks[i], nil
}

func (l *memLog) Append(blocks ...[]byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range blocks {
		l.blocks = append(l.blocks, bytes.Clone(b))
	}
	return uint64(len(l.blocks)), nil
}

type triple struct {
	Seq        uint64
	Key, Value []byte
}

func (e *triple) UnmarshalJSON(b []byte) error {
	var key, value vectors.Hex
	err := json.Unmarshal(b, &[]any{&e.Seq, &key, &value})
	e.Key, e.Value = key, value
	return err
}

func (e triple) String() string { return show(bee.Entry{Seq: e.Seq, Key: e.Key, Value: e.Value}) }

func show(e bee.Entry) string {
	if e.Value == nil {
		return fmt.Sprintf("%d %x null", e.Seq, e.Key)
	}
	return fmt.Sprintf("%d %x %x", e.Seq, e.Key, e.Value)
}

type rangeVector struct {
	GT, GTE, LT, LTE vectors.Hex
	Reverse          bool
	Limit            *int
}

func (r rangeVector) bee() bee.Range {
	out := bee.Range{GT: r.GT, GTE: r.GTE, LT: r.LT, LTE: r.LTE, Reverse: r.Reverse}
	if r.Limit != nil {
		out.Limit = *r.Limit
	}
	return out
}

type scenario struct {
	Name string
	Ops  []struct {
		Op     []json.RawMessage
		Blocks [2]int
	}
	Blocks  []vectors.Hex
	Entries []triple
	Queries []struct {
		Get     *vectors.Hex
		Range   *rangeVector
		History *struct {
			GTE, LT, Limit int
			Reverse        bool
		}
		Diff     *uint64
		Options  rangeVector
		Checkout uint64
		Result   json.RawMessage
	}
}

type putter interface {
	PutIf(context.Context, []byte, []byte, bee.CAS) (bool, error)
	DeleteIf(context.Context, []byte, bee.CAS) (bool, error)
}

// run does one recorded operation.
func run(t *testing.T, tree *bee.Tree, to putter, op []json.RawMessage) {
	t.Helper()
	text := func(i int) (s string) {
		if i < len(op) {
			json.Unmarshal(op[i], &s)
		}
		return s
	}
	bytesOf := func(i int) []byte {
		var h vectors.Hex
		if err := json.Unmarshal(op[i], &h); err != nil {
			t.Fatal(err)
		}
		return h
	}
	cas := func(s string) bee.CAS {
		switch s {
		case "":
			return nil
		case "cas refuses":
			return func(_, _ bee.Entry) bool { return false }
		}
		if s == "cas if value differs" {
			return func(prev, next bee.Entry) bool { return !bytes.Equal(prev.Value, next.Value) }
		}
		if want, ok := strings.CutPrefix(s, "cas if value is "); ok {
			return func(prev, _ bee.Entry) bool { return string(prev.Value) == want }
		}
		t.Fatalf("unknown condition %q", s)
		return nil
	}
	var err error
	switch text(0) {
	case "put":
		_, err = to.PutIf(t.Context(), bytesOf(1), bytesOf(2), cas(text(3)))
	case "del":
		_, err = to.DeleteIf(t.Context(), bytesOf(1), cas(text(2)))
	case "batch":
		b := tree.Batch()
		var ops [][]json.RawMessage
		if err := json.Unmarshal(op[1], &ops); err != nil {
			t.Fatal(err)
		}
		for _, o := range ops {
			run(t, tree, b, o)
		}
		err = b.Flush(t.Context())
	default:
		t.Fatalf("unknown operation %s", op[0])
	}
	if err != nil {
		t.Fatalf("%s: %v", op, err)
	}
}

func TestVectors(t *testing.T) {
	var v struct{ Scenarios []scenario }
	vectors.Load(t, "hyperbee.json", &v)
	if len(v.Scenarios) != 9 {
		t.Fatalf("%d scenarios, want 9", len(v.Scenarios))
	}
	for _, s := range v.Scenarios {
		t.Run(s.Name, func(t *testing.T) {
			log := &memLog{}
			tree := bee.Open(log, bee.Options{NoDuplicates: strings.HasPrefix(s.Name, "alwaysDuplicate false")})
			for i, o := range s.Ops {
				run(t, tree, tree, o.Op)
				if int(log.Length()) != o.Blocks[1] {
					t.Fatalf("operation %d %s: length %d, want %d", i, o.Op, log.Length(), o.Blocks[1])
				}
				for b := o.Blocks[0]; b < o.Blocks[1]; b++ {
					if !bytes.Equal(log.blocks[b], s.Blocks[b]) {
						t.Fatalf("operation %d %s: block %d\n got %x\nwant %x", i, o.Op, b, log.blocks[b], s.Blocks[b])
					}
				}
			}
			for name, tree := range map[string]*bee.Tree{"writer": tree, "reader": bee.Open(log, bee.Options{CacheBlocks: 3})} {
				query(t, name, tree, s)
			}
		})
	}
}

func query(t *testing.T, who string, tree *bee.Tree, s scenario) {
	var got []string
	for e, err := range tree.Range(t.Context(), bee.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, show(e))
	}
	if want := texts(s.Entries); !slices.Equal(got, want) {
		t.Errorf("%s: entries\n got %q\nwant %q", who, got, want)
	}
	for i, q := range s.Queries {
		view := tree
		if q.Checkout != 0 {
			view = tree.Checkout(q.Checkout)
		}
		var got, want []string
		switch {
		case q.Get != nil:
			e, err := view.Get(t.Context(), *q.Get)
			if err == nil {
				got = []string{show(e)}
			} else if !errors.Is(err, bee.ErrNotFound) {
				t.Fatal(err)
			}
			var r *triple
			decode(t, q.Result, &r)
			if r != nil {
				want = []string{r.String()}
			}
		case q.Range != nil && q.Range.Limit != nil && *q.Range.Limit == 0:
			continue // the reference reads nothing then, we read all
		case q.Range != nil:
			for e, err := range view.Range(t.Context(), q.Range.bee()) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, show(e))
			}
			var r []triple
			decode(t, q.Result, &r)
			want = texts(r)
		case q.Diff != nil:
			for d, err := range view.Diff(t.Context(), *q.Diff, q.Options.bee()) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, side(d.Left)+" | "+side(d.Right))
			}
			var r [][2]*triple
			decode(t, q.Result, &r)
			for _, p := range r {
				want = append(want, sideOf(p[0])+" | "+sideOf(p[1]))
			}
		case q.History != nil:
			h := *q.History
			from, to := absolute(h.GTE, view), absolute(h.LT, view)
			for c, err := range view.History(t.Context(), bee.HistoryRange{From: from, To: to, Reverse: h.Reverse, Limit: h.Limit}) {
				if err != nil {
					t.Fatal(err)
				}
				kind := "put"
				if c.Deleted {
					kind = "del"
				}
				got = append(got, kind+" "+show(c.Entry))
			}
			var r [][]json.RawMessage
			decode(t, q.Result, &r)
			for _, c := range r {
				var kind string
				var e triple
				decode(t, c[0], &kind)
				rest, _ := json.Marshal(c[1:])
				decode(t, rest, &e)
				want = append(want, kind+" "+e.String())
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: query %d\n got %q\nwant %q", who, i, got, want)
		}
	}
}

// absolute turns a negative bound of the reference into one from the start.
func absolute(n int, t *bee.Tree) uint64 {
	if n < 0 {
		n += int(t.Version())
	}
	return uint64(n)
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}

func texts(es []triple) (out []string) {
	for _, e := range es {
		out = append(out, e.String())
	}
	return out
}

func side(e *bee.Entry) string {
	if e == nil {
		return "-"
	}
	return show(*e)
}

func sideOf(e *triple) string {
	if e == nil {
		return "-"
	}
	return e.String()
}

// TestLarge makes the tree of 4165 blocks of which the vectors have hashes.
func TestLarge(t *testing.T) {
	var v struct {
		Large struct {
			LengthAfterBatches []uint64
			Length             uint64
			BlockHashesHash    vectors.Hex
			BlockHashesPrefix  vectors.Hex
			Entries            int
		}
	}
	vectors.Load(t, "hyperbee.json", &v)
	x := uint64(2026)
	r := func() uint64 {
		x = (x*1103515245 + 12345) & (1<<31 - 1)
		return x
	}
	log := &memLog{}
	tree := bee.Open(log, bee.Options{})
	key := func() []byte { return fmt.Appendf(nil, "pkg-%04d", r()%3000) }
	for b := range 12 {
		batch := tree.Batch()
		for i := range 400 {
			k := key()
			var err error
			if r()%6 == 0 {
				err = batch.Delete(t.Context(), k)
			} else {
				err = batch.Put(t.Context(), k, fmt.Appendf(nil, "batch %d op %d", b, i))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if log.Length() != v.Large.LengthAfterBatches[b] {
			t.Fatalf("batch %d: length %d, want %d", b, log.Length(), v.Large.LengthAfterBatches[b])
		}
	}
	for i := range 200 {
		k := key()
		var err error
		if r()%3 == 0 {
			err = tree.Delete(t.Context(), k)
		} else {
			err = tree.Put(t.Context(), k, fmt.Appendf(nil, "single %d", i))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	all, _ := blake2b.New256(nil)
	for i, b := range log.blocks {
		h := blake2b.Sum256(b)
		all.Write(h[:])
		if !bytes.Equal(h[:4], v.Large.BlockHashesPrefix[4*i:4*i+4]) {
			t.Fatalf("block %d differs: %x", i, b)
		}
	}
	if got := all.Sum(nil); !bytes.Equal(got, v.Large.BlockHashesHash) || log.Length() != v.Large.Length {
		t.Errorf("length %d, hash %x", log.Length(), got)
	}
	n := 0
	for _, err := range tree.Range(t.Context(), bee.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != v.Large.Entries {
		t.Errorf("%d entries, want %d", n, v.Large.Entries)
	}
}

func TestSubs(t *testing.T) {
	var v struct {
		Subs struct {
			Header struct {
				Metadata struct{ ContentFeed, UserData vectors.Hex }
				Block    vectors.Hex
			}
		}
	}
	vectors.Load(t, "hyperbee.json", &v)
	log := &memLog{}
	m := v.Subs.Header.Metadata
	tree := bee.Open(log, bee.Options{Metadata: &bee.Metadata{ContentFeed: m.ContentFeed, UserData: m.UserData}})
	packages := tree.Sub("packages")
	serde := packages.Sub("serde")
	for _, p := range []struct {
		t *bee.Tree
		k string
	}{{tree, "top"}, {packages, "serde"}, {serde, "1.0.0"}, {serde, "1.0.1"}, {tree, "packages"}, {packages, "tokio"}, {tree.SubSep("other", []byte("!")), "x"}} {
		if err := p.t.Put(t.Context(), []byte(p.k), []byte(p.k)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(log.blocks[0], v.Subs.Header.Block) {
		t.Errorf("header %x, want %x", log.blocks[0], v.Subs.Header.Block)
	}
	got, err := tree.Header(t.Context())
	if err != nil || !bytes.Equal(got.ContentFeed, m.ContentFeed) || !bytes.Equal(got.UserData, m.UserData) {
		t.Errorf("metadata %v, %v", got, err)
	}
	keys := func(t2 *bee.Tree, r bee.Range) string {
		var out []string
		for e, err := range t2.Range(t.Context(), r) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(e.Key))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		t    *bee.Tree
		r    bee.Range
		want string
	}{
		{packages, bee.Range{}, "serde serde\x001.0.0 serde\x001.0.1 tokio"},
		{packages, bee.Range{Reverse: true, Limit: 1}, "tokio"},
		{serde, bee.Range{}, "1.0.0 1.0.1"},
		{serde, bee.Range{GT: []byte("1.0.0")}, "1.0.1"},
		{tree, bee.Range{GTE: []byte("packages"), LT: []byte("packages\x00")}, "packages"},
	} {
		if got := keys(c.t, c.r); got != c.want {
			t.Errorf("range %+v = %q, want %q", c.r, got, c.want)
		}
	}
	if e, err := serde.Get(t.Context(), []byte("1.0.0")); err != nil || string(e.Key) != "1.0.0" {
		t.Errorf("get in a sub = %+v, %v", e, err)
	}
}

// TestModel runs random operations on a tree and on a map.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	log := &memLog{}
	tree := bee.Open(log, bee.Options{})
	model := map[string]string{}
	versions := map[uint64]map[string]string{}
	universe := 300
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	for round := range rounds {
		b := tree.Batch()
		for range 1 + r.IntN(20) {
			k := fmt.Appendf(nil, "k%03d", r.IntN(universe))
			// Times of growth and of decay, so that all shapes occur.
			if r.IntN(10) < 3+4*(round/40%2) {
				if err := b.Delete(t.Context(), k); err != nil {
					t.Fatal(err)
				}
				delete(model, string(k))
				continue
			}
			value := fmt.Sprint(r.IntN(1000))
			if err := b.Put(t.Context(), k, []byte(value)); err != nil {
				t.Fatal(err)
			}
			model[string(k)] = value
			if r.IntN(4) == 0 {
				check(t, b, model, r)
			}
		}
		check(t, b, model, r)
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, tree, model, r)
		if round%10 == 0 {
			clone := map[string]string{}
			for k, v := range model {
				clone[k] = v
			}
			versions[tree.Version()] = clone
		}
		if round%25 == 0 {
			tree = bee.Open(log, bee.Options{CacheBlocks: 1 + r.IntN(50)})
		}
	}
	for version, m := range versions {
		check(t, tree.Checkout(version), m, r)
		diff(t, tree, version, model, m)
	}
}

// A reader is a tree, or a batch that is open.
type reader interface {
	Get(ctx context.Context, key []byte) (bee.Entry, error)
	Range(ctx context.Context, r bee.Range) iter.Seq2[bee.Entry, error]
}

// check compares a look-up and a range of what is read with the model.
func check(t *testing.T, tree reader, model map[string]string, r *rand.Rand) {
	t.Helper()
	k := fmt.Sprintf("k%03d", r.IntN(320))
	e, err := tree.Get(t.Context(), []byte(k))
	if v, ok := model[k]; ok && (err != nil || string(e.Value) != v) || !ok && !errors.Is(err, bee.ErrNotFound) {
		t.Fatalf("get %s = %s, %v, want %q %v", k, e.Value, err, v, ok)
	}
	lo, hi := fmt.Sprintf("k%03d", r.IntN(300)), fmt.Sprintf("k%03d", r.IntN(300))
	rg := bee.Range{Reverse: r.IntN(2) == 0, Limit: r.IntN(40)}
	inside := []func(k string) bool{}
	switch r.IntN(3) {
	case 0:
		rg.GTE, inside = []byte(lo), append(inside, func(k string) bool { return k >= lo })
	case 1:
		rg.GT, inside = []byte(lo), append(inside, func(k string) bool { return k > lo })
	}
	switch r.IntN(3) {
	case 0:
		rg.LT, inside = []byte(hi), append(inside, func(k string) bool { return k < hi })
	case 1:
		rg.LTE, inside = []byte(hi), append(inside, func(k string) bool { return k <= hi })
	}
	var want []string
	for k, v := range model {
		if !slices.ContainsFunc(inside, func(in func(string) bool) bool { return !in(k) }) {
			want = append(want, k+"="+v)
		}
	}
	slices.Sort(want)
	if rg.Reverse {
		slices.Reverse(want)
	}
	if rg.Limit > 0 && len(want) > rg.Limit {
		want = want[:rg.Limit]
	}
	var got []string
	for e, err := range tree.Range(t.Context(), rg) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.Key)+"="+string(e.Value))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("range %+v\n got %q\nwant %q", rg, got, want)
	}
}

func diff(t *testing.T, tree *bee.Tree, version uint64, now, then map[string]string) {
	t.Helper()
	last := ""
	seen := map[string]bool{}
	for d, err := range tree.Diff(t.Context(), version, bee.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		var k string
		if d.Left != nil {
			k = string(d.Left.Key)
			if now[k] != string(d.Left.Value) {
				t.Fatalf("diff: left %s = %s", k, d.Left.Value)
			}
		}
		if d.Right != nil {
			k = string(d.Right.Key)
			if then[k] != string(d.Right.Value) || d.Left != nil && d.Left.Seq == d.Right.Seq {
				t.Fatalf("diff: right %s = %s", k, d.Right.Value)
			}
		}
		if k <= last && last != "" {
			t.Fatalf("diff: %s after %s", k, last)
		}
		last, seen[k] = k, true
	}
	for k, v := range now {
		if w, ok := then[k]; (!ok || v != w) && !seen[k] {
			t.Fatalf("diff of version %d lacks %s", version, k)
		}
	}
	for k := range then {
		if _, ok := now[k]; !ok && !seen[k] {
			t.Fatalf("diff of version %d lacks deleted %s", version, k)
		}
	}
}

func TestBatchClosed(t *testing.T) {
	tree := bee.Open(&memLog{}, bee.Options{})
	b := tree.Batch()
	if err := b.Put(t.Context(), []byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := b.Put(t.Context(), []byte("b"), nil); !errors.Is(err, bee.ErrBatch) {
		t.Errorf("put after close = %v, want ErrBatch", err)
	}
	if err := tree.Put(t.Context(), []byte("c"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Get(t.Context(), []byte("a")); !errors.Is(err, bee.ErrNotFound) {
		t.Errorf("a key of a closed batch = %v, want ErrNotFound", err)
	}
	if err := tree.Checkout(1).Put(t.Context(), []byte("x"), nil); !errors.Is(err, bee.ErrReadOnly) {
		t.Errorf("put to a checkout = %v, want ErrReadOnly", err)
	}
}

// SEC-8: hostile blocks end in an error, never in a panic or an endless walk.
func FuzzBlocks(f *testing.F) {
	var v struct{ Scenarios []scenario }
	vectors.Load(f, "hyperbee.json", &v)
	for _, s := range v.Scenarios {
		f.Add([]byte(s.Blocks[len(s.Blocks)-1]), []byte(s.Blocks[1]))
	}
	loop, _ := hex.DecodeString("0a080a060a01011202020012016b")
	f.Add(loop, loop)
	f.Fuzz(func(t *testing.T, x, y []byte) {
		log := &memLog{blocks: [][]byte{{}, x, y}}
		tree := bee.Open(log, bee.Options{})
		tree.Get(t.Context(), []byte("k"))
		n := 0
		for _, err := range tree.Range(t.Context(), bee.Range{}) {
			if n++; err != nil || n > 1000 {
				break
			}
		}
		n = 0
		for _, err := range tree.Diff(t.Context(), 2, bee.Range{}) {
			if n++; err != nil || n > 1000 {
				break
			}
		}
		for range tree.History(t.Context(), bee.HistoryRange{}) {
		}
	})
}

// SEC-8, SEC-20
func FuzzExtension(f *testing.F) {
	f.Add(bee.EncodeGet(bee.GetRequest{Version: 3, Key: []byte("k")}))
	f.Add(bee.EncodeCache([]uint64{1, 5, 3})[0])
	f.Add(bee.EncodeRange(bee.RangeRequest{Version: 9, Range: bee.Range{GTE: []byte("a"), LT: []byte{}, Limit: 3, Reverse: true}, Checkpoint: []uint64{8, 0, 3}}))
	tree := numbers(f, 300)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := bee.DecodeExtension(b)
		again := func(b []byte) {
			if n := bee.DecodeExtension(b); !reflect.DeepEqual(m, n) {
				t.Fatalf("%+v came back as %+v", m, n)
			}
		}
		if m.Get != nil {
			again(bee.EncodeGet(*m.Get))
		}
		if m.Range != nil {
			again(bee.EncodeRange(*m.Range))
			if n := len(tree.TouchedRange(t.Context(), *m.Range, 100)); n > 100 {
				t.Fatalf("%d blocks", n)
			}
		}
		if len(m.Blocks) > 128 {
			t.Fatalf("%d blocks", len(m.Blocks))
		}
	})
}

// numbers returns a tree of n entries.
func numbers(t testing.TB, n int) *bee.Tree {
	tree := bee.Open(&memLog{}, bee.Options{})
	for i := range n {
		if err := tree.Put(t.Context(), fmt.Appendf(nil, "%04d", i*7919%n), []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// A partLog is a log of which some blocks are missing until they are fetched.
type partLog struct {
	*memLog
	missing map[uint64]bool
	waits   int
}

func (l *partLog) Has(i uint64) bool  { return !l.missing[i] }
func (l *partLog) Prefetch(...uint64) {}
func (l *partLog) Get(ctx context.Context, i uint64) ([]byte, error) {
	if l.missing[i] {
		l.waits++
		delete(l.missing, i)
	}
	return l.memLog.Get(ctx, i)
}

// TestAskRange reads ranges of a tree that is not here: with the blocks that a peer
// names, wherever the reader is when it asks, nothing has to be waited for.
func TestAskRange(t *testing.T) {
	const n = 5000
	source := &memLog{}
	w := bee.Open(source, bee.Options{})
	b := w.Batch()
	for i := range n {
		if err := b.Put(t.Context(), fmt.Appendf(nil, "%04d", i*7919%n), []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []bee.Range{
		{}, {Reverse: true}, {GTE: []byte("1000")}, {GT: []byte("0500"), LTE: []byte("4500"), Reverse: true}, {GT: []byte("02"), Limit: 300},
		{LT: []byte("0003")}, {GTE: []byte("9")}, {GTE: []byte("3141"), LT: []byte("3142"), Reverse: true},
	} {
		log := &partLog{memLog: source, missing: map[uint64]bool{}}
		for i := range source.Length() {
			log.missing[i] = true
		}
		asked := 0
		tree := bee.Open(log, bee.Options{AskRange: func(q bee.RangeRequest) {
			m := bee.DecodeExtension(bee.EncodeRange(q))
			if asked++; m.Range == nil || !reflect.DeepEqual(*m.Range, q) {
				t.Fatalf("%+v came back as %+v", q, m.Range)
			}
			for _, seq := range w.TouchedRange(t.Context(), *m.Range, bee.RangeHint+128) {
				delete(log.missing, seq)
			}
		}})
		got := 0
		for e, err := range tree.Range(t.Context(), r) {
			if err != nil || string(e.Value) != "value" {
				t.Fatal(e, err)
			}
			got++
		}
		want := 0
		for range w.Range(t.Context(), r) {
			want++
		}
		if got != want || log.waits > 0 {
			t.Errorf("%+v: %d entries, want %d; %d waits", r, got, want, log.waits)
		}
		if here := int(source.Length()) - len(log.missing); asked > got/bee.RangeHint+2 || here > 2*got+100 {
			t.Errorf("%+v: asked %d times for %d entries, %d blocks came", r, asked, got, here)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			tree := bee.Open(&memLog{}, bee.Options{})
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for done := 0; done < b.N; done += n {
				batch := tree.Batch()
				for range n {
					batch.Put(b.Context(), fmt.Appendf(nil, "key-%08d", r.IntN(100000)), []byte("some value of about 30 bytes.."))
				}
				if err := batch.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	tree := bee.Open(&memLog{}, bee.Options{CacheBlocks: 200_000})
	batch := tree.Batch()
	for i := range 100_000 {
		batch.Put(b.Context(), fmt.Appendf(nil, "key-%08d", i*7919%100_000), []byte("some value of about 30 bytes.."))
	}
	batch.Flush(b.Context())
	r := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tree.Get(b.Context(), fmt.Appendf(nil, "key-%08d", r.IntN(100000))); err != nil {
			b.Fatal(err)
		}
	}
}

func Example() {
	ctx := context.Background()
	tree := bee.Open(&memLog{}, bee.Options{}) // a *core.Core in real life
	tree.Put(ctx, []byte("b"), []byte("2"))
	tree.Put(ctx, []byte("a"), []byte("1"))
	before := tree.Snapshot()
	tree.Delete(ctx, []byte("a"))
	for e := range tree.Range(ctx, bee.Range{}) {
		fmt.Printf("now %s=%s\n", e.Key, e.Value)
	}
	for e := range before.Range(ctx, bee.Range{}) {
		fmt.Printf("before %s=%s\n", e.Key, e.Value)
	}
	// Output:
	// now b=2
	// before a=1
	// before b=2
}
