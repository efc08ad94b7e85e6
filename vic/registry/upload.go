package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// maxChunk bounds what a registry may ask a piece of an upload to be.
const maxChunk = 64 << 20

// pushBlob uploads a blob, and again from its beginning where it can.
func (e *endpoint) pushBlob(ctx context.Context, d ocispec.Descriptor, content io.Reader) error {
	seeker, canSeek := content.(io.Seeker)
	var start int64
	if canSeek {
		var err error
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			canSeek = false
		}
	}
	for n := 1; ; n++ {
		err := e.uploadOnce(ctx, d, content)
		var own *contentError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &own):
			return own.err
		case n >= e.retry.attempts || !canSeek || ctx.Err() != nil || !passing(err):
			return err
		}
		e.o.debug(ctx, "blob's upload begins again", "host", e.host, "digest", d.Digest.String(), "attempt", n, "why", e.explain(err).Error())
		if err := sleep(ctx, e.retry.pause(n)); err != nil {
			return err
		}
		if _, err := seeker.Seek(start, io.SeekStart); err != nil {
			return err
		}
	}
}

// contentError is the caller's reader's.
type contentError struct{ err error }

func (c *contentError) Error() string { return c.err.Error() }

// passing says of an upload's error that another attempt may go better: the
// network's, a token that expired, or a session that the registry has lost.
func passing(err error) bool {
	var a *answer
	if errors.As(err, &a) {
		return errors.Is(err, vic.ErrUnavailable) || lost(a) || a.status == http.StatusUnauthorized || a.status == http.StatusRequestedRangeNotSatisfiable
	}
	return errors.Is(err, vic.ErrUnavailable) && !errors.As(err, new(*RateLimitError))
}

// lost says of an answer that there is no such upload (any more).
func lost(a *answer) bool {
	return a.status == http.StatusNotFound && (a.has(errcode.ErrorCodeBlobUploadUnknown) || a.has(errcode.ErrorCodeBlobUploadInvalid))
}

func (e *endpoint) uploadOnce(ctx context.Context, d ocispec.Descriptor, content io.Reader) error {
	resp, err := e.request(ctx, http.MethodPost, "blobs/uploads/", nil)
	if err != nil {
		return err
	}
	drain(resp.Body)
	if resp.StatusCode != http.StatusAccepted {
		return contradiction("%s answers %s to the beginning of an upload", e.host, clean(resp.Status))
	}
	loc, err := e.location(resp)
	if err != nil {
		return err
	}
	chunk := int64(e.o.UploadChunk)
	if least, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && chunk > 0 {
		chunk = max(chunk, min(least, maxChunk))
	}
	last, left := content, d.Size
	if chunk > 0 && d.Size > chunk {
		loc, err = e.uploadChunks(ctx, loc, d, content, chunk)
		last, left = http.NoBody, 0
	}
	if err == nil {
		err = e.finish(ctx, loc, d, last, left)
	}
	if err != nil {
		e.abandon(ctx, loc)
	}
	return err
}

// finish sends what is left and names the digest (distribution specification,
// "Pushing blobs").
func (e *endpoint) finish(ctx context.Context, loc *url.URL, d ocispec.Descriptor, content io.Reader, size int64) error {
	u := *loc
	q := u.Query()
	q.Set("digest", d.Digest.String())
	u.RawQuery = q.Encode()
	resp, err := e.send(ctx, http.MethodPut, &u, content, size, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return contradiction("%s answers %s to the end of an upload", e.host, clean(resp.Status))
	}
	return checkDigestHeader(resp, d.Digest.String())
}

