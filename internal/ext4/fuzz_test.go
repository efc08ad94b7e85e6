package ext4_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// smallLayer is a layer of all kinds of entries, small enough for a fuzzer.
func smallLayer(t testing.TB) []byte {
	return makeTar(t,
		entry{name: "./", mode: 0o755}, entry{name: "d/"}, entry{name: "d/f", body: "contents", xattr: map[string]string{"user.x": "y", "user.long": noise(1, 200)}},
		entry{name: "l", typ: tar.TypeSymlink, link: "d"}, entry{name: "l/g", body: noise(2, 5000)}, entry{name: "h", typ: tar.TypeLink, link: "d/f"},
		entry{name: "n", typ: tar.TypeChar, dev: [2]int64{1, 3}}, entry{name: "p", typ: tar.TypeFifo}, entry{name: "d/.wh.f"}, entry{name: "d/.wh..wh..opq"})
}

// sound checks a disk against its model: our reader reads all of it, and it can be rebuilt.
func sound(t *testing.T, im *image) {
	t.Helper()
	r := im.reader(t)
	err := r.Walk("/", func(name string, in ext4.Info) error {
		if !in.Mode.IsRegular() {
			return nil
		}
		f, err := r.OpenFile(name)
		if err == nil && in.Size < 1<<24 {
			_, err = io.Copy(io.Discard, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ext4.Rebuild(r); err != nil {
		t.Fatal(err)
	}
	b, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ext4.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
}

// repaired sets the checksums of a tar's headers, which no mutation would hit
// upon.
func repaired(b []byte) []byte {
	b = bytes.Clone(b)
	for off := 0; off+512 <= len(b); {
		h := b[off : off+512]
		if h[0] == 0 {
			break
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		size := 0
		for _, c := range h[124:136] {
			if c >= '0' && c <= '7' {
				size = size<<3 | int(c-'0')
			}
		}
		if size < 0 || size > len(b) {
			break
		}
		off += 512 + (size+511)&^511
	}
	return b
}

// applied puts a layer on a disk, unless it is refused.
func applied(im *image, layer []byte, lim ext4.Limits) bool {
	var spool bytes.Buffer
	l, err := ext4.ReadLayer(bytes.NewReader(layer), &spool, lim)
	if err != nil {
		return false
	}
	bound, err := im.fs.Apply(l)
	if err != nil {
		return false
	}
	for _, e := range bound {
		im.put(e.Abs, spool.Bytes()[e.Rel*ext4.BlockSize:(e.Rel+e.N)*ext4.BlockSize])
	}
	im.emit()
	return true
}

func FuzzReadLayer(f *testing.F) {
	f.Add(smallLayer(f), smallLayer(f))
	f.Add(makeTar(f, entry{name: "a/b/c", body: "1"}), makeTar(f, entry{name: "a/.wh.b"}, entry{name: "a", body: "file"}))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		im := newImage(t, 128<<20)
		for _, l := range [][]byte{one, two} {
			lim := ext4.Limits{MaxSparseBytes: 1 << 20, MaxEntries: 1000}
			if !applied(im, repaired(l), lim) {
				return
			}
		}
		sound(t, im)
	})
}

// FuzzOpenReader overwrites parts of a sound disk: at is a block among those in use, off where
// in it, patch what to put there. Checksums of most blocks are repaired by not using them: the
// second disk has metadata_csum switched off.
func FuzzOpenReader(f *testing.F) {
	im := newImage(f, 128<<20)
	im.mustApply(f, smallLayer(f))
	im.mustApply(f, makeTar(f, entry{name: "d/.wh.g"}, entry{name: "big", body: holey(6)}))
	var used []uint64
	plain := map[uint64][]byte{}
	for lba, b := range im.blocks {
		plain[lba] = bytes.Clone(b)
	}
	for lba := range uint64(32768) {
		if im.blocks[lba] != nil {
			used = append(used, lba)
		}
	}
	plain[0][1024+0x65] &^= 4 // metadata_csum
	f.Add(uint16(0), uint16(1024), []byte{0, 0}, false)
	for i := range used {
		f.Add(uint16(i), uint16(0), []byte{0xff, 0xff, 0xff}, true)
		f.Add(uint16(i), uint16(40), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, true)
	}
	f.Fuzz(func(t *testing.T, at, off uint16, patch []byte, nosum bool) {
		src := im.blocks
		if nosum {
			src = plain
		}
		disk := newMemImage(128 << 20)
		for lba, b := range src {
			disk.blocks[lba] = b
		}
		lba := used[int(at)%len(used)]
		b := bytes.Clone(src[lba])
		copy(b[int(off)%ext4.BlockSize:], patch)
		disk.blocks[lba] = b
		r, err := ext4.Open(disk, disk.bytes)
		if err != nil {
			return
		}
		n := 0
		r.Walk("/", func(name string, in ext4.Info) error {
			if n++; n > 10000 {
				return io.EOF
			}
			if in.Mode.IsRegular() {
				if f, err := r.OpenFile(name); err == nil {
					io.Copy(io.Discard, io.LimitReader(f, 1<<20))
				}
			}
			r.Stat(name)
			return nil
		})
		ext4.Rebuild(r)
		ext4.Adopt(r)
		r.TarOut(&limited{n: 4 << 20}, "/", &ext4.TarOptions{Sparse: true})
		whole, err := ext4.Open(im, im.bytes)
		if err != nil {
			t.Fatal(err)
		}
		ext4.Diff(whole, r, nil)
		ext4.Diff(r, whole, &ext4.DiffOptions{Changed: []ext4.Range{{Off: int64(lba) * ext4.BlockSize, N: ext4.BlockSize}}})
	})
}

// limited takes so many bytes.
type limited struct{ n int }

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func FuzzUnmarshalIndex(f *testing.F) {
	im := newImage(f, 128<<20)
	im.mustApply(f, smallLayer(f))
	b, err := im.fs.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	body, err := ext4.IndexBody(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		fs, err := ext4.Unmarshal(ext4.IndexOf(body))
		if err != nil {
			return
		}
		// What is accepted must go on working.
		layer, err := ext4.ReadLayer(bytes.NewReader(smallLayer(t)), io.Discard, ext4.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fs.Apply(layer); err != nil {
			return
		}
		var p [ext4.BlockSize]byte
		for _, lba := range fs.Dirty() {
			fs.Block(lba, p[:])
		}
		fs.Commit()
		out, err := fs.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ext4.Unmarshal(out); err != nil {
			t.Fatalf("an accepted index leads to one that is not: %v", err)
		}
	})
}

// TestUnmarshalDamaged flips each byte of an index: none may pass unnoticed.
func TestUnmarshalDamaged(t *testing.T) {
	im := newImage(t, 128<<20)
	im.mustApply(t, smallLayer(t))
	b, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	good := sha256.Sum256(b)
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		fs, err := ext4.Unmarshal(c)
		if err != nil {
			continue
		}
		// Bits of the compression that say nothing about the content may change.
		again, err := fs.MarshalBinary()
		if err != nil || sha256.Sum256(again) != good {
			t.Errorf("byte %d changed: another model is accepted", i)
		}
	}
	for n := range b {
		if _, err := ext4.Unmarshal(b[:n]); err == nil {
			t.Errorf("an index cut off after %d of %d bytes is accepted", n, len(b))
		}
	}
}

// FuzzLayers makes layers of few names and all types, three bytes an entry, so
// that they meet: replaced, linked, deleted, reached through symlinks. What reuses
// contents must make the same tree, and so must the difference of the first and the last layer.
func FuzzLayers(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 1, 40, 255, 0, 0, 0, 8, 3})
	f.Add([]byte{2, 4, 0, 0, 1, 9, 3, 6, 1, 255, 0, 0, 4, 1, 0})
	f.Add([]byte("\x02\x00\x01\x17\x17WV\xff\x00\x00\x04\x01m\f\xc0\xa7[\xdc\t\x01\x06\x03V")) // a loop that the layer itself undoes
	names := []string{"a", "a/b", "a/b/c", "a/b/c/d", "b", "b/c", "l", "l/x", "a/.wh.b", ".wh.a", "a/.wh..wh..opq", ".wh.l", "../x", "/abs", "b/../y", "./"}
	links := []string{"a", "a/b", "b", "../b", "/", "/a/b", "l", "a/b/c"}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
	f.Fuzz(func(t *testing.T, program []byte) {
		im, reused := newImage(t, 128<<20), newImage(t, 128<<20)
		var base *image
		for _, part := range bytes.Split(program[:min(len(program), 300)], []byte{255}) {
			var entries []entry
			for ; len(part) >= 3; part = part[3:] {
				e := entry{typ: types[int(part[0])%len(types)], name: names[int(part[1])%len(names)]}
				if e.name == "./" {
					e.typ = tar.TypeDir
				}
				switch e.typ {
				case tar.TypeReg:
					e.body = noise(uint64(part[2]), int(part[2])*100)
				case tar.TypeSymlink, tar.TypeLink:
					e.link = links[int(part[2])%len(links)]
				}
				entries = append(entries, e)
			}
			layer := makeTar(t, entries...)
			if !applied(im, layer, ext4.Limits{}) {
				return
			}
			reused.reapply(t, layer)
			if base == nil {
				base = im.clone(t)
			}
		}
		sound(t, im)
		sound(t, reused)
		want := readerTree(t, im.reader(t), "rootfs")
		if diff := cmp.Diff(want, readerTree(t, reused.reader(t), "rootfs")); diff != "" {
			t.Errorf("with reuse (-without +with):\n%s", diff)
		}
		var layer bytes.Buffer
		if err := ext4.DiffTar(&layer, rootfs(t, base, base.bytes), rootfs(t, im, im.bytes), &ext4.DiffOptions{Changed: changed(t, base, im)}, nil); err != nil {
			t.Fatal(err)
		}
		base.mustApply(t, layer.Bytes())
		if diff := cmp.Diff(want, readerTree(t, base.reader(t), "rootfs")); diff != "" {
			t.Errorf("the difference makes another tree (-want +got):\n%s", diff)
		}
	})
}
