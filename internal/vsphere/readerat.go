package vsphere

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/vicsdk/vic-go/internal/fault"
)

// Nonce returns 16 random hexadecimal digits, for names of temporary files.
func Nonce() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

const (
	chunk     = 256 << 10
	maxChunks = 64
	runShare  = 4 // of what is kept, for one request: one part in so many
)

// A RemoteFile reads a datastore's file at any offset by Range requests, longer
// ones where it is read from front to end. It keeps up to 16 MiB of what it
// read. Its context is that of the call that
// opened it, because io.ReaderAt has none: it bounds the whole reading.
type RemoteFile struct {
	read func(off, n int64) ([]byte, error)
	size int64

	mu     sync.Mutex
	max    int // chunks that are kept
	chunks map[int64][]byte
	order  []int64
	// runs are the lengths of the last requests, by the chunk behind them.
	runs map[int64]int64
}

// OpenFile opens a file for reading at any offset until ctx ends.
func (f *Files) OpenFile(ctx context.Context, p string) (*RemoteFile, error) {
	res, err := f.do(ctx, http.MethodHead, p, nil)
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	if res.ContentLength < 0 {
		return nil, fmt.Errorf("%s: the server tells no length", f.Path(p))
	}
	read := func(off, n int64) ([]byte, error) {
		res, err := f.do(ctx, http.MethodGet, p, http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}})
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusPartialContent && (off != 0 || res.ContentLength != n) {
			return nil, fmt.Errorf("%s: the server ignores Range", f.Path(p))
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(res.Body, b); err != nil {
			return nil, fault.As(fault.ErrUnavailable, fmt.Errorf("read %s: %w", f.Path(p), err))
		}
		return b, nil
	}
	return &RemoteFile{read: read, size: res.ContentLength, max: maxChunks, chunks: map[int64][]byte{}, runs: map[int64]int64{}}, nil
}

// Size is the file's size in bytes at its opening.
func (r *RemoteFile) Size() int64 { return r.size }

// Keep changes how much of what was read is kept, to bytes rounded down to
// 256 KiB but at least 1 MiB. It is called before the first reading.
func (r *RemoteFile) Keep(bytes int64) { r.max = int(max(bytes, 1<<20) / chunk) }

// Close frees what was kept.
func (r *RemoteFile) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunks, r.order = map[int64][]byte{}, nil
	return nil
}

// ReadAt reads as io.ReaderAt.
func (r *RemoteFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("negative offset %d", off)
	}
	n := 0
	for n < len(p) && off < r.size {
		c, err := r.chunk(off / chunk)
		if err != nil {
			return n, err
		}
		m := copy(p[n:], c[off%chunk:])
		n += m
		off += int64(m)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *RemoteFile) chunk(i int64) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.chunks[i]; ok {
		return c, nil
	}
	run := int64(1)
	if before, ok := r.runs[i]; ok {
		delete(r.runs, i)
		run = min(2*before, int64(r.max/runShare))
	}
	all, err := r.read(i*chunk, min(run*chunk, r.size-i*chunk))
	if err != nil {
		return nil, err
	}
	if len(r.runs) == maxChunks {
		clear(r.runs)
	}
	r.runs[i+run] = run
	for k := range run {
		if off := k * chunk; off < int64(len(all)) {
			r.keep(i+k, all[off:min(off+chunk, int64(len(all)))])
		}
	}
	return all[:min(chunk, len(all))], nil
}

func (r *RemoteFile) keep(i int64, c []byte) {
	if _, ok := r.chunks[i]; ok {
		return
	}
	if len(r.order) == r.max {
		delete(r.chunks, r.order[0])
		r.order = r.order[1:]
	}
	r.chunks[i] = c
	r.order = append(r.order, i)
}
