package importer

import "hash/maphash"

// A stampTable has a stamp for each of very many names. It holds no pointers for
// the garbage collector to follow, nor an allocation a name.
type stampTable struct {
	seed    maphash.Seed
	slots   []uint32 // number of a record + 1, by the hash of its name; 0 is none
	records []stampRecord
	text    []byte // of the records
	live    int    // records that are not gone
}

type stampRecord struct {
	name, stamp       int // where it begins
	nameLen, stampLen int32
	listed, gone      bool
}

func newStampTable() *stampTable { return &stampTable{seed: maphash.MakeSeed()} }

func (t *stampTable) name(r *stampRecord) []byte { return t.text[r.name : r.name+int(r.nameLen)] }

func (t *stampTable) stamp(r *stampRecord) []byte { return t.text[r.stamp : r.stamp+int(r.stampLen)] }

// find returns the record of a name, nil if there is none, and its slot.
func (t *stampTable) find(name string) (*stampRecord, int) {
	if len(t.slots) == 0 {
		return nil, 0
	}
	mask := len(t.slots) - 1
	for i := int(maphash.String(t.seed, name)) & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			return nil, i
		}
		if r := &t.records[n-1]; string(t.name(r)) == name {
			return r, i
		}
	}
}

// get returns the record of a name, nil if there is none or it is gone.
func (t *stampTable) get(name string) *stampRecord {
	if r, _ := t.find(name); r != nil && !r.gone {
		return r
	}
	return nil
}

// put sets the stamp of a name.
func (t *stampTable) put(name, stamp string) *stampRecord {
	r, slot := t.find(name)
	if r == nil {
		r = t.add(name, slot)
	}
	if r.gone {
		*r = stampRecord{name: r.name, nameLen: r.nameLen}
		t.live++
	}
	if len(stamp) > int(r.stampLen) {
		r.stamp = len(t.text)
		t.text = append(t.text, stamp...)
	} else {
		copy(t.text[r.stamp:], stamp)
	}
	r.stampLen = int32(len(stamp))
	return r
}

// add adds a record without a stamp for a name that has none. slot is what find
// returned.
func (t *stampTable) add(name string, slot int) *stampRecord {
	if 4*(len(t.records)+1) > 3*len(t.slots) {
		t.reserve(2 * len(t.records))
		_, slot = t.find(name)
	}
	t.records = append(t.records, stampRecord{name: len(t.text), nameLen: int32(len(name)), gone: true})
	t.text = append(t.text, name...)
	t.slots[slot] = uint32(len(t.records))
	return &t.records[len(t.records)-1]
}

// reserve makes room for n names.
func (t *stampTable) reserve(n int) {
	size := max(64, len(t.slots))
	for 4*n > 3*size || 4*(len(t.records)+1) > 3*size {
		size *= 2
	}
	if size == len(t.slots) {
		return
	}
	if len(t.records) == 0 {
		t.records = make([]stampRecord, 0, n)
	}
	t.slots = make([]uint32, size)
	for i := range t.records {
		_, slot := t.find(string(t.name(&t.records[i])))
		t.slots[slot] = uint32(i + 1)
	}
}

// remove makes a name one that is not there.
func (t *stampTable) remove(name string) {
	if r := t.get(name); r != nil {
		r.gone = true
		t.live--
	}
}
