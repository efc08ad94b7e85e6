package ext4

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
)

// Limits bound what a layer may ask for. A zero field takes its default.
type Limits struct {
	MaxEntries    int   // tar entries; default 4 Mi
	MaxNameBytes  int   // length of one path or link target; default 4096
	MaxXattrBytes int   // names and values of one entry's extended attributes; default 64 KiB
	MaxMetaBytes  int64 // paths, link targets and attributes of the whole layer; default 512 MiB
	MaxFileBytes  int64 // size of one file, holes included; default and most 16 TiB - 4 KiB
	// MaxSparseBytes bounds the sizes of all entries in the tar's sparse formats together: such an
	// entry costs nothing to send and time to unroll, about one second per 8 GB. Default 64 GiB.
	MaxSparseBytes int64
}

func (l *Limits) defaults() {
	set(&l.MaxEntries, 4<<20)
	set(&l.MaxNameBytes, 4096)
	set(&l.MaxXattrBytes, 64<<10)
	set(&l.MaxMetaBytes, 512<<20)
	set(&l.MaxFileBytes, maxFileBlocks*BlockSize)
	set(&l.MaxSparseBytes, 64<<30)
	l.MaxFileBytes = min(l.MaxFileBytes, maxFileBlocks*BlockSize)
}

func set[T int | int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Layer is a parsed layer: what its entries ask for, without the contents of its files. It is
// never changed, so it can be applied to any number of filesystems.
type Layer struct {
	// Blocks counts the blocks of [BlockSize] bytes that were written to the spool.
	Blocks uint64
	// Entries counts the entries of the tar, whiteouts included.
	Entries int
	// Bytes is the sum of all file sizes, holes included.
	Bytes int64
	// Dropped names extended attributes that Linux filesystems do not have ("path: name", for
	// example com.apple.quarantine, or user.x of a symlink), at most 100. They are left out,
	// as other runtimes do.
	Dropped []string

	ops   []op
	plain bool // no layer, but an archive
}

// Empty reports whether the layer holds no entry at all.
func (l *Layer) Empty() bool { return len(l.ops) == 0 }

type opKind byte

const (
	opPut      opKind = iota // make or replace
	opLink                   // hard link to op.link
	opWhiteout               // remove what older layers have under the name
	opOpaque                 // remove what older layers have in the directory
)

type op struct {
	kind         opKind
	name         string // clean, without a leading slash; "" is the root
	link         string
	typ          uint16
	attrs        attrs
	size         int64
	framed       bool // its contents were told to a Frame
	major, minor uint32
	extents      []extent // phys is relative to the layer
}

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	metaPrefix     = ".wh..wh." // bookkeeping of AUFS
)

// ReadLayer reads an uncompressed tar stream (ustar, PAX or GNU) and writes the contents of its
// files to data, each padded to whole blocks. Contents are cut into pieces of 64 KiB; a piece
// of zeroes is a hole and not written. Targets of long symlinks count as contents.
//
// r is read to its end, beyond the tar's end marker, so that a digest taken over r covers the
// whole layer. Memory grows with the number of entries, never with the size of files.
//
// An error names the entry that is at fault.
func ReadLayer(r io.Reader, data io.Writer, lim Limits) (*Layer, error) {
	return readTar(r, data, lim, false, nil)
}

// ReadArchive is [ReadLayer] for a tar that is no layer: names that start with ".wh." are names
// like others, and a directory that is there keeps extended attributes that the tar does not name.
func ReadArchive(r io.Reader, data io.Writer, lim Limits) (*Layer, error) {
	return readTar(r, data, lim, true, nil)
}

func readTar(r io.Reader, data io.Writer, lim Limits, plain bool, frame Frame) (*Layer, error) {
	lim.defaults()
	lr := layerReader{lim: lim, plain: plain, out: blockWriter{w: data, buf: make([]byte, 0, 1<<20)}, layer: &Layer{plain: plain}}
	var br io.Reader = bufio.NewReaderSize(r, 256<<10)
	if frame != nil {
		lr.framed = &framed{r: br, frame: frame}
		br = lr.framed
	}
	tr := tar.NewReader(br)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("ext4: layer: after %d entries: %w", lr.layer.Entries, err)
		}
		if err := lr.entry(h, tr); err != nil {
			return nil, fmt.Errorf("ext4: layer: entry %s: %w", quote(h.Name), err)
		}
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return nil, fmt.Errorf("ext4: layer: after its last entry: %w", err)
	}
	if err := lr.out.flush(); err != nil {
		return nil, fmt.Errorf("ext4: layer: spool: %w", err)
	}
	lr.layer.Blocks = lr.out.blocks
	return lr.layer, nil
}

