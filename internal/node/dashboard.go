package node

import (
	"embed"
	"io/fs"
	"net/http"

	"github.com/go-chi/chi/v5"
)

//go:embed dashboard
var dashboard embed.FS

// pageSecurity allows a page what this node serves, and nothing else: no inline
// script or style, no frames (SEC-51).
const pageSecurity = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// mountDashboard serves the page at / and its files below /dashboard/.
func (n *Node) mountDashboard(r chi.Router) {
	files, err := fs.Sub(dashboard, "dashboard")
	if err != nil {
		panic("dashboard: " + err.Error()) // its name is right
	}
	serve := func(w http.ResponseWriter, r *http.Request, name string) {
		h := w.Header()
		h.Set("Content-Security-Policy", pageSecurity)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		http.ServeFileFS(w, r, files, name)
	}
	r.Get("/", func(w http.ResponseWriter, r *http.Request) { serve(w, r, "index.html") })
	for _, name := range []string{"style.css", "dashboard.js"} {
		r.Get("/dashboard/"+name, func(w http.ResponseWriter, r *http.Request) { serve(w, r, name) })
	}
}
