package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxKernel bounds the unpacked kernel.
	maxKernel = 256 << 20
	// maxRatio bounds how often larger it is than the payload, so that a
	// small file cannot ask for much memory. Kernels are 3 to 6 times larger.
	maxRatio = 64
)

// Offsets in the setup header (Documentation/arch/x86/boot.rst in Linux, "The
// Real-Mode Kernel Header"); numbers are little endian.
const (
	offSetupSects    = 0x1f1
	offBootFlag      = 0x1fe
	offMagic         = 0x202
	offProtocol      = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250

	sector      = 512
	minProtocol = 0x0208 // the first with a payload
)

// ELF takes the kernel proper, an x86-64 ELF file, out of a bzImage. QEMU's
// -kernel starts such a file by its PVH note, without a decompressor and
// without moving it: KASLR then places everything but the kernel's text.
//
// The payload may be packed by gzip, xz or zstd; any other format is an error
// that names it. Unpacked it may have 256 MiB, and no more than that plus the
// unpacker's state is allocated, whatever the input. What the image carries
// behind the ELF file, relocations, is cut off.
func ELF(bzImage []byte) ([]byte, error) {
	p, err := payload(bzImage)
	if err != nil {
		return nil, fmt.Errorf("kernel: bzImage: %w", err)
	}
	b, err := unpack(p)
	if err != nil {
		return nil, fmt.Errorf("kernel: bzImage: payload: %w", err)
	}
	n, err := elfSize(b)
	if err != nil {
		return nil, fmt.Errorf("kernel: bzImage: payload: %w", err)
	}
	return b[:n:n], nil
}

// payload finds the packed kernel by the boot protocol's header.
func payload(b []byte) ([]byte, error) {
	if len(b) < headerEnd {
		return nil, fmt.Errorf("%d bytes are too few for a setup header", len(b))
	}
	le := binary.LittleEndian
	if le.Uint16(b[offBootFlag:]) != 0xaa55 || string(b[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New(`no setup header: "HdrS" and the boot flag are missing`)
	}
	if v := le.Uint16(b[offProtocol:]); v < minProtocol {
		return nil, fmt.Errorf("boot protocol %d.%02d has no payload; need 2.08", v>>8, v&0xff)
	}
	sects := int64(b[offSetupSects])
	if sects == 0 {
		sects = 4 // "for backwards compatibility", of Linux 1
	}
	from := (1+sects)*sector + int64(le.Uint32(b[offPayload:]))
	n := int64(le.Uint32(b[offPayloadLength:]))
	if n == 0 || from+n > int64(len(b)) {
		return nil, fmt.Errorf("payload_offset and payload_length name bytes %d to %d of %d", from, from+n, len(b))
	}
	return b[from : from+n], nil
}

// unpack decompresses a payload. Its last four bytes are the unpacked size in
// all formats: gzip ends so by itself, and behind the others the kernel's
// build puts it (scripts/Makefile.lib, size_append).
func unpack(p []byte) ([]byte, error) {
	if len(p) < 16 {
		return nil, fmt.Errorf("%d bytes are too few", len(p))
	}
	body := p[:len(p)-4]
	size := int64(binary.LittleEndian.Uint32(p[len(p)-4:]))
	if size > maxKernel || size > int64(len(p))*maxRatio {
		return nil, fmt.Errorf("%d bytes are to become %d; at most %d, and %d times as many, are allowed", len(p), size, maxKernel, maxRatio)
	}
	switch {
	case hasMagic(p, "\x1f\x8b"):
		r, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		r.Multistream(false)
		b, err := readExactly(r, size)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return b, nil
	case hasMagic(p, "\x28\xb5\x2f\xfd"):
		b, err := unzstd(body, size)
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return b, nil
	case hasMagic(p, xzMagic):
		b, err := unxz(body, size)
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return b, nil
	}
	for _, f := range []struct{ magic, name string }{
		{"\x02\x21\x4c\x18", "lz4 (legacy frames)"}, {"BZh", "bzip2"}, {"\x5d\x00\x00", "lzma"}, {"\x89LZO", "lzo"},
		{elf.ELFMAG, "no compression"},
	} {
		if hasMagic(p, f.magic) {
			return nil, fmt.Errorf("packed with %s, which is not supported; gzip, xz and zstd are", f.name)
		}
	}
	return nil, fmt.Errorf("unknown format that begins with % x; gzip, xz and zstd are supported", p[:4])
}

func hasMagic(p []byte, magic string) bool { return bytes.HasPrefix(p, []byte(magic)) }

func unzstd(p []byte, size int64) ([]byte, error) {
	// The kernel is packed with a window of 128 MiB; decoding into one
	// buffer of known size needs no window beside it.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b, err := d.DecodeAll(p, make([]byte, 0, size))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != size {
		return nil, fmt.Errorf("%d bytes in place of %d", len(b), size)
	}
	return b, nil
}

