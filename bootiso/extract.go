package bootiso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vicsdk/vic-go/bootiso/loader"
)

const maxPart = 512 << 20 // kernel or initrd

// Parts are what a machine boots from.
type Parts struct {
	// Kernel is a bzImage and Initrd the initial RAM disk.
	Kernel, Initrd []byte
	// Cmdline is the kernel's command line.
	Cmdline string
}

// Extract reads the kernel, the RAM disk and the command line out of an image
// with the boot loader of this package. It finds them as a BIOS and the loader
// do, by the boot catalog and the loader's parameters, so that they are what
// the image boots, whatever its directories say. It takes no more memory than
// the parts have bytes, which are at most 512 MiB each. The reader stays the
// caller's.
func Extract(r io.ReaderAt) (*Parts, error) {
	p, err := extract(r)
	if err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	return p, nil
}

func extract(r io.ReaderAt) (*Parts, error) {
	at, err := bootImage(r)
	if err != nil {
		return nil, err
	}
	image, err := readExtent(r, loader.Extent{LBA: at, Size: loader.Size})
	if err != nil {
		return nil, fmt.Errorf("boot loader: %w", err)
	}
	params, err := loader.Parse(image)
	if err != nil {
		return nil, err
	}
	p := new(Parts)
	if p.Kernel, err = readExtent(r, params.Kernel); err == nil {
		err = checkKernel(p.Kernel)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	cmdline, err := readExtent(r, params.Cmdline)
	if err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	if p.Cmdline = string(cmdline); strings.ContainsAny(p.Cmdline, "\n\r\x00") {
		return nil, errors.New("command line: not one line")
	}
	if p.Initrd, err = readExtent(r, params.Initrd); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return p, nil
}

// bootImage finds the sector of what a BIOS starts without emulation ("El
// Torito" 1.0: section 2.0, figure 7 for the boot record; section 2.1, figures
// 2 and 3 for the catalog).
func bootImage(r io.ReaderAt) (uint32, error) {
	b := make([]byte, sector)
	if _, err := r.ReadAt(b, sectorBootRecord*sector); err != nil {
		return 0, fmt.Errorf("not an ISO 9660 image: %w", err)
	}
	if string(b[1:6]) != "CD001" {
		return 0, errors.New("not an ISO 9660 image")
	}
	if b[0] != 0 || string(b[7:30]) != elTorito {
		return 0, errors.New("no boot record: the image is not bootable")
	}
	if _, err := r.ReadAt(b, int64(binary.LittleEndian.Uint32(b[71:]))*sector); err != nil {
		return 0, fmt.Errorf("boot catalog: %w", err)
	}
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	if b[0] != 1 || b[30] != 0x55 || b[31] != 0xaa || sum != 0 {
		return 0, errors.New("boot catalog: bad validation entry")
	}
	if b[1] != 0 {
		return 0, fmt.Errorf("boot catalog: platform %d, not 80x86", b[1])
	}
	e := b[32:]
	if e[0] != 0x88 {
		return 0, errors.New("boot catalog: the default entry is not bootable")
	}
	load, sectors := binary.LittleEndian.Uint16(e[2:]), binary.LittleEndian.Uint16(e[6:])
	if e[1]&15 != 0 || load != 0 && load != 0x7c0 || int(sectors)*512 < loader.Size {
		return 0, errors.New("boot catalog: not vic's own boot loader: another emulation, load segment or size")
	}
	return binary.LittleEndian.Uint32(e[8:]), nil
}

// readExtent reads all of e; memory grows with what is really there.
func readExtent(r io.ReaderAt, e loader.Extent) ([]byte, error) {
	if e.Size > maxPart {
		return nil, fmt.Errorf("%d bytes, more than %d", e.Size, maxPart)
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.NewSectionReader(r, int64(e.LBA)*sector, int64(e.Size)))
	if err == nil && n < int64(e.Size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("at sector %d: %w", e.LBA, err)
	}
	return b.Bytes(), nil
}
