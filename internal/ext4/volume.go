package ext4

import (
	"errors"
	"fmt"
	"io"
)

// volume is an ext4 filesystem as its blocks are, with the journal laid over them.
type volume struct {
	r       io.ReaderAt
	bytes   int64
	super   super
	overlay map[uint64]logged // blocks whose newest content is in the journal
	cache   chunkCache
	// journalEnd is the number of the transaction that would be next; 0 if the log is empty.
	journalEnd uint32
}

// super holds what reading needs from a superblock.
type super struct {
	blockSize   int64
	blocks      uint64
	firstBlock  uint64
	perGroup    uint32 // inodes
	groupBlocks uint64
	inodes      uint32
	inodeSize   int
	descSize    int
	incompat    uint32
	roCompat    uint32
	journalIno  uint32
	firstMetaBG uint32
	backups     [2]uint32
	seed        uint32
	checksums   bool
	uuid        [16]byte
}

const (
	incompatMetaBG   = 0x10
	incompatMMP      = 0x100
	incompatCsumSeed = 0x2000
	incompatLargeDir = 0x4000
	roSparseSuper2   = 0x200 // in feature_compat

	readableIncompat = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit |
		incompatFlexBG | incompatMMP | incompatCsumSeed | incompatLargeDir
)

var incompatNames = map[uint32]string{0x1: "compression", 0x8: "journal_dev", 0x400: "ea_inode", 0x1000: "dirdata",
	0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold"}

// openVolume reads the superblock and the journal.
func openVolume(r io.ReaderAt, bytes int64) (*volume, error) {
	v := &volume{r: r, bytes: bytes}
	if err := v.readSuper(); err != nil {
		return nil, err
	}
	if err := v.replay(); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if len(v.overlay) > 0 {
		if err := v.readSuper(); err != nil {
			return nil, fmt.Errorf("after the journal: %w", err)
		}
	}
	return v, nil
}

func (v *volume) readSuper() error {
	b := make([]byte, 1024)
	if v.bytes < 2048 {
		return fmt.Errorf("%d bytes are too few for a filesystem", v.bytes)
	}
	if err := v.readAt(b, 1024); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	if le.Uint16(b[0x38:]) != superMagic {
		return errors.New("superblock: the magic number is missing: not an ext4 filesystem")
	}
	s := super{incompat: le.Uint32(b[0x60:]), roCompat: le.Uint32(b[0x64:])}
	if rest := s.incompat &^ readableIncompat; rest != 0 {
		name := incompatNames[rest&-rest]
		return fmt.Errorf("superblock: feature %s (%#x) is not supported", name, rest)
	}
	s.checksums = s.roCompat&roCompatMetadataCsum != 0
	if s.checksums && crc(0xffffffff, b[:0x3fc]) != le.Uint32(b[0x3fc:]) {
		return errors.New("superblock: checksum does not match")
	}
	if k := le.Uint32(b[0x18:]); k > 2 {
		return fmt.Errorf("superblock: block size 2^%d: 1, 2 and 4 KiB are supported", uint64(k)+10)
	}
	s.blockSize = 1024 << le.Uint32(b[0x18:])
	s.blocks = uint64(le.Uint32(b[4:]))
	s.descSize, s.inodeSize = 32, 128
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.descSize = int(le.Uint16(b[0xfe:]))
	}
	if le.Uint32(b[0x4c:]) > 0 {
		s.inodeSize = int(le.Uint16(b[0x58:]))
	}
	s.firstBlock = uint64(le.Uint32(b[0x14:]))
	s.groupBlocks = uint64(le.Uint32(b[0x20:]))
	s.perGroup, s.inodes = le.Uint32(b[0x28:]), le.Uint32(b)
	s.firstMetaBG = le.Uint32(b[0x104:])
	s.journalIno = le.Uint32(b[0xe0:])
	if le.Uint32(b[0x5c:])&compatHasJournal == 0 {
		s.journalIno = 0
	}
	if le.Uint32(b[0x5c:])&roSparseSuper2 != 0 {
		s.backups = [2]uint32{le.Uint32(b[0x24c:]), le.Uint32(b[0x250:])}
	}
	copy(s.uuid[:], b[0x68:])
	s.seed = crc(0xffffffff, s.uuid[:])
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = le.Uint32(b[0x270:])
	}
	switch {
	case s.blocks > uint64(v.bytes/s.blockSize):
		return fmt.Errorf("superblock: %d blocks of %d bytes: the image has only %d bytes", s.blocks, s.blockSize, v.bytes)
	case s.inodeSize < 128 || int64(s.inodeSize) > s.blockSize || s.inodeSize&(s.inodeSize-1) != 0:
		return fmt.Errorf("superblock: inode size %d", s.inodeSize)
	case s.descSize < 32 || s.descSize > 1024 || s.descSize&(s.descSize-1) != 0:
		return fmt.Errorf("superblock: group descriptor size %d", s.descSize)
	case s.groupBlocks == 0 || s.groupBlocks > 8*uint64(s.blockSize)*1024 || s.perGroup == 0 || s.firstBlock > 1 || s.blocks <= s.firstBlock:
		return errors.New("superblock: group geometry makes no sense")
	case uint64(s.inodes) > (s.blocks-s.firstBlock+s.groupBlocks-1)/s.groupBlocks*uint64(s.perGroup):
		return fmt.Errorf("superblock: %d inodes do not fit into the groups", s.inodes)
	}
	v.super = s
	return nil
}

