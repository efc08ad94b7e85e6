package tether

import "sync"

// A limitedBuffer keeps the first bytes that are written to it, and takes the
// rest for nothing.
type limitedBuffer struct {
	most int

	mu   sync.Mutex
	b    []byte
	more bool
}

// Write implements io.Writer. It does not fail.
func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), l.most-len(l.b))
	l.b = append(l.b, p[:n]...)
	l.more = l.more || n < len(p)
	return len(p), nil
}

// bytes returns what was kept, with an ellipsis where that is not all.
func (l *limitedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := append([]byte(nil), l.b...)
	if l.more {
		b = append(b, "..."...)
	}
	return b
}
