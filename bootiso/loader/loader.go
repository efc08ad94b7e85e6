// Package loader is the boot loader of bootstrap.iso, a program of 2048 bytes
// that a BIOS starts from a CD ("El Torito" 1.0, no emulation) and that starts
// Linux by its boot protocol. Its source is loader.S; loader.bin is what the
// GNU assembler makes of it, kept so that nothing but Go is needed to build an
// image.
//
// The loader knows no file system. What it loads is named by sectors in a
// block of its own image, [Params], which [Image] writes and [Parse] reads.
package loader

import (
	_ "embed" // loader.bin
	"encoding/binary"
	"errors"
	"fmt"
)

// Size of the loader in bytes, which the boot catalog states as four sectors
// of 512 bytes.
const Size = 2048

// MaxCmdline is the longest command line in bytes: what x86 kernels take
// (COMMAND_LINE_SIZE), without the NUL.
const MaxCmdline = 2047

// An Extent is a run of bytes on the CD.
type Extent struct {
	LBA  uint32 // first sector of 2048 bytes
	Size uint32 // bytes
}

// Params tell the loader what to start.
type Params struct {
	Kernel  Extent // a bzImage
	Initrd  Extent // the initial RAM disk
	Cmdline Extent // the command line, without a NUL
}

// Layout of the block in loader.S.
const (
	blockAt = 64
	magic   = "VIC-BOOT"
	version = 1
)

//go:embed loader.bin
var program string

// Image returns the loader with its parameters filled in.
func Image(p Params) []byte {
	b := []byte(program)
	at := blockAt + len(magic) + 4
	for _, e := range []Extent{p.Kernel, p.Initrd, p.Cmdline} {
		binary.LittleEndian.PutUint32(b[at:], e.LBA)
		binary.LittleEndian.PutUint32(b[at+4:], e.Size)
		at += 8
	}
	return b
}

// Parse reads the parameters out of a loader's image. It says nothing about
// whether there is anything at the places that they name.
func Parse(image []byte) (Params, error) {
	if len(image) < Size {
		return Params{}, fmt.Errorf("boot loader: %d bytes, not %d", len(image), Size)
	}
	b := image[blockAt:]
	if string(b[:len(magic)]) != magic {
		return Params{}, errors.New("boot loader: not vic's own: its parameters cannot be read")
	}
	b = b[len(magic):]
	if v := binary.LittleEndian.Uint32(b); v != version {
		return Params{}, fmt.Errorf("boot loader: parameters of version %d, this program knows %d", v, version)
	}
	extent := func(n int) Extent {
		return Extent{binary.LittleEndian.Uint32(b[4+8*n:]), binary.LittleEndian.Uint32(b[8+8*n:])}
	}
	p := Params{extent(0), extent(1), extent(2)}
	if p.Cmdline.Size > MaxCmdline {
		return Params{}, fmt.Errorf("boot loader: a command line of %d bytes, more than %d", p.Cmdline.Size, MaxCmdline)
	}
	return p, nil
}
