package chain

import (
	"errors"
	"fmt"
	"io"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// ReadAt reads the disk as a guest sees it. Where the chain holds nothing, and behind the end of a
// parent smaller than its child, there are zeroes.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("chain: negative offset %d", off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= d.Size() {
			return done, io.EOF
		}
		n := min(int64(len(p)-done), d.Size()-at)
		n, err := d.read(p[done:done+int(n)], at)
		if err != nil {
			return done, err
		}
		done += int(n)
	}
	return done, nil
}

// read fills a first part of p, as long as the chain gives it from one place.
func (d *Disk) read(p []byte, off int64) (int64, error) {
	n := int64(len(p))
	for _, l := range d.links {
		if off >= l.Bytes {
			break
		}
		n = min(n, l.Bytes-off)
		if l.sparse == nil {
			k, err := l.flat.ReadAt(p[:n], l.start+off)
			if int64(k) < n {
				return 0, fmt.Errorf("chain: %s: %w", l.Extent, notNil(err))
			}
			return n, nil
		}
		r, err := l.sparse.Map(off)
		if err != nil {
			return 0, fmt.Errorf("chain: %s: %w", l.Extent, err)
		}
		n = min(n, r.Bytes)
		switch r.State {
		case vmdk.Data:
			if err := l.sparse.ReadData(p[:n], r.Offset); err != nil {
				return 0, fmt.Errorf("chain: %s: %w", l.Extent, err)
			}
			return n, nil
		case vmdk.Zero:
			clear(p[:n])
			return n, nil
		}
	}
	clear(p[:n])
	return n, nil
}

// Allocated is how many bytes of the disk link i (0 is the top) holds itself: for a flat
// disk its capacity, holes of the host's file included.
func (d *Disk) Allocated(i int) (int64, error) {
	if i < 0 || i >= len(d.links) {
		return 0, fmt.Errorf("chain: link %d of %d", i, len(d.links))
	}
	l := d.links[i]
	if l.sparse == nil {
		return l.Bytes, nil
	}
	n, err := l.sparse.Allocated()
	if err != nil {
		return 0, fmt.Errorf("chain: %s: %w", l.Extent, err)
	}
	return n, nil
}

var errFlatTop = errors.New("chain: the top is a flat disk: it has no parent to differ from")

// TopRuns calls fn for every stretch of the disk that the top link holds itself, whatever is in
// it: n bytes from off, ascending and merged. All else is as in the parent. An error of fn
// ends it and is returned.
func (d *Disk) TopRuns(fn func(off, n int64) error) error {
	l := d.links[0]
	if l.sparse == nil {
		return errFlatTop
	}
	var start, end int64
	err := l.sparse.Runs(func(off int64, r vmdk.Run) error {
		if off == end && end > start {
			end += r.Bytes
			return nil
		}
		if end > start {
			if err := fn(start, end-start); err != nil {
				return err
			}
		}
		start, end = off, off+r.Bytes
		return nil
	})
	if err == nil && end > start {
		err = fn(start, end-start)
	}
	return err
}

// Parent is the disk without its top, for comparing the two. It shares the files of d and is
// closed with it; nil if the top has no parent.
func (d *Disk) Parent() *Disk {
	if len(d.links) == 1 {
		return nil
	}
	return &Disk{links: d.links[1:]}
}
