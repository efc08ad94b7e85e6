package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The demo runs to its end, and finds nothing left.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	vic := filepath.Join(t.TempDir(), "vic")
	for _, args := range [][]string{{"build", "-o", vic, "../../cmd/vic"}, {"run", ".", "--vic", vic}} {
		if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
}
