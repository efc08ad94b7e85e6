package imagestore_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testlab"
)

// An index that is lost, cut short or damaged is made anew, byte for byte, and
// the next layer goes onto it.
func TestIndexIsMadeAnew(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, 0), newMemory()
	m.tagImage("a", nil, "one", "two")
	a := pull(t, s, m, "a")
	index := filepath.Join(e.Datastore(), "vic/images/layers", s.LayerDirs(a)[1], "index")
	want, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(want)
	damaged[len(damaged)/2] ^= 1
	for i, bad := range [][]byte{nil, {}, want[:len(want)/2], damaged} {
		if bad == nil {
			err = os.Remove(index)
		} else {
			err = os.WriteFile(index, bad, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		tag := fmt.Sprint("b", i)
		m.tagImage(tag, nil, "one", "two", tag)
		b := pull(t, s, m, tag)
		got, err := os.ReadFile(index)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("case %d: an index of %d bytes, not the same %d: %v", i, len(got), len(want), err)
		}
		checkChain(t, e, b.Root().Path)
	}
	// Without the disk nothing can be made, and the error says both.
	if err := os.Remove(index); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(strings.Replace(index, "/index", "/layer-delta.vmdk", 1), 100); err != nil {
		t.Fatal(err)
	}
	m.tagImage("c", nil, "one", "two", "c")
	if _, err := s.Pull(t.Context(), m, repo+"c", nil); err == nil || !strings.Contains(err.Error(), "cannot be made from the disk") {
		t.Error(err)
	}
}
