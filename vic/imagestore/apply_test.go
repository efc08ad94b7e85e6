package imagestore_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/lab"
)

// native is a lab whose datastore takes no uploaded delta disks.
func native(o *lab.Options) { o.NativeDatastores = []string{"datastore1"} }

// helpers lists what there is of helper VMs: in the inventory, and on the
// datastore.
func helpers(t *testing.T, e *testlab.Env) []string {
	t.Helper()
	out := vmNames(t, e)
	dirs, err := filepath.Glob(filepath.Join(e.Datastore(), "vic-helper-*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(out, dirs...)
}

func vmNames(t *testing.T, e *testlab.Env) []string {
	t.Helper()
	var out []string
	for _, n := range inventory(t, e) {
		if strings.HasPrefix(n, "vic-helper-") {
			out = append(out, n)
		}
	}
	return out
}

// One helper VM writes all layers of a pull, and is gone after it.
func TestApply(t *testing.T) {
	e := testlab.Start(t, testlab.Options{Lab: native, Images: &imagestore.Options{Bytes: small}})
	m := newMemory()
	m.tagImage("three", nil, "one", "two", "three")
	img, err := e.Engine.Images().Pull(t.Context(), m, "registry.example/x:three", nil)
	if err != nil {
		t.Fatal(err)
	}
	if left := helpers(t, e); len(left) > 0 {
		t.Errorf("helpers were left: %v", left)
	}
	for _, f := range e.Files(t) {
		t.Log(f)
	}
	_ = img
}
