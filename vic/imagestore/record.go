package imagestore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A layer's record is what its disk does not have of the tar that it was made
// from: headers, padding, end, and contents that no file has in the end. With
// disk and record the tar comes out again byte for byte, so its diff ID does
// too.
//
// The file is two zstd streams (RFC 8878). The first begins with recordMagic and
// is the tar in pieces, each a number and, if that is even, bytes: number 2n is
// n bytes, which follow; 2n+1 stands for the n bytes of a file. The second has
// one number for each of these files: the inode that has its contents, or 0
// and the contents themselves. Numbers are varints (encoding/binary).
const (
	recordFile  = "tar.zst"
	recordMagic = "vic tar 1\n"
	// pieceLimit is the longest piece of bytes.
	pieceLimit   = 64 << 10
	recordWindow = 1 << 20
)

// tempFile makes a file that has no name.
func tempFile(dir, what string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "vic-"+what+"-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file for a %s: %w", what, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("temporary file for a %s: %w", what, err)
	}
	return f, nil
}

// recorder writes a record while a layer is unpacked. It is an ext4.Frame.
type recorder struct {
	f      *os.File
	z      *zstd.Encoder
	piece  []byte
	number [binary.MaxVarintLen64]byte

	tar   int64 // bytes of the tar
	files int   // whose contents are left out
	first int64 // length of the first stream
	size  int64 // of both
}

func newRecorder(dir string) (*recorder, error) {
	f, err := tempFile(dir, "record")
	if err != nil {
		return nil, err
	}
	r := &recorder{f: f, piece: make([]byte, 0, pieceLimit)}
	if err = r.begin(); err == nil {
		_, err = io.WriteString(r.z, recordMagic)
	}
	if err != nil {
		r.close()
		return nil, recordError(err)
	}
	return r, nil
}

func (r *recorder) begin() (err error) {
	r.z, err = zstd.NewWriter(r.f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(recordWindow), zstd.WithLowerEncoderMem(true))
	return err
}

func (r *recorder) close() { r.f.Close() }

// Write takes bytes of the tar.
func (r *recorder) Write(p []byte) (int, error) {
	done := len(p)
	r.tar += int64(done)
	for len(p) > 0 {
		n := min(len(p), pieceLimit-len(r.piece))
		r.piece, p = append(r.piece, p[:n]...), p[n:]
		if len(r.piece) == pieceLimit {
			if err := r.flush(); err != nil {
				return 0, err
			}
		}
	}
	return done, nil
}

// Contents takes note of a file's contents.
func (r *recorder) Contents(size int64) error {
	r.tar += size
	r.files++
	if err := r.flush(); err != nil {
		return err
	}
	return r.put(uint64(size)<<1 | 1)
}

func (r *recorder) put(n uint64) error {
	_, err := r.z.Write(binary.AppendUvarint(r.number[:0], n))
	return recordError(err)
}

func recordError(err error) error {
	if err != nil {
		return fmt.Errorf("the layer's record: %w", err)
	}
	return nil
}

func (r *recorder) flush() error {
	if len(r.piece) == 0 {
		return nil
	}
	if err := r.put(uint64(len(r.piece)) << 1); err != nil {
		return err
	}
	_, err := r.z.Write(r.piece)
	r.piece = r.piece[:0]
	return recordError(err)
}

// cut ends the first stream. What the second needs of memory is taken when it
// begins, because layers wait for those below them.
func (r *recorder) cut() error {
	err := r.flush()
	if err == nil {
		err = r.z.Close()
	}
	if err == nil {
		r.first, err = r.f.Seek(0, io.SeekCurrent)
	}
	r.z, r.piece = nil, nil
	return recordError(err)
}

// place tells where contents are that were left out; spool has those that no
// file has.
func (r *recorder) place(c ext4.Contents, spool io.ReaderAt) error {
	if r.z == nil {
		if err := r.begin(); err != nil {
			return recordError(err)
		}
	}
	if err := r.put(uint64(c.Ino)); err != nil || c.Ino != 0 {
		return err
	}
	_, err := io.Copy(onlyWriter{r.z}, c.Reader(spool))
	return recordError(err)
}

// onlyWriter hides ReadFrom.
type onlyWriter struct{ io.Writer }

func (r *recorder) finish() error {
	var err error
	if r.z != nil {
		err = r.z.Close()
	}
	if err == nil {
		r.size, err = r.f.Seek(0, io.SeekCurrent)
	}
	return recordError(err)
}

func (r *recorder) reader() io.Reader { return io.NewSectionReader(r.f, 0, r.size) }

// describe enters the record into its layer's document.
func (r *recorder) describe(l *layer) { l.Tar, l.Record, l.Places = r.tar, r.size, r.first }

// errNoRecord is a layer's that an older release pulled.
var errNoRecord = fault.Of(vic.ErrUnsupported, "an older release pulled it and kept no record of its tar: delete the image, and all others with that layer, and pull it again")

// WriteLayer writes an image's layer, counted from 0 for the lowest, as the
// uncompressed tar that it was made from: the same bytes, checked against its
// diff ID. What was written is of no worth if there is an error, because that is
// known last. An image that a release before pulled may have layers that are
// vic.ErrUnsupported.
func (s *Store) WriteLayer(ctx context.Context, i *Image, n int, w io.Writer) error {
	const op = "write layer of image"
	ref := vic.Ref{Kind: "image", Name: i.name}
	ls, err := s.layersOf(ctx, &i.doc)
	if err == nil && (n < 0 || n >= len(ls)) {
		err = fault.Of(vic.ErrInvalid, "layer %d: it has %d", n, len(ls))
	}
	if err == nil {
		err = s.writeTar(ctx, ls[n], w)
	}
	return fault.Wrap(op, ref, err)
}

