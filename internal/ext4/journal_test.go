package ext4_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// A logWriter writes a journal ("Journal (jbd2)" in the kernel's documentation) into an image
// whose own is empty.
type logWriter struct {
	im       *image
	incompat uint32
	at       uint32 // next block of the log
	tid      uint32
	seed     uint32
}

const (
	log64, logCsum2, logCsum3 = 0x2, 0x8, 0x10
	logMagic                  = 0xc03b3998
)

var be = binary.BigEndian

// startLog makes a log that starts at a block.
func startLog(im *image, incompat, at uint32) *logWriter {
	w := &logWriter{im: im, incompat: incompat, at: at, tid: 7}
	b := bytes.Clone(im.blocks[ext4.JournalStart(im.fs)])
	be.PutUint32(b[24:], w.tid)
	be.PutUint32(b[28:], at)
	be.PutUint32(b[40:], incompat)
	w.seed = ext4.CRC(0xffffffff, b[48:64])
	if incompat&(logCsum2|logCsum3) != 0 {
		b[0x50] = 4 // CRC-32C
		be.PutUint32(b[0xfc:], 0)
		be.PutUint32(b[0xfc:], ext4.CRC(0xffffffff, b[:1024]))
	}
	im.put(ext4.JournalStart(im.fs), b)
	sb := bytes.Clone(im.blocks[0])
	le := binary.LittleEndian
	le.PutUint32(sb[1024+0x60:], le.Uint32(sb[1024+0x60:])|4) // needs recovery
	le.PutUint32(sb[1024+0x3fc:], ext4.CRC(0xffffffff, sb[1024:1024+0x3fc]))
	im.put(0, sb)
	return w
}

func (w *logWriter) block(b []byte) {
	w.im.put(ext4.JournalStart(w.im.fs)+uint64(w.at), b)
	if w.at++; w.at == ext4.JournalBlocks {
		w.at = 1
	}
}

func (w *logWriter) header(kind uint32) []byte {
	b := make([]byte, ext4.BlockSize)
	be.PutUint32(b, logMagic)
	be.PutUint32(b[4:], kind)
	be.PutUint32(b[8:], w.tid)
	return b
}

func (w *logWriter) sum(b []byte, at int) {
	if w.incompat&(logCsum2|logCsum3) != 0 {
		be.PutUint32(b[at:], ext4.CRC(w.seed, b))
	}
}

type logged struct {
	lba  uint64
	data []byte
}

// blocks writes a descriptor and what it describes.
func (w *logWriter) blocks(ls ...logged) {
	d := w.header(1)
	o := 12
	for i, l := range ls {
		flags := uint32(0)
		data := bytes.Clone(l.data)
		if be.Uint32(data) == logMagic {
			flags |= 1
			be.PutUint32(data, 0)
		}
		if i > 0 {
			flags |= 2
		}
		if i == len(ls)-1 {
			flags |= 8
		}
		ls[i].data = data
		var n [4]byte
		be.PutUint32(n[:], w.tid)
		sum := ext4.CRC(ext4.CRC(w.seed, n[:]), data)
		t := d[o:]
		be.PutUint32(t, uint32(l.lba))
		if w.incompat&logCsum3 != 0 {
			be.PutUint32(t[4:], flags)
			be.PutUint32(t[8:], uint32(l.lba>>32))
			be.PutUint32(t[12:], sum)
			o += 16
		} else {
			be.PutUint16(t[6:], uint16(flags))
			o += 8
			if w.incompat&logCsum2 != 0 {
				be.PutUint16(t[4:], uint16(sum))
			}
			if w.incompat&log64 != 0 {
				be.PutUint32(t[8:], uint32(l.lba>>32))
				o += 4
			}
			if w.incompat&logCsum2 != 0 {
				o += 2
			}
		}
		if i == 0 {
			o += 16 // UUID
		}
	}
	w.sum(d, len(d)-4)
	w.block(d)
	for _, l := range ls {
		w.block(l.data)
	}
}

