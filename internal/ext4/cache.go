package ext4

import "sync"

// chunkCache remembers the parts of a disk that were read last: 8 MiB of it.
type chunkCache struct {
	mu     sync.Mutex
	chunks map[int64][]byte
	order  []int64
}

const (
	chunkBytes = 64 << 10
	maxChunks  = 128
)

// cachedAt is rawAt, a chunk at a time. The disk must not change.
func (v *volume) cachedAt(p []byte, off int64) error {
	for len(p) > 0 {
		c, err := v.chunk(off / chunkBytes)
		if err != nil {
			return err
		}
		within := off % chunkBytes
		if within >= int64(len(c)) {
			return v.rawAt(p, off) // the end, which rawAt judges
		}
		n := copy(p, c[within:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (v *volume) chunk(i int64) ([]byte, error) {
	c := &v.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.chunks[i]; ok {
		return b, nil
	}
	start := i * chunkBytes
	b := make([]byte, min(chunkBytes, max(v.bytes-start, 0)))
	if err := v.rawAt(b, start); err != nil {
		return nil, err
	}
	if c.chunks == nil {
		c.chunks = map[int64][]byte{}
	}
	if len(c.order) == maxChunks {
		delete(c.chunks, c.order[0])
		c.order = append(c.order[:0], c.order[1:]...)
	}
	c.chunks[i] = b
	c.order = append(c.order, i)
	return b, nil
}
