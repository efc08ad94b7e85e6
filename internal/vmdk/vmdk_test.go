package vmdk_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is needed on CI", p)
			}
			t.Skipf("%s is not installed", p)
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func encode(t testing.TB, d *vmdk.Descriptor) []byte {
	t.Helper()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDescriptorRoundTrip(t *testing.T) {
	for name, d := range map[string]*vmdk.Descriptor{
		"flat":  vmdk.FlatDescriptor(8<<30, 0xfffffffe, "base-flat.vmdk"),
		"child": vmdk.LayerDescriptor(8<<30, 1, 0xdeadbeef, "../base/disk.vmdk", "disk-delta.vmdk"),
	} {
		got, err := vmdk.ParseDescriptor(encode(t, d))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if got.Bytes() != 8<<30 {
			t.Errorf("%s: %d bytes", name, got.Bytes())
		}
	}
}

func TestParseDescriptorRefuses(t *testing.T) {
	ok := string(encode(t, vmdk.LayerDescriptor(1<<30, 1, 2, "p.vmdk", "e.vmdk")))
	for _, tc := range []struct{ old, with, want string }{
		{"# Disk DescriptorFile", "# Disk", "does not start"},
		{"CID=00000001\n", "\n", "CID is missing"},
		{"CID=00000001\n", "CID=123456789\n", "CID"},
		{"CID=00000001\n", "CID=1\nCID=2\n", "twice"},
		{"version=1", "version=9", "version"},
		{"RW 2097152", "RW -1", "sectors"},
		{"RW 2097152", "RW 99999999999999999", "sectors"},
		{"RW 2097152 VMFSSPARSE \"e.vmdk\"", "", "no extent"},
		{"\"e.vmdk\"", "\"e.vmdk", "quote"},
		{"\"e.vmdk\"", "", "names no file"},
		{"parentFileNameHint=\"p.vmdk\"\n", "", "parentFileNameHint is missing"},
		{"createType=\"vmfsSparse\"\n", "", "createType is missing"},
		{"\"e.vmdk\"\n", "\"e.vmdk\"\nRW\v8\tVMFS /etc/x=\n", "extent"},
		{"isNativeSnapshot", "garbage\nisNativeSnapshot", "neither"},
	} {
		if !strings.Contains(ok, tc.old) {
			t.Fatalf("%q is not in\n%s", tc.old, ok)
		}
		if _, err := vmdk.ParseDescriptor([]byte(strings.Replace(ok, tc.old, tc.with, 1))); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q for %q: %v, want %q", tc.with, tc.old, err, tc.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	d := vmdk.LayerDescriptor(1<<30, 1, 2, "p\".vmdk", "e.vmdk")
	if _, err := d.Encode(); err == nil {
		t.Error("a quote in parentFileNameHint is accepted")
	}
	d = vmdk.FlatDescriptor(1<<30, 1, "e\nCID=2")
	if _, err := d.Encode(); err == nil {
		t.Error("a line break in a file name is accepted")
	}
}

// pattern is n bytes that tell where they are from.
func pattern(tag byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = tag + byte(i/vmdk.SectorSize)
	}
	return b
}

