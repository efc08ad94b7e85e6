package engine_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testlab"
)

// sums hashes the files of all layers, the holes of the thin base left out.
func sums(t *testing.T, e *testlab.Env) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range e.Files(t) {
		if !strings.HasPrefix(f, "vic/images/layers/") || strings.HasSuffix(f, "-flat.vmdk") {
			continue
		}
		r, err := os.Open(filepath.Join(e.Datastore(), f))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		_, err = io.Copy(h, r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[f] = hex.EncodeToString(h.Sum(nil))
	}
	if len(out) == 0 {
		t.Fatal("no layers")
	}
	return out
}
