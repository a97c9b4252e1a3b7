package node

import "github.com/go-chi/chi/v5"

func (n *Node) mountDashboard(r chi.Router) {}
