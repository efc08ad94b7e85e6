package loader_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/bootiso/loader"
)

// TestSource: loader.bin is what the GNU assembler makes of loader.S. With
// UPDATE_LOADER=1 in the environment the file is written instead.
func TestSource(t *testing.T) {
	for _, tool := range []string{"as", "ld", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip("no ", tool)
		}
	}
	dir := t.TempDir()
	object, program, binary := filepath.Join(dir, "loader.o"), filepath.Join(dir, "loader"), filepath.Join(dir, "loader.bin")
	for _, args := range [][]string{
		{"as", "--32", "--fatal-warnings", "-o", object, "loader.S"},
		{"ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "_start", "-o", program, object},
		{"objcopy", "-O", "binary", "-j", ".text", program, binary},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	got, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("UPDATE_LOADER") != "" {
		if err := os.WriteFile("loader.bin", got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got, loader.Image(loader.Params{})) {
		t.Error("loader.bin is not what loader.S assembles to: UPDATE_LOADER=1 go test ./bootiso/loader")
	}
}

func TestParams(t *testing.T) {
	want := loader.Params{Kernel: loader.Extent{LBA: 1, Size: 2}, Initrd: loader.Extent{LBA: 1 << 31, Size: 1<<32 - 1}, Cmdline: loader.Extent{LBA: 5, Size: 6}}
	image := loader.Image(want)
	if len(image) != loader.Size {
		t.Errorf("%d bytes", len(image))
	}
	got, err := loader.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"short", image[:100], "100 bytes, not 2048"},
		{"magic", make([]byte, loader.Size), "not vic's own"},
		{"version", append(append(bytes.Clone(image[:72]), 9), image[73:]...), "version 9"},
		{"cmdline", loader.Image(loader.Params{Cmdline: loader.Extent{Size: loader.MaxCmdline + 1}}), "2048 bytes, more than 2047"},
	} {
		if _, err := loader.Parse(tt.image); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
