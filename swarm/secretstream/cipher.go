package secretstream

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	//lint:ignore SA1019 libsodium's secretstream is defined by the bare function
	"golang.org/x/crypto/poly1305"
)

const (
	headerSize = 24 // of a secretstream, sent once in each direction

	// overhead is what encryption adds to a message: a tag byte in front and a
	// MAC behind.
	overhead = 1 + poly1305.TagSize

	// prefix is the room that a message needs in front of it while it is
	// encrypted or decrypted in place: the tag's block of keystream.
	prefix = 64

	tagRekey = 2 // of the tag byte; the other tags of libsodium mean nothing here
)

var errMAC = errors.New("secretstream: message does not authenticate")

// A stream is one direction of libsodium's
// crypto_secretstream_xchacha20poly1305.
//
// Its cipher is ChaCha20 with a block of 64 bytes for the tag at counter 1 and
// the message from counter 2 on. That is what the AEAD chacha20poly1305 does
// with the plaintext (block || message), for which there is fast assembly, while
// there is none for the bare cipher. The MAC is Poly1305 over the same bytes and
// lengths, but for the padding: a quirk pads with as many zeros as the length
// has bytes over a multiple of 16. For lengths that are 0 or 8 modulo 16 that
// equals the AEAD's padding and so does the MAC; for others it is computed anew.
type stream struct {
	key     [32]byte
	nonce   [12]byte // counter, 4 bytes little endian, and the inner nonce
	aead    cipher.AEAD
	scratch [16 + 16]byte
}

// newStream derives the state from the connection's key and the header.
func newStream(key []byte, header [headerSize]byte) (*stream, error) {
	k, err := chacha20.HChaCha20(key, header[:16])
	if err != nil {
		return nil, err
	}
	s := new(stream)
	copy(s.key[:], k)
	s.nonce[0] = 1
	copy(s.nonce[4:], header[16:])
	return s, s.reset()
}

// reset makes the AEAD follow the key.
func (s *stream) reset() (err error) {
	s.aead, err = chacha20poly1305.New(s.key[:])
	return err
}

// keystream returns the first n blocks of 64 bytes: the MAC's key is in the
// first, the tag's block is the second.
func (s *stream) keystream(out []byte) {
	clear(out)
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		panic("secretstream: " + err.Error()) // the sizes are right
	}
	c.XORKeyStream(out, out)
}

// seal encrypts buf[prefix:prefix+n] in place. The message is then
// buf[prefix-1 : prefix+n+16]; buf must have that capacity and is clobbered
// before it.
func (s *stream) seal(buf []byte, n int, tag byte) error {
	buf = buf[:prefix+n]
	clear(buf[:prefix])
	buf[0] = tag
	sealed := s.aead.Seal(buf[:0], s.nonce[:], buf, nil)
	mac := sealed[prefix+n:]
	if n%8 != 0 {
		var ks [64]byte
		s.keystream(ks[:])
		s.mac(mac[:0], &ks, sealed[:prefix], sealed[prefix:prefix+n])
	}
	sealed[prefix-1] = sealed[0]
	return s.step(mac, tag)
}

// open decrypts the message buf[prefix-1:] in place, whose plaintext is then
// buf[prefix : len(buf)-16]. buf is clobbered before it.
func (s *stream) open(buf []byte) (tag byte, err error) {
	n := len(buf) - prefix - poly1305.TagSize
	if n < 0 {
		return 0, errMAC
	}
	var ks [128]byte
	s.keystream(ks[:])
	first := buf[prefix-1]
	tag = first ^ ks[64]
	copy(buf[:prefix], ks[64:])
	buf[0] = first

	var mac [poly1305.TagSize]byte
	copy(mac[:], buf[prefix+n:])
	if n%8 == 0 {
		if _, err := s.aead.Open(buf[:0], s.nonce[:], buf, nil); err != nil {
			return 0, errMAC
		}
		return tag, s.step(mac[:], tag)
	}
	var want [poly1305.TagSize]byte
	s.mac(want[:0], (*[64]byte)(ks[:64]), buf[:prefix], buf[prefix:prefix+n])
	if subtle.ConstantTimeCompare(want[:], mac[:]) != 1 {
		return 0, errMAC
	}
	s.aead.Seal(buf[:0], s.nonce[:], buf[:prefix+n], nil) // the cipher is its own inverse
	return tag, s.step(mac[:], tag)
}

// mac appends the MAC of a message to dst.
func (s *stream) mac(dst []byte, ks *[64]byte, block, c []byte) {
	m := poly1305.New((*[32]byte)(ks[:32]))
	m.Write(block)
	m.Write(c)
	tail := s.scratch[:len(c)%16+16]
	clear(tail)
	binary.LittleEndian.PutUint64(tail[len(tail)-8:], uint64(len(block)+len(c)))
	m.Write(tail)
	m.Sum(dst)
}

// step goes on to the next message.
func (s *stream) step(mac []byte, tag byte) error {
	for i := range 8 {
		s.nonce[4+i] ^= mac[i]
	}
	counter := binary.LittleEndian.Uint32(s.nonce[:]) + 1
	binary.LittleEndian.PutUint32(s.nonce[:], counter)
	if tag&tagRekey != 0 || counter == 0 {
		return s.rekey()
	}
	return nil
}

func (s *stream) rekey() error {
	var ks [64]byte
	s.keystream(ks[:])
	subtle.XORBytes(s.key[:], s.key[:], ks[:32])
	subtle.XORBytes(s.nonce[4:], s.nonce[4:], ks[32:40])
	binary.LittleEndian.PutUint32(s.nonce[:], 1)
	return s.reset()
}
