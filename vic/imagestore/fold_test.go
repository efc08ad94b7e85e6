package imagestore_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// manyLayers is an image whose layers add, replace and delete files of those
// below them.
func manyLayers(t *testing.T, n int) string {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	im := &testimage.Image{}
	im.Config.Cmd = []string{"/bin/true"}
	for i := range n {
		l := testimage.NewLayer()
		l.AddDir(".", nil)
		for k := range 7 {
			l.AddDir(fmt.Sprintf("dir%d", k), nil)
		}
		body := make([]byte, 4096*(1+rnd.IntN(20))+rnd.IntN(4096))
		for j := range body {
			body[j] = byte(rnd.Uint32())
		}
		l.AddFile(fmt.Sprintf("dir%d/own", i%7), body, nil)
		l.AddFile(fmt.Sprintf("dir%d/of%d", i%7, i), body[:len(body)/2], nil)
		l.AddFile("all", []byte(strings.Repeat(fmt.Sprintf("layer %d\n", i), 100*(i%5+1))), nil)
		if i >= 9 {
			l.AddFile(fmt.Sprintf("dir%d/.wh.of%d", (i-9)%7, i-9), nil, nil)
		}
		im.Steps = append(im.Steps, testimage.Step{Layer: l, CreatedBy: fmt.Sprint("layer ", i)})
	}
	dir := t.TempDir()
	if _, err := im.Write(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An image of more layers than a chain may have disks is folded: no chain is
// longer than the bound, and every layer has the tree that it should.
func TestFoldedChain(t *testing.T) {
	long(t)
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount and to extract owners")
		}
		t.Skip("needs root, to mount and to extract owners")
	}
	const n = 46 // folded at the 27th layer and at the 41st
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	eng := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20})
	layout := manyLayers(t, n)
	for _, upto := range []int{27, 40, n} {
		cut := truncate(t, layout, upto)
		img, err := eng.Pull(t.Context(), e.Push(t, cut, fmt.Sprintf("many:upto%d", upto)), nil)
		if err != nil {
			t.Fatal(err)
		}
		top := e.Local(t, img.Root().Path)
		chain := strings.Count(command(t, "qemu-img", "info", "--backing-chain", top), "image: ")
		// The disks below a container's: each fold leaves fourteen and its own.
		if want := map[int]int{26: 28, 27: 15, 28: 16, 40: 28, 41: 15, n: 20}[upto]; chain != want {
			t.Errorf("%d layers: a chain of %d disks, want %d", upto, chain, want)
		}
		for _, d := range treecmp.Diff(reference(t, cut), flattened(t, top)) {
			t.Errorf("%d layers: %v", upto, d)
		}
	}
	// The same bytes in a store that has nothing, in one go.
	name := e.Push(t, layout, "many:all")
	img, err := eng.Pull(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	place := e.Engine.VCH().Images()
	place.Dir += "-other"
	other, err := imagestore.Open(t.Context(), e.Client, place, &imagestore.Options{Bytes: 128 << 20, Workers: 8})
	if err != nil {
		t.Fatal(err)
	}
	same, err := other.Pull(t.Context(), repository(t, name), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	var extents [2][]byte
	for i, d := range []string{img.Root().Path, same.Root().Path} {
		extents[i], err = os.ReadFile(strings.TrimSuffix(e.Local(t, d), ".vmdk") + "-delta.vmdk")
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(extents[0], extents[1]) {
		t.Error("the same layers gave other bytes in another store")
	}
}