// TestLayerAndChild builds flat base, read-only layer and writable child, has QEMU write to the
// child and QEMU and our reader read it.
func TestLayerAndChild(t *testing.T) {
	need(t, "qemu-img", "qemu-io")
	const size = 300 << 20
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("base.vmdk", encode(t, vmdk.FlatDescriptor(size, 1, "base-flat.vmdk")))
	write("base-flat.vmdk", nil)
	if err := os.Truncate(file("base-flat.vmdk"), size); err != nil {
		t.Fatal(err)
	}

	want := make([]byte, size)
	f, err := os.Create(file("layer-delta.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := vmdk.NewLayerWriter(f, size)
	if err != nil {
		t.Fatal(err)
	}
	late := pattern(1, 3<<20)
	if _, err := w.Write(late[:1<<20]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(late[1<<20:]); err != nil {
		t.Fatal(err)
	}
	early := pattern(100, 4096)
	if _, err := w.WriteAt(early, size-4096); err != nil {
		t.Fatal(err)
	}
	copy(want[size-4096:], early)
	// The late data in two pieces, across the border of grain tables.
	for _, b := range []struct{ rel, lba, n uint64 }{{0, 4000, 2048}, {2048, 500000, 4096}} {
		if err := w.Bind(b.rel, b.lba, b.n); err != nil {
			t.Fatal(err)
		}
		copy(want[b.lba*512:], late[b.rel*512:(b.rel+b.n)*512])
	}
	for name, err := range map[string]error{
		"beyond the data": w.Bind(6100, 0, 100), "beyond the disk": w.Bind(0, size/512-1, 2), "overflow": w.Bind(1<<63, 1<<63, 1<<63),
	} {
		if err == nil {
			t.Errorf("Bind %s is accepted", name)
		}
	}
	n, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := f.Stat(); st.Size() != n {
		t.Errorf("Finish says %d bytes, the file has %d", n, st.Size())
	}
	if _, err := w.Write(early); err == nil {
		t.Error("Write after Finish is accepted")
	}
	write("layer.vmdk", encode(t, vmdk.LayerDescriptor(size, 2, 1, "base.vmdk", "layer-delta.vmdk")))

	var child bytes.Buffer
	if err := vmdk.WriteChild(&child, size); err != nil {
		t.Fatal(err)
	}
	write("child-delta.vmdk", child.Bytes())
	write("child.vmdk", encode(t, vmdk.LayerDescriptor(size, 3, 2, "layer.vmdk", "child-delta.vmdk")))

	compare := func(top string) {
		t.Helper()
		run(t, "qemu-img", "check", "-f", "vmdk", file(top))
		run(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", file(top), file("flat.raw"))
		got, err := os.ReadFile(file("flat.raw"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: QEMU reads something else than was written", top)
		}
	}
	compare("layer.vmdk")
	compare("child.vmdk")
	run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 0x77 123456512 1M", "-c", "write -P 0x78 0 512", "-c", "write -P 0x79 314572288 512", "-c", "flush", file("child.vmdk"))
	fill := func(at, n int, v byte) {
		for i := at; i < at+n; i++ {
			want[i] = v
		}
	}
	fill(123456512, 1<<20, 0x77)
	fill(0, 512, 0x78)
	fill(314572288, 512, 0x79)
	compare("child.vmdk")

	// Our reader on what QEMU wrote: exactly the grains it touched.
	cf, err := os.Open(file("child-delta.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer cf.Close()
	st, _ := cf.Stat()
	s, err := vmdk.OpenCOWD(cf, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	err = s.Runs(func(off int64, r vmdk.Run) error {
		b := make([]byte, r.Bytes)
		if err := s.ReadData(b, r.Offset); err != nil {
			return err
		}
		if !bytes.Equal(b, want[off:off+r.Bytes]) {
			t.Errorf("run at %d, %d bytes: not what was written", off, r.Bytes)
		}
		total += r.Bytes
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if total != 19*64<<10 {
		t.Errorf("the child holds %d bytes, want %d", total, 19*64<<10)
	}
	if a, err := s.Allocated(); err != nil || a != total {
		t.Errorf("Allocated = %d, %v", a, err)
	}
}

// TestKDMV reads a disk that qemu-img made.
func TestKDMV(t *testing.T) {
	need(t, "qemu-img", "qemu-io")
	name := filepath.Join(t.TempDir(), "d.vmdk")
	run(t, "qemu-img", "create", "-f", "vmdk", name, "100M")
	run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 0x5a 50M 128k", name)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	s, d, err := vmdk.OpenKDMV(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if d.CreateType != vmdk.TypeMonolithicSparse || d.Bytes() != 100<<20 {
		t.Errorf("descriptor %+v", d)
	}
	r, err := s.Map(50<<20 + 512)
	if err != nil || r.State != vmdk.Data || r.Bytes != 128<<10-512 {
		t.Fatalf("Map = %+v, %v", r, err)
	}
	b := make([]byte, r.Bytes)
	if err := s.ReadData(b, r.Offset); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{0x5a}, len(b))) {
		t.Errorf("wrong data, %v", err)
	}
	if r, err := s.Map(0); err != nil || r.State != vmdk.Absent {
		t.Errorf("Map(0) = %+v, %v", r, err)
	}
	run(t, "qemu-img", "convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized", name, name+"2")
	f2, err := os.Open(name + "2")
	if err != nil {
		t.Fatal(err)
	}
	defer f2.Close()
	st, _ = f2.Stat()
	if _, _, err := vmdk.OpenKDMV(f2, st.Size()); err == nil || !strings.Contains(err.Error(), "streamOptimized") {
		t.Errorf("streamOptimized: %v", err)
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add(encode(f, vmdk.FlatDescriptor(8<<30, 1, "a-flat.vmdk")))
	f.Add(encode(f, vmdk.LayerDescriptor(8<<30, 3, 1, "a.vmdk", "b-delta.vmdk")))
	f.Add([]byte("# Disk DescriptorFile\nCID=1\ncreateType=\"x\"\nRW 8 FLAT \"f\" 16\nRDONLY 9 ZERO\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		d, err := vmdk.ParseDescriptor(p)
		if err != nil {
			return
		}
		b, err := d.Encode()
		if err != nil {
			t.Fatalf("what was parsed cannot be written: %v", err)
		}
		again, err := vmdk.ParseDescriptor(b)
		if err != nil {
			t.Fatalf("what was written cannot be parsed: %v\n%s", err, b)
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Error(diff)
		}
	})
}

type bufferAt struct{ b []byte }

func (b *bufferAt) WriteAt(p []byte, off int64) (int, error) {
	if n := off + int64(len(p)); n > int64(len(b.b)) {
		b.b = append(b.b, make([]byte, n-int64(len(b.b)))...)
	}
	return copy(b.b[off:], p), nil
}

func (b *bufferAt) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(b.b).ReadAt(p, off)
}

// TestUnboundData leaves out data in many ways: what has no place takes no room, and the rest is
// where it belongs.
func TestUnboundData(t *testing.T) {
	const size = 16 << 20
	for _, tc := range []struct {
		name    string
		writes  []int // sectors each
		bind    []bool
		bytes   int64 // sectors of data in the extent
		further bool  // metadata follows
	}{
		{"all bound", []int{8, 16, 8}, []bool{true, true, true}, 32, false},
		{"nothing bound", []int{8, 4096}, []bool{false, false}, 0, true},
		{"first left out", []int{3000, 8, 100}, []bool{false, true, true}, 108, true},
		{"last left out", []int{8, 100, 3000}, []bool{true, true, false}, 108, true},
		{"every other", []int{1, 1, 1, 63, 64, 65, 2500, 2500}, []bool{true, false, true, false, true, false, true, false}, 2566, true},
		{"too little to move for", []int{5000, 10, 5000}, []bool{true, false, true}, 10010, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var f bufferAt
			w, err := vmdk.NewLayerWriter(&f, size)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, size)
			var all []byte
			rel, lba := uint64(0), uint64(16)
			for i, n := range tc.writes {
				p := pattern(byte(i+1), n*512)
				all = append(all, p...)
				if _, err := w.Write(p); err != nil {
					t.Fatal(err)
				}
				if tc.bind[i] {
					if err := w.Bind(rel, lba, uint64(n)); err != nil {
						t.Fatal(err)
					}
					copy(want[lba*512:], p)
				}
				rel, lba = rel+uint64(n), lba+uint64(n)+3
			}
			got := make([]byte, len(all)+10)
			if n, err := w.Data().ReadAt(got, 0); n != len(all) || err != io.EOF || !bytes.Equal(got[:n], all) {
				t.Errorf("Data reads %d bytes of %d, %v", n, len(all), err)
			}
			if n, err := w.Data().ReadAt(got[:7], int64(len(all))-9); n != 7 || err != nil || !bytes.Equal(got[:7], all[len(all)-9:len(all)-2]) {
				t.Errorf("Data near the end: %d bytes, %v", n, err)
			}
			if tc.further {
				p := pattern(99, 4096)
				if _, err := w.WriteAt(p, 0); err != nil {
					t.Fatal(err)
				}
				copy(want, p)
				tc.bytes += 8
			}
			n, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			s, err := vmdk.OpenCOWD(bytes.NewReader(f.b[:n]), n)
			if err != nil {
				t.Fatal(err)
			}
			tables := map[int64]bool{}
			disk := make([]byte, size)
			if err := s.Runs(func(off int64, r vmdk.Run) error {
				for o := off; o < off+r.Bytes; o += 512 {
					tables[o/(4096*512)] = true
				}
				return s.ReadData(disk[off:off+r.Bytes], r.Offset)
			}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(disk, want) {
				t.Error("the disk is not what was bound")
			}
			if got := n/512 - 5 - int64(len(tables))*32; got != tc.bytes {
				t.Errorf("%d sectors of data in the extent, want %d", got, tc.bytes)
			}
		})
	}
}

func FuzzCOWD(f *testing.F) {
	var layer bufferAt
	w, err := vmdk.NewLayerWriter(&layer, 5<<20)
	if err != nil {
		f.Fatal(err)
	}
	w.WriteAt(pattern(1, 4096), 3<<20)
	if _, err := w.Finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(layer.b)
	var child bytes.Buffer
	if err := vmdk.WriteChild(&child, 5<<20); err != nil {
		f.Fatal(err)
	}
	f.Add(child.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, err := vmdk.OpenCOWD(bytes.NewReader(p), int64(len(p))); err == nil {
			readAll(t, s)
		}
	})
}

func FuzzKDMV(f *testing.F) {
	k := make([]byte, 64<<10)
	copy(k, "KDMV\x01\x00\x00\x00\x01\x00\x00\x00")
	for at, v := range map[int]byte{13: 8, 20: 128, 28: 1, 36: 2, 45: 2, 56: 3, 73: '\n', 74: ' ', 75: '\r', 76: '\n', 3 * 512: 4} {
		k[at] = v
	}
	k[4*512] = 16
	copy(k[512:], "# Disk DescriptorFile\nCID=1\ncreateType=\"monolithicSparse\"\nRW 2048 SPARSE \"k.vmdk\"\n")
	if _, _, err := vmdk.OpenKDMV(bytes.NewReader(k), int64(len(k))); err != nil {
		f.Fatal(err)
	}
	f.Add(k)
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, _, err := vmdk.OpenKDMV(bytes.NewReader(p), int64(len(p))); err == nil {
			readAll(t, s)
		}
	})
}

// readAll reads the first runs of an image and checks that they lie on the disk and in the file.
func readAll(t *testing.T, s *vmdk.Sparse) {
	n := 0
	for off := int64(0); off < s.Size() && n < 10000; n++ {
		run, err := s.Map(off)
		if err != nil {
			return
		}
		if run.Bytes <= 0 || off+run.Bytes > s.Size() {
			t.Fatalf("run %+v at %d of %d", run, off, s.Size())
		}
		if run.State == vmdk.Data {
			if err := s.ReadData(make([]byte, min(run.Bytes, 4096)), run.Offset); err != nil {
				t.Fatalf("a run that was found cannot be read: %v", err)
			}
		}
		off += run.Bytes
	}
}