// layersOf reads the records of an image's layers, lowest first.
func (s *Store) layersOf(ctx context.Context, doc *imageDoc) ([]*layer, error) {
	var out []*layer
	for _, c := range chainIDs(doc.Config.RootFS.DiffIDs) {
		l, err := s.readLayer(ctx, s.layerDir(c))
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", len(out)+1, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// writeTar writes a layer as the tar that it was made from. What was written is
// of no worth if there is an error: the digest is known last.
func (s *Store) writeTar(ctx context.Context, l *layer, w io.Writer) error {
	err := s.reassemble(ctx, l, w)
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	return nil
}

func (s *Store) reassemble(ctx context.Context, l *layer, w io.Writer) error {
	if l.Record == 0 {
		return errNoRecord
	}
	f, err := s.files.OpenFile(ctx, s.path("layers", s.layerDir(l.ChainID), recordFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Size() != l.Record || l.Places <= 0 || l.Places > l.Record {
		return fault.Of(vic.ErrInvalid, "its record is damaged: %d bytes, not %d", f.Size(), l.Record)
	}
	pieces, closePieces, err := recordReader(io.NewSectionReader(f, 0, l.Places))
	if err != nil {
		return err
	}
	defer closePieces()
	places, closePlaces, err := recordReader(io.NewSectionReader(f, l.Places, l.Record-l.Places))
	if err != nil {
		return err
	}
	defer closePlaces()

	h := digest.SHA256.Hash()
	t := &assembler{
		ctx: ctx, pieces: pieces, places: places, left: l.Tar, w: io.MultiWriter(h, w), buf: make([]byte, 256<<10),
		open: func() (*ext4.Reader, func() error, error) { return s.openTree(ctx, s.disk(l)) },
	}
	defer t.close()
	if err := t.run(); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != l.DiffID {
		return fault.Of(vic.ErrInvalid, "disk and record give %s: the disk in %s was changed, or the record", got, l.Dir)
	}
	return nil
}

func recordReader(r io.Reader) (*bufio.Reader, func(), error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(16*recordWindow))
	if err != nil {
		return nil, nil, err
	}
	return bufio.NewReaderSize(z, 64<<10), z.Close, nil
}

// assembler puts a tar together.
type assembler struct {
	ctx            context.Context
	pieces, places *bufio.Reader
	w              io.Writer
	left           int64 // bytes that are missing
	buf            []byte
	open           func() (*ext4.Reader, func() error, error)
	tree           *ext4.Reader
	closeTree      func() error
}

func (t *assembler) close() {
	if t.closeTree != nil {
		_ = t.closeTree() // it was only read
	}
}

func damaged(err error) error {
	if errors.Is(err, vic.ErrUnavailable) || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fault.As(vic.ErrInvalid, fmt.Errorf("its record is damaged: %w", err))
}

func (t *assembler) run() error {
	magic := make([]byte, len(recordMagic))
	if _, err := io.ReadFull(t.pieces, magic); err != nil {
		return damaged(err)
	}
	if string(magic) != recordMagic {
		return fault.Of(vic.ErrUnsupported, "its record is of another release: it begins with %.20q", magic)
	}
	for {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		n, err := binary.ReadUvarint(t.pieces)
		if err == io.EOF && t.left == 0 {
			return nil
		}
		if err != nil {
			return damaged(err)
		}
		size := int64(n >> 1)
		if t.left -= size; t.left < 0 {
			return damaged(errors.New("it is longer than the tar"))
		}
		if n&1 == 0 {
			err = t.copy(t.pieces, size)
		} else {
			err = t.contents(size)
		}
		if err != nil {
			return err
		}
	}
}

// contents writes those of the next file.
func (t *assembler) contents(size int64) error {
	ino, err := binary.ReadUvarint(t.places)
	if err != nil {
		return damaged(err)
	}
	if ino == 0 {
		return t.copy(t.places, size)
	}
	if ino>>32 != 0 {
		return damaged(fmt.Errorf("inode %d", ino))
	}
	if t.tree == nil {
		if t.tree, t.closeTree, err = t.open(); err != nil {
			return err
		}
	}
	f, err := t.tree.OpenInode(uint32(ino))
	if err != nil {
		return err
	}
	if f.Info().Size != size {
		return fault.Of(vic.ErrInvalid, "inode %d has %d bytes, not %d: the disk was changed, or the record", ino, f.Info().Size, size)
	}
	return t.copy(f, size)
}

// copy writes size bytes of r.
func (t *assembler) copy(r io.Reader, size int64) error {
	for size > 0 {
		p := t.buf[:min(size, int64(len(t.buf)))]
		if _, err := io.ReadFull(r, p); err != nil {
			return damaged(err)
		}
		if _, err := t.w.Write(p); err != nil {
			return err
		}
		size -= int64(len(p))
	}
	return nil
}

// openTree opens the filesystem of a disk for reading, the image's tree and
// what is beside it. ctx bounds the reading; the caller calls the function at
// its end.
func (s *Store) openTree(ctx context.Context, d vic.Disk) (*ext4.Reader, func() error, error) {
	c, err := s.openDisk(ctx, d.Path, nil)
	if err != nil {
		return nil, nil, err
	}
	r, err := ext4.Open(c, c.Size())
	if err != nil {
		c.Close()
		return nil, nil, fault.As(vic.ErrInvalid, fmt.Errorf("the filesystem of %s: %w", d.Path, err))
	}
	return r, c.Close, nil
}
