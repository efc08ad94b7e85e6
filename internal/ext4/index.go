//go:build !vic_guest

// A guest makes filesystems and keeps no index; what unpacks one would delay its
// start.

package ext4

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
)

// The index of a filesystem, as MarshalBinary writes it:
//
//	8 bytes  magic "vicext4\x00"
//	4 bytes  version, little-endian
//	8 bytes  length of the body, uncompressed
//	4 bytes  CRC-32C of the body, uncompressed
//	rest     the body, one zstd frame
//
// The body is a sequence of varints and byte strings (length first); numbers that tend to follow
// each other are differences. Bitmaps and link counts are not stored: they follow from the rest.
const (
	indexMagic   = "vicext4\x00"
	indexVersion = 1
	indexHead    = 24
	// MaxIndexBytes bounds an index, compressed and uncompressed: room for several million files.
	MaxIndexBytes = 1 << 30
)

// MarshalBinary writes the model as a compact index, from which [Unmarshal] makes the same model
// again. It must follow [New] and [FS.Commit], or a Commit: changes not yet written to a disk have no
// place in it. It implements encoding.BinaryMarshaler.
func (fs *FS) MarshalBinary() ([]byte, error) {
	if fs.broken != nil {
		return nil, fmt.Errorf("ext4: the model is unusable since an earlier error: %w", fs.broken)
	}
	if fs.super != nil {
		return nil, errors.New("ext4: a filesystem that a kernel wrote to has no index: Adopt it again")
	}
	if len(fs.dirty) > 0 {
		return nil, errors.New("ext4: MarshalBinary before Commit")
	}
	w := indexWriter{}
	w.uint(uint64(fs.Geometry().Bytes))
	w.bool(fs.wrapped)
	w.uint(fs.metaNext)
	w.uint(fs.dataNext)
	w.uint(uint64(fs.dirInoNext))
	w.uint(uint64(fs.fileInoNext))
	var count uint64
	for range fs.all() {
		count++
	}
	w.uint(count)
	for in := range fs.all() {
		w.inode(in)
	}
	if len(w.b) > MaxIndexBytes {
		return nil, fmt.Errorf("ext4: index of %d bytes: the limit is %d", len(w.b), MaxIndexBytes)
	}
	out := make([]byte, indexHead, indexHead+len(w.b)/3)
	copy(out, indexMagic)
	le.PutUint32(out[8:], indexVersion)
	le.PutUint64(out[12:], uint64(len(w.b)))
	le.PutUint32(out[20:], crc32.Checksum(w.b, castagnoli()))
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.EncodeAll(w.b, out), nil
}

type indexWriter struct {
	b        []byte
	lastIno  uint32
	lastPhys uint64
	lastTime int64
}

func (w *indexWriter) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *indexWriter) int(v int64)   { w.b = binary.AppendVarint(w.b, v) }
func (w *indexWriter) str(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}
func (w *indexWriter) bool(v bool) {
	if v {
		w.uint(1)
	} else {
		w.uint(0)
	}
}
func (w *indexWriter) phys(p uint64) {
	w.int(int64(p - w.lastPhys))
	w.lastPhys = p
}
func (w *indexWriter) time(t stamp) {
	w.int(t.sec - w.lastTime)
	w.uint(uint64(t.nsec))
	w.lastTime = t.sec
}

func (w *indexWriter) inode(in *inode) {
	w.uint(uint64(in.ino - w.lastIno))
	w.lastIno = in.ino
	w.uint(uint64(in.mode))
	w.uint(uint64(in.uid))
	w.uint(uint64(in.gid))
	w.uint(uint64(in.size))
	w.time(in.mtime)
	if in.atime == in.mtime && in.ctime == in.mtime {
		w.uint(0)
	} else {
		w.uint(1)
		w.time(in.atime)
		w.time(in.ctime)
	}
	w.uint(uint64(len(in.xattrs)))
	for _, x := range in.xattrs {
		w.uint(uint64(x.index))
		w.str(x.name)
		w.str(x.value)
	}
	w.bool(in.xblock != 0)
	if in.xblock != 0 {
		w.phys(in.xblock)
	}
	switch in.mode & modeType {
	case modeSymlink:
		w.str(in.link)
	case modeChar, modeBlock:
		w.uint(uint64(in.major))
		w.uint(uint64(in.minor))
	}
	w.uint(uint64(len(in.extents)))
	var logical uint32
	for _, e := range in.extents {
		w.uint(uint64(e.logical - logical))
		w.uint(uint64(e.n))
		w.phys(e.phys)
		w.lastPhys += uint64(e.n)
		logical = e.logical + e.n
	}
	for _, b := range in.tree {
		w.phys(b)
	}
	if in.dir != nil {
		w.dir(in.dir)
	}
}