func (w *logWriter) revoke(lbas ...uint64) {
	b := w.header(5)
	o := 16
	for _, l := range lbas {
		if w.incompat&log64 != 0 {
			be.PutUint64(b[o:], l)
			o += 8
		} else {
			be.PutUint32(b[o:], uint32(l))
			o += 4
		}
	}
	be.PutUint32(b[12:], uint32(o))
	w.sum(b, len(b)-4)
	w.block(b)
}

func (w *logWriter) commit() {
	b := w.header(2)
	w.sum(b, 16)
	w.block(b)
	w.tid++
}

// logImage is a disk with a file of eight blocks, and the first block of that file.
func logImage(t testing.TB) (*image, uint64, string) {
	body := noise(1, 8*ext4.BlockSize)
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, entry{name: "f", body: body}))
	for lba, b := range im.blocks {
		if string(b) == body[:ext4.BlockSize] {
			return im, lba, body
		}
	}
	t.Fatal("the file is not on the disk")
	return nil, 0, ""
}

// writeLog writes transactions that use everything a log can hold, in which the file's blocks
// are rewritten. It returns what the file is then.
func writeLog(im *image, first uint64, body string, incompat, at uint32, end string) string {
	fill := func(s string) []byte { return bytes.Repeat([]byte(s), ext4.BlockSize/len(s)) }
	magic := append(be.AppendUint32(nil, logMagic), fill("magic...")[4:]...)
	w := startLog(im, incompat, at)
	w.blocks(logged{first, fill("first...")}, logged{first + 1, fill("revoked.")}, logged{first + 2, magic})
	w.blocks(logged{first + 3, fill("again...")})
	w.commit()
	w.revoke(first+1, first+4)
	w.blocks(logged{first + 4, fill("revoked.")}, logged{first + 3, fill("newest..")})
	w.commit()
	w.blocks(logged{first + 4, fill("after...")})
	w.commit()
	switch end {
	case "uncommitted":
		w.blocks(logged{first + 5, fill("too late")})
	case "damaged commit":
		w.blocks(logged{first + 5, fill("too late")})
		b := w.header(2)
		be.PutUint32(b[16:], 1)
		w.block(b)
	case "old transaction behind":
		w.tid -= 2
		w.blocks(logged{first + 5, fill("too late")})
		w.commit()
	}
	out := []byte(body)
	put := func(i int, b []byte) { copy(out[i*ext4.BlockSize:], b) }
	put(0, fill("first..."))
	put(2, magic)
	put(3, fill("newest.."))
	put(4, fill("after..."))
	return string(out)
}

