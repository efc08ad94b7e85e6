package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/bootiso"
)

// TestBootFiles: a CD's parts are taken out once for each image, and a CD that
// cannot be taken apart is left to the BIOS.
func TestBootFiles(t *testing.T) {
	l := newTestLab(t)
	s := l.stores["datastore1"]
	if err := s.root.Mkdir("vm", 0o700); err != nil {
		t.Fatal(err)
	}
	hw := &hardware{dir: location{s, "vm"}, cds: []location{{s, "boot.iso"}}}
	put := func(kernel string) {
		t.Helper()
		b := bytes.Repeat([]byte(kernel), 4096)
		b[0x1fe], b[0x1ff] = 0x55, 0xaa
		copy(b[0x202:], "HdrS")
		b[0x206], b[0x207], b[0x211], b[0x1f1] = 15, 2, 1, 1 // protocol 2.15, loaded high, one sector of setup
		err := bootiso.Build(t.Context(), bootiso.Options{
			Kernel: b, Tether: []byte("\x7fELF"), Cmdline: kernel, Out: hw.cds[0].file(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stat := func(b *bootFiles) os.FileInfo {
		t.Helper()
		st, err := os.Stat(b.kernel)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	boot := func() *bootFiles {
		t.Helper()
		b, err := l.bootFilesOf(hw)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put("one")
	first := boot()
	if first == nil || !strings.HasSuffix(first.append, " one") {
		t.Fatalf("%+v", first)
	}
	was := stat(first)
	if d := cmp.Diff(first, boot(), cmp.AllowUnexported(bootFiles{})); d != "" {
		t.Error(d)
	}
	if !os.SameFile(was, stat(first)) {
		t.Error("the parts were taken out twice")
	}
	put("two")
	second := boot()
	if second == nil || second.kernel == first.kernel || !strings.HasSuffix(second.append, " two") {
		t.Errorf("%+v after %+v", second, first)
	}
	if b, err := os.ReadFile(second.kernel); err != nil || !bytes.HasPrefix(b, []byte("twotwo")) {
		t.Errorf("kernel %.9q, %v", b, err)
	}
	if err := os.WriteFile(hw.cds[0].file(), []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b := boot(); b != nil {
		t.Errorf("no image gave %+v", b)
	}
	if b, err := os.ReadFile(location{s, "vm/vmware.log"}.file()); err != nil || !strings.Contains(string(b), "the BIOS boots [datastore1] boot.iso: bootiso: not an ISO 9660 image") {
		t.Errorf("vmware.log: %v\n%s", err, b)
	}
	left, _ := filepath.Glob(filepath.Join(l.run.Name(), "boot-*"))
	if len(left) != 2 {
		t.Errorf("%q, want two images' parts", left)
	}
}
