package imagestore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// unpacked is a layer whose contents lie in a spool and whose place in the
// filesystem is not known yet.
type unpacked struct {
	layer  *ext4.Layer
	spool  *spool
	record *recorder
}

func (u *unpacked) close() {
	u.spool.close()
	u.record.close()
}

// unpack downloads a layer and unpacks it while it comes, verified by its
// digest and its diff ID. Nothing of the compressed form is kept; the record says
// what the plain one was.
func (s *Store) unpack(ctx context.Context, src Source, d ocispec.Descriptor, diffID digest.Digest, tell func(done int64)) (*unpacked, error) {
	body, err := src.Fetch(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer body.Close()
	sp, err := newSpool(s.tempDir, s.bytes)
	if err != nil {
		return nil, err
	}
	rec, err := newRecorder(s.tempDir)
	if err != nil {
		sp.close()
		return nil, err
	}
	u := &unpacked{spool: sp, record: rec}
	if u.layer, err = s.convert(ctx, body, d, diffID, u, tell); err == nil {
		err = rec.cut()
	}
	if err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

func (s *Store) convert(ctx context.Context, body io.Reader, d ocispec.Descriptor, diffID digest.Digest, u *unpacked, tell func(int64)) (*ext4.Layer, error) {
	blob := &verifier{r: body, want: d.Digest, h: d.Digest.Algorithm().Hash(), size: d.Size, ctx: ctx.Err, tell: tell}
	if d.Digest == diffID {
		// A plain tar, which is hashed once. Were it packed after all, what
		// comes out would not have the hash of what goes in.
		blob.h = nil
	}
	// Three stages run side by side: reading and hashing the blob,
	// decompressing, and hashing and applying what comes out.
	ahead := readAhead(blob)
	defer ahead.close()
	plainR, closeR, err := decompress(ahead, s.bytes)
	if err != nil {
		return nil, ahead.cause(err)
	}
	defer closeR()
	tar := readAhead(plainR)
	defer tar.close()
	diff := &verifier{r: tar, want: diffID, h: digest.SHA256.Hash(), size: -1, limit: s.layerLimit(), ctx: ctx.Err}
	l, err := ext4.ReadLayerWith(diff, u.spool.w, ext4.Limits{}, &ext4.ReadOptions{Frame: u.record})
	if err != nil {
		return nil, content(ahead.cause(err))
	}
	if err := diff.finish("diff ID"); err != nil {
		return nil, ahead.cause(err)
	}
	// A decompressor may leave bytes behind its own end.
	if n, err := io.Copy(io.Discard, ahead); err != nil || n > 0 {
		if err == nil {
			err = fault.Of(vic.ErrInvalid, "%d bytes follow the layer's end", n)
		}
		return nil, err
	}
	return l, blob.finish("digest")
}

// layerLimit bounds the tar of a layer.
func (s *Store) layerLimit() int64 { return 2*s.bytes + 1<<30 }

// content says of an error that the layer's content is to blame, unless it is
// another's: the network's, the temporary file's, the caller's.
func content(err error) error {
	var file *fs.PathError
	var network net.Error
	var full *ext4.NoSpaceError
	if errors.As(err, &full) || errors.As(err, &file) || errors.As(err, &network) || errors.Is(err, context.Canceled) || errors.Is(err, vic.ErrUnavailable) {
		return err
	}
	return fault.As(vic.ErrInvalid, err)
}

// decompress looks at the first bytes, because media types lie.
func decompress(r io.Reader, bound int64) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 1<<16)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fault.As(vic.ErrInvalid, fmt.Errorf("gzip: %w", err))
		}
		return z, func() { z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]>>4 == 5 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		// The second is a frame to be skipped (RFC 8878, 3.1.2).
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, fault.As(vic.ErrInvalid, fmt.Errorf("zstd: %w", err))
		}
		return z, z.Close, nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.Equal(magic, []byte{0xfd, '7', 'z', 'X'}):
		return nil, nil, fault.Of(vic.ErrUnsupported, "the layer is packed with bzip2 or xz; gzip, zstd and plain tar are taken")
	}
	return br, func() {}, nil
}

// A verifier counts and hashes what is read through it.
type verifier struct {
	r     io.Reader
	h     hash.Hash // nil: the bytes are verified elsewhere
	want  digest.Digest
	size  int64 // exact, or -1
	limit int64 // where size is -1
	n     int64
	ctx   func() error
	tell  func(int64)
	told  int64
}

func (v *verifier) Read(p []byte) (int, error) {
	if err := v.ctx(); err != nil {
		return 0, err
	}
	n, err := v.r.Read(p)
	if v.h != nil {
		v.h.Write(p[:n])
	}
	v.n += int64(n)
	if v.size >= 0 && v.n > v.size {
		return n, fault.Of(vic.ErrInvalid, "more than the %d bytes that the manifest says", v.size)
	}
	if v.size < 0 && v.n > v.limit {
		return n, fault.Of(vic.ErrInvalid, "the layer unpacks to more than %d bytes, more than its filesystem could hold", v.limit)
	}
	if v.size >= 0 && v.n < v.size && (err == io.EOF || err == io.ErrUnexpectedEOF) {
		return n, fault.As(vic.ErrUnavailable, fmt.Errorf("%w: %d of %d bytes came", io.ErrUnexpectedEOF, v.n, v.size))
	}
	if v.tell != nil && (v.n-v.told >= 1<<20 || err == io.EOF) {
		v.told = v.n
		v.tell(v.n)
	}
	return n, err
}

func (v *verifier) finish(what string) error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	if v.h == nil {
		return nil
	}
	if got := digest.NewDigest(v.want.Algorithm(), v.h); got != v.want {
		return fault.Of(vic.ErrInvalid, "%s is %s, not %s", what, got, v.want)
	}
	return nil
}