// TestLog reads logs of every form. e2fsck, which recovers them too, must agree.
func TestLog(t *testing.T) {
	need(t, "e2fsck", "debugfs")
	for _, tc := range []struct {
		name     string
		incompat uint32
		at       uint32
		end      string
	}{
		{"plain", 1, 1, ""}, {"64 bit", 1 | log64, 1, ""}, {"checksums 2", 1 | logCsum2, 1, ""}, {"checksums 2, 64 bit", 1 | log64 | logCsum2, 1, ""},
		{"checksums 3", 1 | logCsum3, 1, ""}, {"checksums 3, 64 bit", 1 | log64 | logCsum3, 1, ""},
		{"wrapped between transactions", 1 | log64 | logCsum3, ext4.JournalBlocks - 7, ""}, {"wrapped within a transaction", 1 | log64 | logCsum3, ext4.JournalBlocks - 2, ""},
		{"wrapped after the descriptor", 1, ext4.JournalBlocks - 1, ""},
		{"uncommitted", 1 | log64 | logCsum3, 1, "uncommitted"}, {"damaged commit", 1 | log64 | logCsum3, 1, "damaged commit"},
		{"old transaction behind", 1 | log64 | logCsum3, 1, "old transaction behind"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im, first, body := logImage(t)
			want := writeLog(im, first, body, tc.incompat, tc.at, tc.end)
			r, err := ext4.Open(im, im.bytes)
			if err != nil {
				t.Fatal(err)
			}
			read := func(r *ext4.Reader) string {
				t.Helper()
				f, err := r.OpenFile("rootfs/f")
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(f)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if got := read(r); got != want {
				t.Error("the file is not what the log makes of it")
			}
			img := im.save(t)
			if out, err := exec.Command("e2fsck", "-fy", img).CombinedOutput(); err != nil && !strings.Contains(string(out), "recovering journal") {
				t.Fatalf("e2fsck: %v\n%s", err, out)
			}
			f, err := os.Open(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if r, err = ext4.Open(f, im.bytes); err != nil {
				t.Fatal(err)
			}
			if got := read(r); got != want {
				for i := 0; i < len(want); i += ext4.BlockSize {
					t.Logf("block %d: %.8q, want %.8q", i/ext4.BlockSize, got[i:], want[i:])
				}
				t.Error("e2fsck made something else of the log")
			}
		})
	}
}

// TestLogRefused: what the log cannot mean is an error that says what it is.
func TestLogRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(im *image, first uint64)
		want  string
	}{
		"fast commits": {func(im *image, _ uint64) { startLog(im, 1|0x20, 1) }, "fast commits"},
		"unknown":      {func(im *image, _ uint64) { startLog(im, 1|0x40, 1) }, "0x40"},
		"start":        {func(im *image, _ uint64) { startLog(im, 1, 1<<20) }, "starting at"},
		"target": {func(im *image, _ uint64) {
			w := startLog(im, 1|log64, 1)
			w.blocks(logged{1 << 40, make([]byte, ext4.BlockSize)})
			w.commit()
		}, "writes block"},
		"contents": {func(im *image, first uint64) {
			w := startLog(im, 1|log64|logCsum3, 1)
			w.blocks(logged{first, bytes.Repeat([]byte("x"), ext4.BlockSize)})
			w.commit()
			w.blocks(logged{first, bytes.Repeat([]byte("y"), ext4.BlockSize)})
			w.commit()
			im.blocks[ext4.JournalStart(im.fs)+2][5] ^= 1
		}, "checksum"},
		"superblock": {func(im *image, _ uint64) {
			startLog(im, 1|logCsum3, 1)
			im.blocks[ext4.JournalStart(im.fs)][0xfd] ^= 1
		}, "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			im, first, _ := logImage(t)
			tc.spoil(im, first)
			if _, err := ext4.Open(im, im.bytes); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// FuzzLog replaces parts of a log of 24 blocks: what is read may be an error, but ends.
func FuzzLog(f *testing.F) {
	im, first, body := logImage(f)
	for i, incompat := range []uint32{1, 1 | log64, 1 | logCsum2, 1 | log64 | logCsum3} {
		f.Add(uint8(i), incompat, uint16(0), []byte{})
		f.Add(uint8(i), incompat, uint16(8+i), []byte{0xff, 0xff, 0, 1})
		f.Add(uint8(i), incompat, uint16(4096*4+16), []byte{1, 0, 0, 0, 2})
	}
	f.Fuzz(func(t *testing.T, at uint8, incompat uint32, off uint16, patch []byte) {
		disk := &image{newMemImage(im.bytes), im.fs}
		for lba, b := range im.blocks {
			disk.blocks[lba] = b
		}
		writeLog(disk, first, body, incompat, 1+uint32(at), "uncommitted")
		start := ext4.JournalStart(im.fs) + 1 + uint64(at)
		for i, c := range patch[:min(len(patch), 4096)] {
			o := int(off) + i
			lba := start + uint64(o/ext4.BlockSize)
			if disk.blocks[lba] == nil {
				disk.blocks[lba] = make([]byte, ext4.BlockSize)
			}
			disk.blocks[lba][o%ext4.BlockSize] = c
		}
		r, err := ext4.Open(disk, disk.bytes)
		if err != nil {
			return
		}
		if r.TarOut(io.Discard, "/", nil) != nil {
			return
		}
		if fs, err := ext4.Adopt(r); err == nil {
			var b [ext4.BlockSize]byte
			for _, lba := range fs.Dirty() {
				fs.Block(lba, b[:])
				disk.put(lba, b[:])
			}
			again, err := ext4.Open(disk, disk.bytes)
			if err != nil || again.Replayed() != 0 {
				t.Fatalf("after adoption: %v", err)
			}
			if diff := cmp.Diff(readerTree(t, r, ""), readerTree(t, again, "")); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}