func (w *indexWriter) dir(d *directory) {
	// 0: one leaf in block 0. 1: a hash tree whose only node is in block 0. 2: nodes of their own.
	switch {
	case d.nodes == nil:
		w.uint(0)
		w.leaf(d, d.blocks[0].leaf)
		return
	case d.inRoot:
		w.uint(1)
	default:
		w.uint(2)
		w.uint(uint64(len(d.nodes)))
	}
	for _, n := range d.nodes {
		w.uint(uint64(n.logical))
		w.uint(uint64(len(n.leaves)))
		for _, l := range n.leaves {
			w.uint(uint64(l.logical))
			w.uint(uint64(l.start))
			w.leaf(d, l)
		}
	}
}

func (w *indexWriter) leaf(d *directory, l *leaf) {
	w.uint(uint64(len(l.entries)))
	last := d.in.ino
	for _, e := range l.entries {
		w.str(e.name)
		w.int(int64(e.in.ino) - int64(last))
		last = e.in.ino
	}
}

// Unmarshal reads an index. Nothing in it is believed: a model that comes out without an error
// is consistent, whoever wrote the index. Memory is bounded by the length of p, [MaxIndexBytes] and
// the filesystem's size.
func Unmarshal(p []byte) (*FS, error) {
	fs, err := unmarshal(p)
	if err != nil {
		return nil, fmt.Errorf("ext4: index: %w", err)
	}
	return fs, nil
}

