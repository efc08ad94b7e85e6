package tether

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// A helper VM (Config.Apply) has no container. It writes to disks that are
// attached to it what a controller sends: on a channel of its own for each disk,
// which an applyRequest opens, runs of the disk, each as
//
//	offset  uint64, big endian, bytes
//	length  uint32, bytes, at most maxRun
//	data
//
// and at their end one with length 0 whose offset is the sum of all lengths.
// Offsets and lengths are whole sectors. The guest answers with an applyAnswer
// when all is on the disk, or at once when something cannot be right; what was
// written before that stays written.
const (
	maxRun      = 1 << 20
	runHeader   = 12
	applySector = 512
)

// DefaultIdle is how long a helper VM stays on while nobody speaks to it.
const DefaultIdle = 5 * time.Minute

// A DiskWriter is a disk that a helper VM writes to.
type DiskWriter interface {
	io.WriterAt
	// Size of the disk in bytes.
	Size() int64
	// Sync returns when what was written is on the disk.
	Sync() error
	// Close lets go of the disk, so that it can be detached.
	Close() error
}

// An Applier is what the Server of a helper VM serves. Its methods may be called
// by several goroutines.
type Applier struct {
	open func(ctx context.Context, unit int) (DiskWriter, error)
	quit chan struct{}
	end  func()

	mu    sync.Mutex
	spoke time.Time
	busy  map[int]bool
}

// NewApplier makes an Applier of what opens a disk by its unit of the first SCSI
// controller; it may wait for the disk to appear.
func NewApplier(open func(ctx context.Context, unit int) (DiskWriter, error)) *Applier {
	quit := make(chan struct{})
	return &Applier{open: open, quit: quit, end: sync.OnceFunc(func() { close(quit) }), spoke: time.Now(), busy: map[int]bool{}}
}

// End ends Wait.
func (a *Applier) End() { a.end() }

// Wait returns when a controller or End asks for the end, or when no controller
// has spoken for the time idle; that is told by the error. So is ctx's end.
func (a *Applier) Wait(ctx context.Context, idle time.Duration) error {
	for {
		a.mu.Lock()
		rest := idle - time.Since(a.spoke)
		a.mu.Unlock()
		if rest <= 0 {
			return fmt.Errorf("no controller has spoken for %v", idle)
		}
		t := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-a.quit:
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// touch notes that a controller speaks. A nil Applier notes nothing.
func (a *Applier) touch() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spoke = time.Now()
}

// take makes one caller the only one who writes to a disk.
func (a *Applier) take(unit int) (give func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy[unit] {
		return nil, fmt.Errorf("%w: unit: another controller writes to disk %d", ErrInvalid, unit)
	}
	a.busy[unit] = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.busy, unit)
	}, nil
}

// applyRequest opens a channelApply.
type applyRequest struct {
	Unit int `json:"unit"`
	// Bytes is the size that the disk must have, so that none is taken for
	// another.
	Bytes int64 `json:"bytes"`
}

type applyAnswer struct {
	Error *RemoteError `json:"error,omitempty"`
	Bytes int64        `json:"bytes"`
	// SHA256 of all headers and data as they were written, but the last header.
	SHA256 string `json:"sha256,omitempty"`
}

