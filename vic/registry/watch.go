package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

var errStalled = errors.New("the connection stalled")

func stalled(d time.Duration) error {
	return fault.As(vic.ErrUnavailable, fmt.Errorf("%w: not a byte went over it in %s", errStalled, d))
}

// A watched body fails when it brings no byte for a while, and frees its
// request's context when it is closed.
type watched struct {
	io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error
}

func watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration) *watched {
	t := time.AfterFunc(limit, func() { cancel(stalled(limit)) })
	t.Stop()
	return &watched{body, limit, t, cancel, func() error { return context.Cause(ctx) }}
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	if err != nil && err != io.EOF {
		if cause := w.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

// An upload is a request's body that cancels the request when nobody takes
// its bytes for a while. It keeps the error of the reader below apart from
// the network's. The time that the reader below takes does not count.
type upload struct {
	r      io.Reader
	limit  time.Duration
	timer  *time.Timer
	failed error
	left   int64
}

func newUpload(r io.Reader, size int64, limit time.Duration, cancel context.CancelCauseFunc) *upload {
	return &upload{r: r, limit: limit, left: size, timer: time.AfterFunc(limit, func() { cancel(stalled(limit)) })}
}

func (u *upload) Read(p []byte) (int, error) {
	u.timer.Stop()
	n, err := u.r.Read(p)
	u.left -= int64(n)
	if err != nil && err != io.EOF {
		u.failed = err
	}
	if err == nil && u.left > 0 {
		u.timer.Reset(u.limit)
	}
	return n, err
}