func unmarshal(p []byte) (*FS, error) {
	if len(p) < indexHead || string(p[:8]) != indexMagic {
		return nil, errors.New("not an index: the magic number is missing")
	}
	if v := le.Uint32(p[8:]); v != indexVersion {
		return nil, fmt.Errorf("version %d: this program knows %d", v, indexVersion)
	}
	length := le.Uint64(p[12:])
	if length > MaxIndexBytes {
		return nil, fmt.Errorf("%d bytes: the limit is %d", length, MaxIndexBytes)
	}
	z, err := zstd.NewReader(bytes.NewReader(p[indexHead:]), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	sum := crc32.New(castagnoli())
	r := indexReader{r: bufio.NewReaderSize(io.LimitReader(z, int64(length)), 64<<10), sum: sum}
	b, err := r.build()
	if err == nil {
		err = r.err
	}
	if err == nil {
		if _, e := r.r.ReadByte(); e != io.EOF {
			err = errors.New("more bytes than it declares")
		}
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if r.n != length || sum.Sum32() != le.Uint32(p[20:]) {
		return nil, errors.New("checksum or length does not match: the index is damaged")
	}
	return b.finish()
}

// indexReader reads values; after an error they are all zero.
type indexReader struct {
	r        *bufio.Reader
	sum      hash.Hash32
	n        uint64
	err      error
	one      [1]byte
	lastIno  uint64
	lastPhys uint64
	lastTime int64
}

// ReadByte implements io.ByteReader for package binary.
func (r *indexReader) ReadByte() (byte, error) {
	c, err := r.r.ReadByte()
	if err == nil {
		r.one[0] = c
		r.sum.Write(r.one[:])
		r.n++
	}
	return c, err
}

func (r *indexReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// uint reads a number up to limit.
func (r *indexReader) uint(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(r)
	if err != nil {
		r.fail(err)
		return 0
	}
	if v > limit {
		r.fail(fmt.Errorf("value %d exceeds %d", v, limit))
		return 0
	}
	return v
}

func (r *indexReader) int() int64 {
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadVarint(r)
	if err != nil {
		r.fail(err)
		return 0
	}
	return v
}

func (r *indexReader) str(limit uint64) string {
	n := r.uint(limit)
	if r.err != nil || n == 0 {
		return ""
	}
	b := make([]byte, n)
	k, err := io.ReadFull(r.r, b)
	r.sum.Write(b[:k])
	r.n += uint64(k)
	if err != nil {
		r.fail(err)
		return ""
	}
	return string(b)
}

func (r *indexReader) phys() uint64 {
	r.lastPhys += uint64(r.int())
	return r.lastPhys
}

func (r *indexReader) time() stamp {
	r.lastTime += r.int()
	return stamp{r.lastTime, uint32(r.uint(999999999))}
}

func (r *indexReader) build() (*builder, error) {
	g := Geometry{Bytes: int64(r.uint(maxBytes))}
	if r.err != nil {
		return nil, r.err
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	b := newBuilder(g)
	fs := b.fs
	inodes := uint64(fs.lay.groups) * groupInodes
	fs.wrapped = r.uint(1) == 1
	fs.metaNext = r.uint(fs.lay.blocks)
	fs.dataNext = r.uint(fs.lay.blocks)
	fs.dirInoNext = uint32(r.uint(inodes + 1))
	fs.fileInoNext = uint32(r.uint(inodes + 1))
	for range r.uint(inodes) {
		if r.err != nil {
			return nil, r.err
		}
		in := r.inode(b, inodes)
		if r.err != nil {
			return nil, r.err
		}
		if err := b.add(in); err != nil {
			return nil, err
		}
	}
	return b, r.err
}

func (r *indexReader) inode(b *builder, limit uint64) *inode {
	r.lastIno += r.uint(limit)
	in := &inode{ino: uint32(min(r.lastIno, limit+1))}
	in.mode = uint16(r.uint(0xffff))
	in.uid = uint32(r.uint(1<<32 - 1))
	in.gid = uint32(r.uint(1<<32 - 1))
	in.size = int64(r.uint(maxFileBlocks * BlockSize))
	in.mtime = r.time()
	in.atime, in.ctime = in.mtime, in.mtime
	if r.uint(1) == 1 {
		in.atime, in.ctime = r.time(), r.time()
	}
	for range r.uint(BlockSize / 16) {
		in.xattrs = append(in.xattrs, xattr{byte(r.uint(255)), r.str(255), r.str(BlockSize)})
	}
	if r.uint(1) == 1 {
		in.xblock = r.phys()
	}
	switch in.mode & modeType {
	case modeSymlink:
		in.link = r.str(BlockSize - 1)
	case modeChar, modeBlock:
		in.major, in.minor = uint32(r.uint(1<<12-1)), uint32(r.uint(1<<20-1))
	}
	n := r.uint(b.fs.lay.blocks)
	var logical uint64
	for range n {
		if r.err != nil {
			return in
		}
		logical += r.uint(maxFileBlocks)
		e := extent{n: uint32(r.uint(maxExtentBlocks)), phys: r.phys()}
		if logical+uint64(e.n) > maxFileBlocks {
			r.fail(errors.New("extent behind the end of the largest file"))
			return in
		}
		e.logical = uint32(logical)
		in.extents = append(in.extents, e)
		r.lastPhys += uint64(e.n)
		logical += uint64(e.n)
	}
	for _, n := range treeLevels(len(in.extents)) {
		for range n {
			in.tree = append(in.tree, r.phys())
			if r.err != nil {
				return in
			}
		}
	}
	if in.mode&modeType == modeDir {
		r.dir(b, in)
	}
	return in
}

func (r *indexReader) dir(b *builder, in *inode) {
	d := b.newDir(in)
	kind := r.uint(2)
	if kind == 0 {
		r.leaf(b, d, &leaf{used: dotsUsed})
		return
	}
	nodes := uint64(1)
	d.inRoot = kind == 1
	if !d.inRoot {
		nodes = r.uint(rootLimit)
	}
	for range nodes {
		n := &hashNode{logical: uint32(r.uint(1 << 31))}
		d.nodes = append(d.nodes, n)
		for range r.uint(nodeLimit) {
			l := &leaf{logical: uint32(r.uint(1 << 31)), start: uint32(r.uint(1<<32 - 1))}
			n.leaves = append(n.leaves, l)
			r.leaf(b, d, l)
			if r.err != nil {
				return
			}
		}
	}
}

func (r *indexReader) leaf(b *builder, d *directory, l *leaf) {
	last := int64(d.in.ino)
	for range r.uint(dirCapacity / 12) {
		name := r.str(255)
		last += r.int()
		if r.err == nil {
			r.note(b.entry(d, l, name, last))
		}
		if r.err != nil {
			return
		}
	}
	if d.nodes == nil {
		b.only(d, l)
	}
}

func (r *indexReader) note(err error) {
	if err != nil {
		r.fail(err)
	}
}
