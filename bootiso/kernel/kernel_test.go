package kernel_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/vicsdk/vic-go/bootiso/kernel"
)

// The tracked image is the one that was built last, and it is no larger than a
// repository can bear.
func TestTrackedImage(t *testing.T) {
	sum, err := os.ReadFile("vmlinuz.sha256")
	if err != nil {
		t.Fatal(err)
	}
	image := kernel.Image()
	if diff := cmp.Diff(fmt.Sprintf("%x  vmlinuz\n", sha256.Sum256(image)), string(sum)); diff != "" {
		t.Errorf("vmlinuz.sha256 (-vmlinuz +file):\n%s", diff)
	}
	if len(image) > 8<<20 {
		t.Errorf("vmlinuz has %d bytes", len(image))
	}
	// kernel_version, Documentation/arch/x86/boot.rst
	at := int(binary.LittleEndian.Uint16(image[0x20e:])) + 0x200
	if got, _, _ := strings.Cut(string(image[at:at+100]), " "); got != kernel.Version {
		t.Errorf("the image says it is %q, Version %q", got, kernel.Version)
	}
}

// The constants, and the script that builds, name the same source.
func TestSource(t *testing.T) {
	script, err := os.ReadFile("build")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^readonly (SOURCE_PACKAGE|SOURCE_VERSION)='(.*)'$`).FindAllStringSubmatch(string(script), -1) {
		got[m[1]] = m[2]
	}
	if diff := cmp.Diff(map[string]string{"SOURCE_PACKAGE": kernel.SourcePackage, "SOURCE_VERSION": kernel.SourceVersion}, got); diff != "" {
		t.Errorf("sources (-kernel.go +build):\n%s", diff)
	}
	if !strings.Contains(kernel.Config(), "# CONFIG_MODULES is not set\n") {
		t.Error("the configuration allows modules")
	}
}

func TestEmbeddedELF(t *testing.T) {
	b, err := kernel.ELF(kernel.Image())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte("Linux version "+kernel.Version+" (")) {
		t.Errorf("no version %s in the kernel", kernel.Version)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	// XEN_ELFNOTE_PHYS32_ENTRY, include/xen/interface/elfnote.h in Linux: the
	// physical address where a PVH loader enters, in 32-bit mode.
	entry, ok := note(t, f, "Xen", 18)
	if !ok || len(entry) < 4 {
		t.Fatalf("no PVH note: % x", entry)
	}
	addr := uint64(binary.LittleEndian.Uint32(entry))
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Paddr && addr < p.Paddr+p.Filesz {
			return
		}
	}
	t.Errorf("no segment has the PVH entry 0x%x", addr)
}

// note returns the descriptor of an ELF note.
func note(t *testing.T, f *elf.File, name string, kind uint32) ([]byte, bool) {
	t.Helper()
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		up := func(n uint32) int { return int(n+3) &^ 3 }
		for len(b) >= 12 {
			nameLen, descLen := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
			desc := b[12+up(nameLen):][:descLen]
			if string(b[12:12+nameLen]) == name+"\x00" && binary.LittleEndian.Uint32(b[8:]) == kind {
				return desc, true
			}
			b = b[12+up(nameLen)+up(descLen):]
		}
	}
	return nil, false
}

// vmlinux is an ELF file with n bytes of what looks like calls to the x86
// filter of xz.
func vmlinux(n int) []byte {
	h := elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: 2, Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	p := elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Filesz: uint64(n), Memsz: uint64(n)}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	_ = binary.Write(&b, binary.LittleEndian, p)
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		b.WriteByte("\xe8\xe8\xe9\x00\x00\xff\xff\x01\x0f\x84\x90\x7f"[r.IntN(12)])
	}
	return b.Bytes()
}

// bzImage puts a payload behind a setup header, one sector of setup code and
// some code that would unpack it.
func bzImage(payload []byte) []byte {
	b := make([]byte, 1024+100, 1024+100+len(payload)+50)
	b[0x1f1] = 1
	copy(b[0x1fe:], "\x55\xaa")
	copy(b[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint32(b[0x248:], 100)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), make([]byte, 50)...)
}

// sized puts the size of what was packed behind it.
func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return sized(w.EncodeAll(b, nil), len(b))
}

func xzed(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 16}.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(b)
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return sized(out.Bytes(), len(b))
}

func TestELF(t *testing.T) {
	want := vmlinux(200_000)
	// Behind the ELF file come relocations.
	whole := append(bytes.Clone(want), bytes.Repeat([]byte("relo"), 1000)...)
	for _, c := range []struct {
		name    string
		payload []byte
	}{
		{"gzip", gzipped(t, whole)},
		{"zstd", zstded(t, whole)},
		{"xz", xzed(t, whole)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := kernel.ELF(bzImage(c.payload))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes in place of %d, or others", len(got), len(want))
			}
		})
	}
}

// The programs that the kernel's build calls are witnesses for the formats,
// with options like those that it gives them (scripts/Makefile.lib, xz_wrap.sh).
func TestELFOfPrograms(t *testing.T) {
	want := vmlinux(1 << 18)
	for _, line := range []string{
		"gzip -n -9",
		"zstd -3 --long=27",
		"xz --check=crc32 --x86 --lzma2=dict=32MiB",
		"xz --check=crc64 --lzma2=dict=1MiB",
		"xz --check=sha256 --x86 --lzma2",
		"xz --check=none --x86 --lzma2",
	} {
		t.Run(line, func(t *testing.T) {
			args := strings.Fields(line)
			if _, err := exec.LookPath(args[0]); err != nil {
				unless(t, err.Error())
			}
			cmd := exec.Command(args[0], append(args[1:], "-c")...)
			cmd.Stdin = bytes.NewReader(want)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if args[0] != "gzip" {
				packed = sized(packed, len(want))
			}
			got, err := kernel.ELF(bzImage(packed))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("other bytes than were packed")
			}
		})
	}
}

// unless skips for want of a tool, which is a failure where CI runs the tests.
func unless(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func TestELFErrors(t *testing.T) {
	good := vmlinux(5000)
	edit := func(b []byte, at int, with string) []byte {
		b = bytes.Clone(b)
		copy(b[at:], with)
		return b
	}
	packed := func(magic string) []byte { return bzImage(sized(append([]byte(magic), make([]byte, 100)...), 1000)) }
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "too few for a setup header"},
		{"no magic", edit(bzImage(zstded(t, good)), 0x202, "hdrs"), "no setup header"},
		{"old protocol", edit(bzImage(zstded(t, good)), 0x206, "\x07\x02"), "boot protocol 2.07"},
		{"payload beyond the end", edit(bzImage(zstded(t, good)), 0x248, "\xff\xff\xff\xff"), "payload_offset"},
		{"endless payload", edit(bzImage(zstded(t, good)), 0x24c, "\xff\xff\xff\xff"), "payload_length"},
		{"no payload", bzImage(nil), "payload_length"},
		{"tiny payload", bzImage([]byte("tiny")), "too few"},
		{"lz4", packed("\x02\x21\x4c\x18"), "lz4"},
		{"bzip2", packed("BZh9"), "bzip2"},
		{"lzma", packed("\x5d\x00\x00\x01"), "lzma"},
		{"lzo", packed("\x89LZO"), "lzo"},
		{"not packed", bzImage(sized(good, len(good))), "no compression"},
		{"unknown", packed("what"), "unknown format that begins with 77 68 61 74"},
		{"larger than allowed", bzImage(sized(make([]byte, 5<<20), 256<<20+1)), "at most 268435456"},
		{"small payload, large kernel", bzImage(sized(zstded(t, good), 200<<20)), "64 times"},
		{"zstd that is longer", bzImage(sized(zstded(t, good)[:len(zstded(t, good))-4], 5000)), "zstd"},
		{"zstd that is shorter", bzImage(sized(zstded(t, good)[:len(zstded(t, good))-4], 6000)), "5120 bytes in place of 6000"},
		{"zstd cut off", bzImage(sized(zstded(t, good)[:500], 5120)), "zstd"},
		{"gzip cut off", bzImage(sized(gzipped(t, good)[:500], 5120)), "gzip: after"},
		{"gzip that is longer", bzImage(sized(gzipped(t, good), 5000)), "more than the 5000 bytes"},
		{"xz cut off", bzImage(sized(xzed(t, good)[:500], 5120)), "xz: after"},
		{"xz with a wrong header", bzImage(edit(xzed(t, good), 7, "\x04")), "stream header: wrong CRC32"},
		{"xz with a wrong block header", bzImage(edit(xzed(t, good), 14, "\x04")), "block header: wrong CRC32"},
		{"xz with wrong contents", bzImage(edit(xzed(t, good), 100, "wrong")), "xz"},
		{"not ELF", bzImage(zstded(t, bytes.Repeat([]byte("text"), 100))), "not an ELF file"},
		{"32 bits", bzImage(zstded(t, edit(good, 4, "\x01"))), "not an ELF file for x86-64"},
		{"another machine", bzImage(zstded(t, edit(good, 18, "\xb7"))), "not an ELF file for x86-64"},
		{"no segment", bzImage(zstded(t, edit(good, 56, "\x00"))), "0 program headers"},
		{"headers beyond the end", bzImage(zstded(t, edit(good, 32, "\xff\xff\xff\xff\xff\xff\xff\xff"))), "program headers"},
		{"segment beyond the end", bzImage(zstded(t, edit(good, 64+32, "\xff\xff\xff\xff\xff\xff\xff\xff"))), "segment 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := kernel.ELF(c.in)
			if err == nil || b != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d bytes, error %v; want one with %q", len(b), err, c.want)
			}
		})
	}
}

func FuzzELF(f *testing.F) {
	small := vmlinux(300)
	for _, p := range [][]byte{gzipped(f, small), zstded(f, small), xzed(f, small)} {
		f.Add(bzImage(p))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := kernel.ELF(in)
		if err != nil {
			return
		}
		// What came out is whole by itself.
		again, err := kernel.ELF(bzImage(gzipped(t, b)))
		if len(b) > 64 && err != nil && !strings.Contains(err.Error(), "64 times") {
			t.Fatalf("unpacked once, then: %v", err)
		}
		if err == nil && !bytes.Equal(b, again) {
			t.Fatalf("%d bytes, packed and unpacked %d", len(b), len(again))
		}
	})
}
