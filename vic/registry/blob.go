package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// progressUnit is what a connection must bring to count as progress, so that
// a registry cannot keep us busy byte by byte.
const progressUnit = 64 << 10

// A blobReader reads a blob over as many connections as it takes. Its
// endpoints are those that have not failed yet; the first is read from.
type blobReader struct {
	desc ocispec.Descriptor
	open func(e *endpoint, off int64) (*stream, error)
	wait func(failures int) error // a pause, bounded by the caller's context
	ends []*endpoint
	fail func(error) error
	done func() error // of the caller's context
	log  func(msg string, args ...any)

	cur      *stream
	off      int64
	from     int64 // where the current connection began
	failures int   // in a row without progress
	err      error // final
}

// openBlob opens a blob at the first endpoint that has it.
func (r *Repository) openBlob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b := &blobReader{desc: d, fail: func(err error) error {
		return fault.Wrap("fetch "+d.Digest.String()+" from", r.ref, err)
	}}
	b.open = func(e *endpoint, off int64) (s *stream, err error) {
		err = e.do(ctx, func(ctx context.Context, e *endpoint) error {
			s, err = e.openStream(ctx, d, off)
			return err
		}, "pull")
		return s, err
	}
	b.done = ctx.Err
	b.wait = func(n int) error { return sleep(ctx, r.registry.retry.pause(n)) }
	b.log = func(msg string, args ...any) { r.o.debug(ctx, msg, args...) }
	err := r.read(ctx, func(_ context.Context, e *endpoint) error {
		s, err := b.open(e, 0)
		if err == nil {
			b.cur = s
			for i, o := range r.reading {
				if o == e {
					b.ends = r.reading[i:]
				}
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.off == b.desc.Size {
			b.err = b.end()
			break
		}
		if len(p) == 0 {
			return 0, nil
		}
		if b.cur == nil {
			if b.err = b.reopen(); b.err != nil {
				break
			}
		}
		n, err := b.cur.Read(p[:min(int64(len(p)), b.desc.Size-b.off)])
		b.off += int64(n)
		if b.off-b.from >= progressUnit || b.off == b.desc.Size {
			b.failures = 0
		}
		if err != nil && b.off < b.desc.Size {
			b.err = b.broke(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// broke notes that a connection ended early.
func (b *blobReader) broke(err error) error {
	_ = b.cur.Close()
	b.cur = nil
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.again(fmt.Errorf("the connection broke after %d of %d bytes: %w", b.off, b.desc.Size, err))
}

// again decides whether another attempt is made after an error.
func (b *blobReader) again(err error) error {
	e := b.ends[0]
	err = e.explain(err)
	b.failures++
	b.log("blob's download is continued", "host", e.host, "digest", b.desc.Digest.String(), "at", b.off, "failures", b.failures, "why", err.Error())
	limit := &RateLimitError{}
	switch {
	case b.done() != nil, errors.As(err, new(*contradictory)):
		return b.fail(err)
	case b.failures < e.o.Attempts && errors.Is(err, vic.ErrUnavailable) && !errors.As(err, &limit):
		if werr := b.wait(b.failures); werr != nil {
			return b.fail(werr)
		}
		return nil
	case len(b.ends) > 1:
		b.ends, b.failures = b.ends[1:], 0
		return nil
	}
	return b.fail(err)
}

// reopen goes on where the last connection stopped.
func (b *blobReader) reopen() error {
	for {
		s, err := b.open(b.ends[0], b.off)
		if err == nil {
			b.cur, b.from = s, b.off
			return nil
		}
		if err = b.again(err); err != nil {
			return err
		}
	}
}

// end looks whether more comes than should.
func (b *blobReader) end() error {
	if b.cur == nil {
		return io.EOF
	}
	defer func() { _ = b.cur.Close(); b.cur = nil }()
	if !b.cur.exact {
		var one [1]byte
		if n, _ := b.cur.Read(one[:]); n > 0 {
			return b.fail(contradiction("%s sends more than the %d bytes that the descriptor says", b.ends[0].host, b.desc.Size))
		}
	}
	return io.EOF
}

func (b *blobReader) Close() error {
	if b.cur != nil {
		_ = b.cur.Close()
		b.cur = nil
	}
	if b.err == nil {
		b.err = fault.Of(vic.ErrState, "the blob's reader is closed")
	}
	return nil
}

// A stream is one connection's part of a blob.
type stream struct {
	io.ReadCloser
	exact bool // the answer's length is declared, so no more can come
}

// openStream requests a blob from an offset (distribution specification,
// "Pulling blobs"; RFC 9110, section 14).
func (e *endpoint) openStream(ctx context.Context, d ocispec.Descriptor, off int64) (_ *stream, err error) {
	header := http.Header{"Accept": {"*/*"}}
	if off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, err := e.request(ctx, http.MethodGet, "blobs/"+d.Digest.String(), header)
	if err != nil {
		return nil, err
	}
	s := &stream{resp.Body, resp.ContentLength >= 0}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := checkDigestHeader(resp, d.Digest.String()); err != nil {
		return nil, err
	}
	rest := d.Size
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		if err := checkRange(resp.Header.Get("Content-Range"), off, d.Size); err != nil {
			return nil, err
		}
		rest = d.Size - off
	default:
		return nil, contradiction("%s answers %s to a request for a blob", resp.Request.URL.Host, clean(resp.Status))
	}
	if resp.ContentLength >= 0 && resp.ContentLength != rest {
		return nil, contradiction("%s sends %d bytes of %s; by its descriptor there are %d", resp.Request.URL.Host, resp.ContentLength, d.Digest, rest)
	}
	if off > 0 && resp.StatusCode == http.StatusOK {
		// It does not know ranges: what has been delivered comes again.
		if err := s.skip(off); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stream) skip(n int64) error {
	buf := make([]byte, 64<<10)
	for n > 0 {
		m, err := s.Read(buf[:min(n, int64(len(buf)))])
		n -= int64(m)
		if err != nil && n > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fault.As(vic.ErrUnavailable, err)
		}
	}
	return nil
}

// checkRange compares a Content-Range with what was asked for.
func checkRange(s string, off, size int64) error {
	first, last, total, ok := parseContentRange(s)
	if !ok || off == 0 || first != off || last != size-1 || total >= 0 && total != size {
		return contradiction("the registry answers with the range %q; bytes %d to %d of %d were asked for", clean(s), off, size-1, size)
	}
	return nil
}

// parseContentRange reads "bytes 5-9/10" (RFC 9110, section 14.4); the total
// is -1 where it is "*".
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	total = -1
	var err3 error
	if size != "*" {
		total, err3 = strconv.ParseInt(size, 10, 64)
	}
	if err1 != nil || err2 != nil || err3 != nil || first < 0 || last < first || total >= 0 && last >= total || size == "-1" {
		return 0, 0, 0, false
	}
	return first, last, total, true
}
