package httpguard

import (
	"net/http"
	"time"
)

// A streamWriter answers a request over HTTP/2, where a client that opens no window
// holds up its stream without holding up the connection: a listener's deadlines do
// not see it. What is written here has them, too.
type streamWriter struct {
	http.ResponseWriter
	ctl *http.ResponseController
}

func newStreamWriter(w http.ResponseWriter) *streamWriter {
	return &streamWriter{w, http.NewResponseController(w)}
}

// Unwrap is for [http.ResponseController].
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *streamWriter) Write(p []byte) (n int, err error) {
	for {
		var m int
		err = w.bounded(func() error {
			m, err = w.ResponseWriter.Write(p[:min(len(p), slowBytes)])
			return err
		})
		if n += m; err != nil || m == len(p) {
			return n, err
		}
		p = p[m:]
	}
}

// FlushError is for [http.ResponseController].
func (w *streamWriter) FlushError() error { return w.bounded(w.ctl.Flush) }

// bounded runs write under the deadline of a slow reader. Between writes there is
// none: an answer may have to wait for more to come.
func (w *streamWriter) bounded(write func() error) error {
	if err := w.ctl.SetWriteDeadline(time.Now().Add(slowWindow)); err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	return w.ctl.SetWriteDeadline(time.Time{})
}

// end bounds what net/http still writes when the handler has returned.
func (w *streamWriter) end() { w.ctl.SetWriteDeadline(time.Now().Add(slowWindow)) }
