package ext4_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// frame keeps what it is told: pieces of the tar, and between them sizes.
type frame struct {
	pieces [][]byte // one more than sizes
	sizes  []int64
}

func (f *frame) Write(p []byte) (int, error) {
	if len(f.pieces) == len(f.sizes) {
		f.pieces = append(f.pieces, nil)
	}
	k := len(f.sizes)
	f.pieces[k] = append(f.pieces[k], p...)
	return len(p), nil
}

func (f *frame) Contents(size int64) error {
	_, _ = f.Write(nil)
	f.sizes = append(f.sizes, size)
	return nil
}

// framedApply applies a layer, and puts its tar together again out of frame,
// disk and spool.
func framedApply(im *image, layer []byte, lim ext4.Limits, reuse bool) (again []byte, lost int, err error) {
	var spool bytes.Buffer
	var fr frame
	l, err := ext4.ReadLayerWith(bytes.NewReader(layer), &spool, lim, &ext4.ReadOptions{Frame: &fr})
	if err != nil {
		return nil, 0, err
	}
	var places []ext4.Contents
	o := &ext4.ApplyOptions{Contents: func(c ext4.Contents) error { places = append(places, c); return nil }}
	if reuse {
		o.Spool, o.Parent = bytes.NewReader(spool.Bytes()), im
	}
	bound, err := im.fs.ApplyWith(l, o)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range bound {
		im.put(e.Abs, spool.Bytes()[e.Rel*ext4.BlockSize:(e.Rel+e.N)*ext4.BlockSize])
	}
	im.emit()
	r, err := ext4.Open(im, im.bytes)
	if err != nil {
		return nil, 0, err
	}
	if len(places) != len(fr.sizes) {
		return nil, 0, fmt.Errorf("%d contents were read, %d have a place", len(fr.sizes), len(places))
	}
	for i, c := range places {
		if c.Size != fr.sizes[i] {
			return nil, 0, fmt.Errorf("contents %d: %d bytes, not %d", i, c.Size, fr.sizes[i])
		}
		again = append(again, fr.pieces[i]...)
		in := c.Reader(bytes.NewReader(spool.Bytes()))
		if c.Ino == 0 {
			lost++
		} else {
			f, err := r.OpenInode(c.Ino)
			if err != nil {
				return nil, 0, err
			}
			in = f
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return nil, 0, err
		}
		again = append(again, b...)
	}
	if len(fr.pieces) > len(fr.sizes) {
		again = append(again, fr.pieces[len(fr.sizes)]...)
	}
	return again, lost, nil
}

// A tar comes out again of its frame and the disk, and only what a later entry
// replaced has to come from the spool.
func TestFrame(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]entry
		lost   int // of the last layer
	}{
		{"all kinds", [][]entry{{{name: "d/"}, {name: "d/f", body: "f"}, {name: "h", typ: tar.TypeLink, link: "d/f"}, {name: "e", body: ""}, {name: "s", typ: tar.TypeSymlink, link: noise(1, 70)}}}, 0},
		{"holes", [][]entry{{{name: "a", body: holey(6)}, {name: "z", body: string(make([]byte, 300000))}}}, 0},
		{"replaced", [][]entry{{{name: "a", body: noise(1, 9000)}, {name: "b", body: "b"}, {name: "a", body: "a"}}}, 1},
		{"replaced, with holes", [][]entry{{{name: "a", body: holey(5)}, {name: "a", body: "a"}}}, 1},
		{"replaced, but for a link", [][]entry{{{name: "a", body: "1"}, {name: "l", typ: tar.TypeLink, link: "a"}, {name: "a", body: "2"}}}, 0},
		{"added again", [][]entry{{{name: "a", body: noise(1, 9000)}}, {{name: "a", body: noise(1, 9000), mode: 0o600}}}, 0},
		{"added again and replaced", [][]entry{{{name: "a", body: noise(1, 9000)}}, {{name: "a", body: noise(1, 9000), mode: 0o600}, {name: "a", body: noise(2, 9000)}}}, 1},
		{"added again, of two names", [][]entry{{{name: "a", body: noise(1, 9000)}, {name: "b", typ: tar.TypeLink, link: "a"}}, {{name: "a", body: noise(1, 9000), mode: 0o600}}}, 0},
		{"whiteouts", [][]entry{{{name: "a/b", body: "1"}}, {{name: "a/.wh.b", body: "x"}, {name: "a/b", body: "2"}, {name: "a/.wh..wh..opq"}}}, 0},
	} {
		for _, reuse := range []bool{false, true} {
			im := newImage(t, 128<<20)
			var lost int
			for i, l := range c.layers {
				b := makeTar(t, l...)
				again, n, err := framedApply(im, b, ext4.Limits{}, reuse)
				if err != nil {
					t.Fatalf("%s: layer %d: %v", c.name, i, err)
				}
				if !bytes.Equal(again, b) {
					t.Errorf("%s: layer %d comes out different (contents compared: %v)", c.name, i, reuse)
				}
				lost = n
			}
			if lost != c.lost {
				t.Errorf("%s: %d contents are lost, not %d (contents compared: %v)", c.name, lost, c.lost, reuse)
			}
			im.fsck(t)
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(smallLayer(f), smallLayer(f), false)
	f.Add(makeTar(f, entry{name: "a", body: "1"}, entry{name: "a", body: "2"}), makeTar(f, entry{name: "a", body: "2"}), true)
	f.Fuzz(func(t *testing.T, one, two []byte, reuse bool) {
		im := newImage(t, 128<<20)
		for _, b := range [][]byte{one, two} {
			b = repaired(b)
			lim := ext4.Limits{MaxSparseBytes: 1 << 20, MaxEntries: 1000}
			if _, err := ext4.ReadLayer(bytes.NewReader(b), io.Discard, lim); err != nil {
				return
			}
			again, _, err := framedApply(im, b, lim, reuse)
			if err != nil {
				if _, aerr := im.fs.Apply(&ext4.Layer{}); aerr != nil {
					return // the layer is refused
				}
				t.Fatal(err)
			}
			if !bytes.Equal(again, b) {
				t.Fatalf("%d bytes come out, not the %d that were put in", len(again), len(b))
			}
		}
	})
}