// quote makes a name of unknown origin fit for an error message.
func quote(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q...", name[:200])
	}
	return fmt.Sprintf("%q", name)
}

type layerReader struct {
	lim    Limits
	plain  bool
	framed *framed // nil without a Frame
	out    blockWriter
	layer  *Layer
	meta   int64
	sparse int64
}

// entry turns one tar entry into an operation and stores its contents.
func (lr *layerReader) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	l := lr.layer
	if l.Entries++; l.Entries > lr.lim.MaxEntries {
		return fmt.Errorf("more than %d entries (Limits.MaxEntries)", lr.lim.MaxEntries)
	}
	o := op{}
	var err error
	if o.name, err = lr.cleanName("name", h.Name); err != nil {
		return err
	}
	lr.meta += int64(len(o.name)+len(h.Linkname)) + 256
	if lr.meta > lr.lim.MaxMetaBytes {
		return fmt.Errorf("names and attributes of the layer exceed %d bytes (Limits.MaxMetaBytes)", lr.lim.MaxMetaBytes)
	}
	if first, _, _ := strings.Cut(o.name, "/"); !lr.plain && strings.HasPrefix(first, metaPrefix) && first != opaqueName {
		return nil
	}
	if done, err := lr.whiteout(&o); done || err != nil {
		return err
	}
	if o.attrs, err = lr.attrs(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		o.typ, o.size = modeRegular, h.Size
		if err := lr.contents(&o, h, r); err != nil {
			return err
		}
	case tar.TypeDir:
		o.typ = modeDir
	case tar.TypeSymlink:
		o.typ = modeSymlink
		o.attrs.mode = 0o777 // Linux knows no other
		if err := lr.symlink(&o, h.Linkname); err != nil {
			return err
		}
	case tar.TypeLink:
		o.kind = opLink
		if o.link, err = lr.cleanName("hard link target", h.Linkname); err != nil {
			return err
		}
		if o.link == "" {
			return errors.New("hard link target is the root, which is a directory")
		}
	case tar.TypeChar, tar.TypeBlock:
		o.typ = modeChar
		if h.Typeflag == tar.TypeBlock {
			o.typ = modeBlock
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d: major numbers end at 4095, minor numbers at 1048575", h.Devmajor, h.Devminor)
		}
		o.major, o.minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeFifo:
		o.typ = modeFIFO
	default:
		return fmt.Errorf("type %q is not one of file, directory, symlink, hard link, device, FIFO", h.Typeflag)
	}
	if o.name == "" && o.typ != modeDir {
		return errors.New("the root can only be a directory")
	}
	l.ops = append(l.ops, o)
	return nil
}

// cleanName makes a path relative to the root; leading slashes and ".." cannot leave it.
func (lr *layerReader) cleanName(what, name string) (string, error) {
	if len(name) > lr.lim.MaxNameBytes {
		return "", fmt.Errorf("%s is %d bytes long: the limit is %d (Limits.MaxNameBytes)", what, len(name), lr.lim.MaxNameBytes)
	}
	clean := path.Clean("/" + name)[1:]
	for rest := clean; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if err := checkName(c); err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
	}
	return clean, nil
}

func (lr *layerReader) whiteout(o *op) (bool, error) {
	dir, base := path.Split(o.name)
	if lr.plain || !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	if base == opaqueName {
		o.kind, o.name = opOpaque, strings.TrimSuffix(dir, "/")
	} else {
		target := base[len(whiteoutPrefix):]
		if err := checkName(target); err != nil {
			return true, fmt.Errorf("whiteout: %w", err)
		}
		o.kind, o.name = opWhiteout, dir+target
	}
	lr.layer.ops = append(lr.layer.ops, *o)
	return true, nil
}

func (lr *layerReader) attrs(h *tar.Header) (a attrs, err error) {
	const maxID = 1<<32 - 2 // 2^32-1 means "no ID"
	uid, gid := ownerID(h, "uid", h.Uid), ownerID(h, "gid", h.Gid)
	if uid < 0 || uid > maxID || gid < 0 || gid > maxID {
		return a, fmt.Errorf("owner %d:%d is outside 0 to %d", uid, gid, int64(maxID))
	}
	a.mode = uint16(h.Mode & 0o7777)
	a.uid, a.gid = uint32(uid), uint32(gid)
	a.mtime = toStamp(h.ModTime)
	a.atime, a.ctime = a.mtime, a.mtime
	if !h.AccessTime.IsZero() {
		a.atime = toStamp(h.AccessTime)
	}
	if !h.ChangeTime.IsZero() {
		a.ctime = toStamp(h.ChangeTime)
	}
	if len(h.PAXRecords) > 0 {
		a.xattrs, err = lr.xattrs(h)
	}
	return a, err
}

