package node

func (n *Node) openFronts() error { return nil }

func (n *Node) upstreams() []string { return []string{} }
