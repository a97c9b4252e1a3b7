package upstream

import "time"

// What an upstream can push against.
const (
	maxRedirects     = 5
	maxHeaderBytes   = 64 << 10 // of one answer
	maxInterim       = 10       // 1xx answers before the final one
	maxValidator     = 256      // bytes of an ETag or Last-Modified
	maxDetail        = 512      // bytes kept of an error's text
	maxDrain         = 16 << 10 // bytes read from an unwanted body to keep its connection
	maxIdlePerHost   = 32
	maxConnsPerHost  = 64
	idleTimeout      = 90 * time.Second
	connectTimeout   = 4 * time.Second
	handshakeTimeout = 4 * time.Second // TLS
	stallTimeout     = 5 * time.Second // without any byte of a body
	rateWindow       = 8 * time.Second // waiting time over which the least rate is measured
	minRate          = 1 << 10         // bytes a second
	pingAfter        = 15 * time.Second
	pingTimeout      = 5 * time.Second
)

// Repeating and remembering.
const (
	attempts          = 3 // for one request to one upstream
	firstPause        = 100 * time.Millisecond
	mostPause         = 2 * time.Second
	breakerFailures   = 5 // in a row, then the origin is left alone
	breakerPause      = 2 * time.Second
	breakerProbes     = 4               // requests let through after the pause
	tellEvery         = 5 * time.Minute // how often the log says that an origin is down
	rememberAbsent    = 60 * time.Second
	rememberFailure   = 2 * time.Second
	rememberBad       = 5 * time.Second
	maxRemembered     = 10_000
	maxBusyPause      = 5 * time.Second  // Retry-After of a 503 counts up to this
	maxThrottledPause = 60 * time.Second // Retry-After of a 429 counts up to this
)

// A Kind is a sort of file: how large it may be and how it may look.
type Kind struct {
	Name string // for messages, such as "index file"

	MaxPacked   int64 // bytes as sent; 0 stands for MaxExpanded
	MaxExpanded int64 // bytes after decompression

	// FirstByte bounds the wait for the answer's headers; 0 stands for 8 s.
	FirstByte time.Duration
	// Timeout bounds Get with all its repetitions; 0 stands for 20 s.
	Timeout time.Duration

	Binary bool // bytes that are kept as sent: never compressed, and may begin with '<'
	Empty  bool // an empty body is an answer
	// Verified says that the caller checks a digest over the whole body, so that
	// an answer that just ends with its connection can be told from a cut one.
	Verified bool
}

// The kinds of files of the two ecosystems. The limits are those of
// golang.org/x/mod/zip and the defaults of the project.
var (
	IndexConfig = Kind{Name: "config.json", MaxExpanded: 64 << 10}
	IndexFile   = Kind{Name: "index file", MaxExpanded: 32 << 20}
	Crate       = Kind{Name: "crate", MaxExpanded: 64 << 20, Binary: true, Verified: true}

	ModuleList = Kind{Name: "version list", MaxExpanded: 32 << 20, Empty: true, FirstByte: moduleWait, Timeout: moduleWait}
	ModuleInfo = Kind{Name: ".info", MaxExpanded: 1 << 20, FirstByte: moduleWait, Timeout: moduleWait}
	ModuleFile = Kind{Name: ".mod", MaxExpanded: 16 << 20, FirstByte: moduleWait, Timeout: moduleWait, Verified: true}
	ModuleZip  = Kind{Name: "module zip", MaxExpanded: 500 << 20, FirstByte: moduleWait, Binary: true, Verified: true}

	SumLookup = Kind{Name: "checksum record", MaxExpanded: 1 << 20, FirstByte: moduleWait, Timeout: moduleWait, Verified: true}
	SumLatest = Kind{Name: "checksum tree", MaxExpanded: 64 << 10}
	SumTile   = Kind{Name: "checksum tile", MaxExpanded: 16 << 20, Binary: true, Verified: true}
)

// moduleWait is long: a proxy may fetch a module from version control first.
const moduleWait = 25 * time.Second

const (
	defaultFirstByte = 8 * time.Second
	defaultTimeout   = 20 * time.Second
)

func (k Kind) maxPacked() int64 {
	if k.MaxPacked > 0 {
		return k.MaxPacked
	}
	return k.MaxExpanded
}

func (k Kind) firstByte() time.Duration {
	if k.FirstByte > 0 {
		return k.FirstByte
	}
	return defaultFirstByte
}

func (k Kind) timeout() time.Duration {
	if k.Timeout > 0 {
		return k.Timeout
	}
	return defaultTimeout
}
