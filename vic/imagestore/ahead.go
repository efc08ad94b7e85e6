package imagestore

import (
	"errors"
	"io"
	"sync"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// ahead reads from a reader in a goroutine of its own, a megabyte ahead.
type ahead struct {
	full chan []byte
	free chan []byte
	stop chan struct{}
	once sync.Once
	done chan struct{}

	cur, buf []byte
	err      error // set before full is closed
}

func readAhead(r io.Reader) *ahead {
	a := &ahead{
		full: make(chan []byte, aheadChunks), free: make(chan []byte, aheadChunks),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadChunks {
		a.free <- make([]byte, aheadChunk)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.stop:
			a.err = io.ErrClosedPipe
			return
		}
		n, err := fill(r, b[:aheadChunk])
		if n > 0 {
			select {
			case a.full <- b[:n]:
			case <-a.stop:
				a.err = io.ErrClosedPipe
				return
			}
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

// fill reads until b is full. Its error is the reader's own, so that what was
// cut off is told from what has ended.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.buf != nil {
			a.free <- a.buf
			a.buf = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.cur, a.buf = b, b
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// close ends the goroutine. The reader below must not be used until it has
// returned from its last Read, which close waits for.
func (a *ahead) close() {
	a.once.Do(func() { close(a.stop) })
	<-a.done
}

// cause returns the error of the reader below where it failed, because that is
// why everything above it failed too.
func (a *ahead) cause(err error) error {
	select {
	case <-a.done:
		if a.err != nil && !errors.Is(a.err, io.EOF) && !errors.Is(a.err, io.ErrClosedPipe) {
			return a.err
		}
	default:
	}
	return err
}