// send makes a request with a body once; the answer's body is closed.
func (e *endpoint) send(ctx context.Context, method string, u *url.URL, content io.Reader, size int64, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := newUpload(content, size, e.o.StallTimeout, cancel)
	defer body.timer.Stop()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), io.NopCloser(body))
	if err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	if req.ContentLength = size; size == 0 {
		req.Body = http.NoBody
		body.timer.Stop()
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := e.auth.Do(req)
	if err != nil {
		// A registry may answer before it has taken all, and close.
		if body.failed != nil {
			return nil, &contentError{body.failed}
		}
		if cause := context.Cause(ctx); cause != nil && !errors.As(err, new(*answer)) {
			return nil, cause
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, e.auth.safe(readAnswer(resp))
	}
	drain(resp.Body)
	return resp, nil
}

// uploadChunks sends all of a blob in pieces (distribution specification,
// "Pushing a blob in chunks"). A piece stays in memory until the registry has
// it; after a failure the registry is asked how far it got.
func (e *endpoint) uploadChunks(ctx context.Context, loc *url.URL, d ocispec.Descriptor, content io.Reader, chunk int64) (*url.URL, error) {
	buf := make([]byte, chunk)
	for off := int64(0); off < d.Size; {
		piece := buf[:min(chunk, d.Size-off)]
		if _, err := io.ReadFull(content, piece); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = fault.Of(vic.ErrInvalid, "the content ends before the %d bytes that the descriptor says", d.Size)
			}
			return loc, &contentError{err}
		}
		end := off + int64(len(piece))
		for failures := 0; off < end; {
			next, err := e.patch(ctx, loc, piece, off)
			if err == nil {
				loc, off = next, end
				break
			}
			if failures++; failures >= e.retry.attempts || ctx.Err() != nil || !passing(err) {
				return loc, err
			}
			if serr := sleep(ctx, e.retry.pause(failures)); serr != nil {
				return loc, serr
			}
			next, have, serr := e.uploadStatus(ctx, loc)
			if errors.Is(serr, vic.ErrNotFound) || errors.Is(serr, vic.ErrInvalid) {
				// So says distribution when it took a part that we do not
				// know of: its uploads' locations hold their offset.
				return loc, fault.Of(vic.ErrUnavailable, "the upload cannot go on after %v: %v", err, serr)
			}
			if serr != nil {
				if passing(serr) {
					continue
				}
				return loc, serr
			}
			if have < off || have > end {
				return loc, fault.Of(vic.ErrUnavailable, "the registry has lost the upload: it has %d bytes, between %d and %d were sent", have, off, end)
			}
			if have > off {
				failures = 0
			}
			loc, piece, off = next, piece[have-off:], have
		}
	}
	return loc, nil
}

func (e *endpoint) patch(ctx context.Context, loc *url.URL, piece []byte, off int64) (*url.URL, error) {
	end := off + int64(len(piece)) - 1
	resp, err := e.send(ctx, http.MethodPatch, loc, bytes.NewReader(piece), int64(len(piece)), http.Header{"Content-Range": {fmt.Sprintf("%d-%d", off, end)}})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
		return nil, contradiction("%s answers %s to a piece of an upload", e.host, clean(resp.Status))
	}
	if have, ok := uploadRange(resp.Header.Get("Range")); ok && have != 0 && have != end+1 {
		return nil, fault.Of(vic.ErrUnavailable, "the registry took %d bytes of the upload, not %d", have, end+1)
	}
	return e.location(resp)
}

// uploadStatus asks how much of an upload the registry has.
func (e *endpoint) uploadStatus(ctx context.Context, loc *url.URL) (*url.URL, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, loc.String(), nil)
	if err != nil {
		return nil, 0, fault.As(vic.ErrInvalid, err)
	}
	resp, err := e.auth.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, 0, e.auth.safe(readAnswer(resp))
	}
	drain(resp.Body)
	have, ok := uploadRange(resp.Header.Get("Range"))
	if !ok {
		return nil, 0, contradiction("%s does not say how far an upload got", e.host)
	}
	next, err := e.location(resp)
	if err != nil {
		next = loc // the specification asks for it, not all send it
	}
	return next, have, nil
}

// uploadRange reads the Range of an upload, "0-N", as the number of bytes that
// are there. "0-0" is what registries say when nothing is.
func uploadRange(s string) (int64, bool) {
	s = strings.TrimPrefix(s, "bytes=")
	rest, ok := strings.CutPrefix(s, "0-")
	n, err := strconv.ParseInt(rest, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return n + 1, true
}
