package core

import (
	"container/list"
	"sync"
)

// pageCache keeps recently used pages of all cores.
type pageCache struct {
	mu    sync.Mutex
	items map[cacheKey]*list.Element
	order list.List // of *cached, most recent first
}

// cachedPages is how many pages are kept: about 2.6 KiB each.
const cachedPages = 4096

type cacheKey struct {
	core   uint32
	level  uint8
	number uint64
}

type cached struct {
	key  cacheKey
	page *page
}

func newPageCache() *pageCache { return &pageCache{items: map[cacheKey]*list.Element{}} }

func (c *pageCache) get(k cacheKey) *page {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).page
}

// put keeps a page and returns the one that it replaces, if any.
func (c *pageCache) put(k cacheKey, p *page) (old *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[k]; e != nil {
		old, e.Value.(*cached).page = e.Value.(*cached).page, p
		c.order.MoveToFront(e)
		return old
	}
	c.items[k] = c.order.PushFront(&cached{k, p})
	if c.order.Len() > cachedPages {
		last := c.order.Back()
		delete(c.items, last.Value.(*cached).key)
		c.order.Remove(last)
	}
	return nil
}

// drop forgets all pages of a core.
func (c *pageCache) drop(core uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.items {
		if k.core == core {
			c.order.Remove(e)
			delete(c.items, k)
		}
	}
}
