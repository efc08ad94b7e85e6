package vsphere_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/vicsdk/vic-go/internal/vsphere"
)

// A file gives its bytes in whatever order they are asked for; read from front
// to end it takes few requests.
func TestRemoteFile(t *testing.T) {
	const size = 40<<20 + 123
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	requests := 0
	open := func() *vsphere.RemoteFile {
		requests = 0
		return vsphere.NewRemoteFile(size, func(off, n int64) ([]byte, error) {
			requests++
			if off < 0 || n <= 0 || off+n > size {
				t.Fatalf("asked for %d bytes at %d", n, off)
			}
			return bytes.Clone(content[off : off+n]), nil
		})
	}
	got, err := io.ReadAll(io.NewSectionReader(open(), 0, size))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("front to end: %d bytes, %v", len(got), err)
	}
	if requests > 20 {
		t.Errorf("front to end: %d requests", requests)
	}
	f := open()
	f.Keep(1 << 20)
	if got, err = io.ReadAll(io.NewSectionReader(f, 0, size)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("keeping little: %d bytes, %v", len(got), err)
	}
	f = open()
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 1<<20)
	for range 300 {
		off, n := rng.Int64N(size), 1+rng.IntN(len(p))
		k, err := f.ReadAt(p[:n], off)
		want := content[off:min(off+int64(n), size)]
		if !bytes.Equal(p[:k], want) || (err == io.EOF) != (k < n) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v", n, off, k, err)
		}
	}
	// Two readers that alternate do not spoil it for each other.
	f = open()
	for off := int64(0); off < 16<<20; off += 64 << 10 {
		for _, at := range []int64{off, off + 20<<20} {
			if _, err := f.ReadAt(p[:64<<10], at); err != nil || !bytes.Equal(p[:64<<10], content[at:at+64<<10]) {
				t.Fatalf("at %d: %v", at, err)
			}
		}
	}
	if requests > 30 {
		t.Errorf("two readers: %d requests", requests)
	}
}