func (a *Applier) apply(ctx context.Context, q applyRequest, r io.Reader) (ans applyAnswer, err error) {
	if q.Unit < 0 || q.Unit > 64 {
		return ans, fmt.Errorf("%w: unit: %d is not between 0 and 64", ErrInvalid, q.Unit)
	}
	give, err := a.take(q.Unit)
	if err != nil {
		return ans, err
	}
	defer give()
	d, err := a.open(ctx, q.Unit)
	if err != nil {
		return ans, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	size := d.Size()
	if size != q.Bytes {
		return ans, fmt.Errorf("%w: bytes: disk %d has %d bytes, not %d", ErrInvalid, q.Unit, size, q.Bytes)
	}
	sum := sha256.New()
	buf := make([]byte, runHeader+maxRun)
	for {
		if _, err := io.ReadFull(r, buf[:runHeader]); err != nil {
			return ans, fmt.Errorf("the runs were cut off: %w", whole(err))
		}
		a.touch()
		off, n := binary.BigEndian.Uint64(buf), int64(binary.BigEndian.Uint32(buf[8:]))
		switch {
		case n == 0 && off != uint64(ans.Bytes):
			return ans, fmt.Errorf("%w: the runs end with a sum of %d bytes, %d came", ErrInvalid, off, ans.Bytes)
		case n == 0:
			if err := d.Sync(); err != nil {
				return ans, fmt.Errorf("disk %d: %w", q.Unit, err)
			}
			ans.SHA256 = hex.EncodeToString(sum.Sum(nil))
			return ans, nil
		case n > maxRun:
			return ans, fmt.Errorf("%w: a run of %d bytes: more than %d", ErrInvalid, n, maxRun)
		case off%applySector != 0 || n%applySector != 0:
			return ans, fmt.Errorf("%w: a run of %d bytes at %d: not whole sectors", ErrInvalid, n, off)
		case off > uint64(size) || n > size-int64(off):
			return ans, fmt.Errorf("%w: a run of %d bytes at %d: the disk has %d", ErrInvalid, n, off, size)
		}
		frame := buf[:runHeader+n]
		if _, err := io.ReadFull(r, frame[runHeader:]); err != nil {
			return ans, fmt.Errorf("the runs were cut off: %w", whole(err))
		}
		if _, err := d.WriteAt(frame[runHeader:], int64(off)); err != nil {
			return ans, fmt.Errorf("disk %d: %w", q.Unit, err)
		}
		_, _ = sum.Write(frame)
		ans.Bytes += n
	}
}

// whole makes an end that comes too early of any end.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// apply serves one channelApply.
func (c *serverConn) apply(ctx context.Context, n ssh.NewChannel) {
	var q applyRequest
	if err := decode("apply", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	a := c.server.config.Applier
	a.touch()
	ctx, ch, gone, cancel := accept(ctx, n, refuse)
	if ch == nil {
		return
	}
	defer cancel()
	ans, err := a.apply(ctx, q, ch)
	a.touch()
	if err != nil {
		c.server.log.Warn("apply", "unit", q.Unit, "error", err)
		ans = applyAnswer{Error: remoteError(err)}
	}
	b, err := json.Marshal(ans)
	if err != nil {
		return
	}
	_, _ = ch.Write(b)
	_ = ch.CloseWrite()
	finish(ch, gone)
}

// Apply has a helper VM write to its disk at a unit of the first SCSI controller,
// which must have the given size in bytes. runs is called once and writes what is
// to be written, in whole sectors, wherever on the disk; nothing is kept in
// memory. Apply returns the number of bytes when the guest says that all of them
// are on the disk and that they are those that were sent. The guest has let go of
// the disk then. What it refuses is an ErrInvalid.
func (c *Client) Apply(ctx context.Context, unit int, bytes int64, runs func(w io.WriterAt) error) (int64, error) {
	n, err := c.apply(ctx, applyRequest{Unit: unit, Bytes: bytes}, runs)
	if err != nil {
		return 0, fmt.Errorf("tether: apply: %w", err)
	}
	return n, nil
}

func (c *Client) apply(ctx context.Context, q applyRequest, runs func(w io.WriterAt) error) (int64, error) {
	ch, requests, err := c.open(ctx, channelApply, q)
	if err != nil {
		return 0, err
	}
	go ssh.DiscardRequests(requests)
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	defer stop()
	defer ch.Close()
	w := &runWriter{w: ch, sum: sha256.New()}
	err = runs(w)
	if err == nil && w.err == nil {
		w.err = w.frame(uint64(w.n), nil)
	}
	if err != nil && w.err == nil { // of what gave the runs
		return 0, err
	}
	// A guest that refuses closes the channel after its answer.
	b, err := readAnswer(ctx, ch)
	switch {
	case err != nil:
		return 0, err
	case len(b) == 0 && w.err != nil:
		return 0, whole(w.err)
	case len(b) == 0:
		return 0, io.ErrUnexpectedEOF
	}
	var a applyAnswer
	if err := decode("answer", b, &a); err != nil {
		return 0, err
	}
	if a.Error != nil {
		a.Error.Message = plain(a.Error.Message)
		return 0, a.Error
	}
	if sum := w.digest(); a.Bytes != w.n || a.SHA256 != sum {
		return 0, fmt.Errorf("the guest has written %d bytes (sha256 %.80s), %d were sent (sha256 %s)", a.Bytes, a.SHA256, w.n, sum)
	}
	return w.n, nil
}

// runWriter sends runs.
type runWriter struct {
	w    io.Writer
	n    int64
	sum  hash.Hash
	head [runHeader]byte
	err  error
}

// WriteAt implements io.WriterAt.
func (r *runWriter) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+maxRun)]
		if r.err = r.frame(uint64(off+int64(done)), part); r.err != nil {
			return done, r.err
		}
		done += len(part)
		r.n += int64(len(part))
	}
	return done, nil
}

func (r *runWriter) frame(off uint64, p []byte) error {
	if r.err != nil {
		return r.err
	}
	binary.BigEndian.PutUint64(r.head[:], off)
	binary.BigEndian.PutUint32(r.head[8:], uint32(len(p)))
	if len(p) > 0 {
		_, _ = r.sum.Write(r.head[:])
		_, _ = r.sum.Write(p)
	}
	if _, err := r.w.Write(r.head[:]); err != nil {
		return err
	}
	_, err := r.w.Write(p)
	return err
}

func (r *runWriter) digest() string { return hex.EncodeToString(r.sum.Sum(nil)) }

// PowerOff has a helper VM power off.
func (c *Client) PowerOff(ctx context.Context) error {
	return c.call(ctx, methodPowerOff, struct{}{}, nil)
}