// readAt reads bytes of the filesystem, as they are after replaying the journal.
func (v *volume) readAt(p []byte, off int64) error { return v.read(p, off, v.rawAt) }

// metaAt is readAt for what lies close to what is read next: inodes, directories, trees. The
// disk may be behind a network.
func (v *volume) metaAt(p []byte, off int64) error { return v.read(p, off, v.cachedAt) }

func (v *volume) read(p []byte, off int64, at func([]byte, int64) error) error {
	if off < 0 || off > v.bytes || int64(len(p)) > v.bytes-off {
		return fmt.Errorf("%d bytes at %d lie behind the end at %d", len(p), off, v.bytes)
	}
	if len(v.overlay) == 0 {
		return at(p, off)
	}
	for len(p) > 0 {
		bs := v.super.blockSize
		n := min(bs-off%bs, int64(len(p)))
		if l, ok := v.overlay[uint64(off/bs)]; ok {
			if err := at(p[:n], int64(l.block)*bs+off%bs); err != nil {
				return err
			}
			if l.escaped {
				// Only the block's first four bytes, which looked like the journal's own.
				var magic [4]byte
				be.PutUint32(magic[:], journalMagic)
				if off%bs < 4 {
					copy(p[:n], magic[off%bs:])
				}
			}
		} else if err := at(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (v *volume) rawAt(p []byte, off int64) error {
	n, err := v.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (v *volume) readBlock(b uint64, p []byte) error {
	if b >= v.super.blocks {
		return fmt.Errorf("block %d of %d", b, v.super.blocks)
	}
	return v.metaAt(p, int64(b)*v.super.blockSize)
}

// hasBackup says whether group g starts with a superblock.
func (s *super) hasBackup(g uint64) bool {
	switch {
	case s.backups != [2]uint32{}:
		return g == 0 || g == uint64(s.backups[0]) || g == uint64(s.backups[1])
	case s.roCompat&roCompatSparseSuper != 0:
		return hasBackup(int(g))
	}
	return true
}

// groupDesc reads the descriptor of group g.
func (v *volume) groupDesc(g uint64) ([]byte, error) {
	s := &v.super
	per := uint64(s.blockSize) / uint64(s.descSize)
	k := g / per
	at := s.firstBlock + 1 + k
	if s.incompat&incompatMetaBG != 0 && k >= uint64(s.firstMetaBG) {
		at = s.firstBlock + k*per*s.groupBlocks
		if s.hasBackup(k * per) {
			at++
		}
	}
	b := make([]byte, s.blockSize)
	if err := v.readBlock(at, b); err != nil {
		return nil, fmt.Errorf("descriptor of group %d: %w", g, err)
	}
	d := b[g%per*uint64(s.descSize):][:s.descSize]
	if s.checksums {
		var n [4]byte
		le.PutUint32(n[:], uint32(g))
		want := le.Uint16(d[0x1e:])
		d[0x1e], d[0x1f] = 0, 0
		if uint16(crc(crc(s.seed, n[:]), d)) != want {
			return nil, fmt.Errorf("descriptor of group %d: checksum does not match", g)
		}
	}
	return d, nil
}

// inodeTable finds where group g's inodes start.
func (v *volume) inodeTable(g uint64) (uint64, error) {
	s := &v.super
	d, err := v.groupDesc(g)
	if err != nil {
		return 0, err
	}
	t := uint64(le.Uint32(d[8:]))
	if s.descSize >= 64 {
		t |= uint64(le.Uint32(d[0x28:])) << 32
	}
	return t, nil
}

// rawInode is an inode as it lies on disk.
type rawInode struct {
	ino  uint32
	b    []byte
	seed uint32 // of checksums of what belongs to it
}

func (v *volume) inode(ino uint32) (*rawInode, error) {
	s := &v.super
	if ino == 0 || ino > s.inodes {
		return nil, fmt.Errorf("inode %d of %d", ino, s.inodes)
	}
	table, err := v.inodeTable(uint64((ino - 1) / s.perGroup))
	if err != nil {
		return nil, err
	}
	if table >= s.blocks {
		return nil, fmt.Errorf("inode %d: its table starts at block %d of %d", ino, table, s.blocks)
	}
	in := &rawInode{ino: ino, b: make([]byte, s.inodeSize)}
	if err := v.metaAt(in.b, int64(table)*s.blockSize+int64((ino-1)%s.perGroup)*int64(s.inodeSize)); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	var n [8]byte
	le.PutUint32(n[:], ino)
	copy(n[4:], in.b[0x64:0x68]) // generation
	in.seed = crc(s.seed, n[:])
	if s.checksums && !in.checksumOK() {
		return nil, fmt.Errorf("inode %d: checksum does not match", ino)
	}
	if in.flags()&(flagInlineData|flagEncrypted) != 0 {
		return nil, fmt.Errorf("inode %d: inline data and encryption are not supported", ino)
	}
	return in, nil
}

const (
	flagEncrypted  = 0x800
	flagInlineData = 0x10000000
)

// extra is the length of the fields behind the first 128 bytes.
func (in *rawInode) extra() int {
	if len(in.b) <= 128 {
		return 0
	}
	return min(int(le.Uint16(in.b[0x80:])), len(in.b)-128)
}

func (in *rawInode) checksumOK() bool {
	want := uint32(le.Uint16(in.b[0x7c:]))
	b := append([]byte(nil), in.b...)
	b[0x7c], b[0x7d] = 0, 0
	mask := uint32(0xffff)
	if in.extra() >= 4 {
		want |= uint32(le.Uint16(in.b[0x82:])) << 16
		b[0x82], b[0x83] = 0, 0
		mask = 0xffffffff
	}
	return crc(in.seed, b)&mask == want
}

func (in *rawInode) mode() uint16  { return le.Uint16(in.b) }
func (in *rawInode) flags() uint32 { return le.Uint32(in.b[0x20:]) }
func (in *rawInode) size() int64 {
	n := int64(le.Uint32(in.b[4:]))
	if t := in.mode() & modeType; t == modeRegular || t == modeDir {
		n |= int64(le.Uint32(in.b[0x6c:])) << 32
	}
	return n
}
func (in *rawInode) xattrBlock() uint64 {
	return uint64(le.Uint32(in.b[0x68:])) | uint64(le.Uint16(in.b[0x76:]))<<32
}

// time reads seconds at and, where the inode has them, the bits at extra.
func (in *rawInode) time(at, extra int) stamp {
	t := stamp{sec: int64(int32(le.Uint32(in.b[at:])))}
	if in.extra() >= extra+4-128 {
		x := le.Uint32(in.b[extra:])
		t.sec += int64(x&3) << 32
		t.nsec = min(x>>2, 999999999)
	}
	return t
}

// attrs are the inode's permissions, owner and times.
func (in *rawInode) attrs() attrs {
	return attrs{
		mode:  in.mode() &^ modeType,
		uid:   uint32(le.Uint16(in.b[2:])) | uint32(le.Uint16(in.b[0x78:]))<<16,
		gid:   uint32(le.Uint16(in.b[0x18:])) | uint32(le.Uint16(in.b[0x7a:]))<<16,
		atime: in.time(0x08, 0x8c),
		ctime: in.time(0x0c, 0x84),
		mtime: in.time(0x10, 0x88),
	}
}

// device is the number of a device file.
func (in *rawInode) device() (major, minor uint32) {
	if d := le.Uint32(in.b[0x28:]); d != 0 {
		return d >> 8 & 0xff, d & 0xff
	}
	d := le.Uint32(in.b[0x2c:])
	return d >> 8 & 0xfff, d&0xff | d>>12&0xfff00
}