// ownerID is an ID of the header's, which package tar keeps in an int: on machines of 32 bits that
// is too small for half of them, but for what an extended header says.
func ownerID(h *tar.Header, record string, id int) int64 {
	if n, err := strconv.ParseInt(h.PAXRecords[record], 10, 64); err == nil {
		return n
	}
	return int64(id)
}

// toStamp moves times that ext4 cannot hold (34 bits of seconds, 1901 to 2446) to the nearest
// that it can, as the kernel does.
func toStamp(t time.Time) stamp {
	const lo, hi = -1 << 31, 1<<34 - 1<<31 - 1
	switch s := t.Unix(); {
	case s < lo:
		return stamp{sec: lo}
	case s > hi:
		return stamp{sec: hi}
	default:
		return stamp{s, uint32(t.Nanosecond())}
	}
}

// contents stores a file's data and notes where it went.
func (lr *layerReader) contents(o *op, h *tar.Header, r io.Reader) error {
	if o.size > lr.lim.MaxFileBytes {
		return fmt.Errorf("size %d exceeds %d (Limits.MaxFileBytes)", o.size, lr.lim.MaxFileBytes)
	}
	if isSparse(h) {
		if lr.sparse += o.size; lr.sparse > lr.lim.MaxSparseBytes {
			return fmt.Errorf("sparse files of the layer exceed %d bytes (Limits.MaxSparseBytes)", lr.lim.MaxSparseBytes)
		}
	}
	lr.layer.Bytes += o.size
	if lr.framed != nil && o.size > 0 && !isSparse(h) {
		if err := lr.framed.enter(o.size); err != nil {
			return err
		}
		defer lr.framed.leave()
		o.framed = true
	}
	var err error
	o.extents, err = lr.out.store(r, o.size)
	if err == nil {
		lr.meta += int64(len(o.extents)) * 16
	}
	return err
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (lr *layerReader) symlink(o *op, target string) error {
	switch {
	case target == "":
		return errors.New("symlink has no target")
	case strings.Contains(target, "\x00"):
		return errors.New("symlink target contains a NUL")
	case len(target) > min(lr.lim.MaxNameBytes, BlockSize-1):
		return fmt.Errorf("symlink target is %d bytes long: the limit is %d", len(target), min(lr.lim.MaxNameBytes, BlockSize-1))
	}
	o.link, o.size = target, int64(len(target))
	if len(target) < 60 {
		return nil
	}
	var err error
	o.extents, err = lr.out.store(strings.NewReader(target), o.size)
	return err
}

const (
	paxXattr        = "SCHILY.xattr."
	paxXattrLibarch = "LIBARCHIVE.xattr."
)

// blockWriter collects contents in whole blocks.
type blockWriter struct {
	w      io.Writer
	buf    []byte
	blocks uint64
}

// pieceBytes is the unit of holes, and of reading.
const pieceBytes = grainBlocks * BlockSize

var zeroPiece [pieceBytes]byte

func (bw *blockWriter) flush() error {
	_, err := bw.w.Write(bw.buf)
	bw.buf = bw.buf[:0]
	return err
}

// store copies size bytes from r.
func (bw *blockWriter) store(r io.Reader, size int64) (extents []extent, err error) {
	var logical uint32
	for left := size; left > 0; {
		n := int(min(left, pieceBytes))
		padded := int(roundUp(uint64(n), BlockSize))
		if len(bw.buf)+padded > cap(bw.buf) {
			if err := bw.flush(); err != nil {
				return nil, fmt.Errorf("spool: %w", err)
			}
		}
		piece := bw.buf[len(bw.buf) : len(bw.buf)+padded]
		if _, err := io.ReadFull(r, piece[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("contents end early: %w", err)
		}
		clear(piece[n:])
		left -= int64(n)
		blocks := uint32(padded / BlockSize)
		if !bytes.Equal(piece, zeroPiece[:padded]) {
			bw.buf = bw.buf[:len(bw.buf)+padded]
			if k := len(extents) - 1; k >= 0 && extents[k].logical+extents[k].n == logical && extents[k].n+blocks <= maxExtentBlocks {
				extents[k].n += blocks
			} else {
				extents = append(extents, extent{logical, blocks, bw.blocks})
			}
			bw.blocks += uint64(blocks)
		}
		logical += blocks
	}
	return extents, nil
}