// readExactly reads size bytes, behind which r must end.
func readExactly(r io.Reader, size int64) ([]byte, error) {
	b := make([]byte, size)
	if n, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	switch n, err := io.ReadFull(r, make([]byte, 1)); {
	case n != 0:
		return nil, fmt.Errorf("more than the %d bytes announced", size)
	case err != io.EOF:
		return nil, err
	}
	return b, nil
}

// elfSize returns where the last byte is that an x86-64 ELF file's headers
// speak of (System V ABI, "Object Files"; elf(5)).
func elfSize(b []byte) (int, error) {
	var h elf.Header64
	if len(b) < binary.Size(h) || string(b[:4]) != elf.ELFMAG {
		return 0, errors.New("not an ELF file")
	}
	le := binary.LittleEndian
	if _, err := binary.Decode(b, le, &h); err != nil {
		return 0, err
	}
	if elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(h.Ident[elf.EI_DATA]) != elf.ELFDATA2LSB ||
		elf.Machine(h.Machine) != elf.EM_X86_64 {
		return 0, errors.New("not an ELF file for x86-64")
	}
	var end uint64
	add := func(what string, off, n uint64) error {
		if off > uint64(len(b)) || n > uint64(len(b))-off {
			return fmt.Errorf("ELF: %s: %d bytes at %d are beyond its end at %d", what, n, off, len(b))
		}
		end = max(end, off+n)
		return nil
	}
	var ph elf.Prog64
	var sh elf.Section64
	if h.Phnum == 0 || int(h.Phentsize) != binary.Size(ph) || h.Shnum > 0 && int(h.Shentsize) != binary.Size(sh) {
		return 0, fmt.Errorf("ELF: %d program headers of %d bytes, %d section headers of %d", h.Phnum, h.Phentsize, h.Shnum, h.Shentsize)
	}
	if err := errors.Join(
		add("ELF header", 0, uint64(binary.Size(h))),
		add("program headers", h.Phoff, uint64(h.Phnum)*uint64(h.Phentsize)),
		add("section headers", h.Shoff, uint64(h.Shnum)*uint64(h.Shentsize)),
	); err != nil {
		return 0, err
	}
	for i := range int(h.Phnum) {
		if _, err := binary.Decode(b[int(h.Phoff)+i*binary.Size(ph):], le, &ph); err != nil {
			return 0, err
		}
		if err := add(fmt.Sprintf("segment %d", i), ph.Off, ph.Filesz); err != nil {
			return 0, err
		}
	}
	for i := range int(h.Shnum) {
		if _, err := binary.Decode(b[int(h.Shoff)+i*binary.Size(sh):], le, &sh); err != nil {
			return 0, err
		}
		if elf.SectionType(sh.Type) == elf.SHT_NOBITS {
			continue
		}
		if err := add(fmt.Sprintf("section %d", i), sh.Off, sh.Size); err != nil {
			return 0, err
		}
	}
	return int(end), nil
}
