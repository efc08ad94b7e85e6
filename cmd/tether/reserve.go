//go:build linux && amd64

package main

import (
	"encoding/binary"
	"fmt"
	"os"
)

// The room that is kept for the log and the status on a disk that the container
// fills: 16 MiB, or a 32nd of a small disk.
const (
	reserveBytes = 16 << 20
	reservePart  = 32
)

// reserve has an ext4 filesystem that is not mounted keep blocks for mountRoot's
// user where it keeps fewer. Images' disks keep none, and ext4 takes the number
// from its superblock only (fs/ext4/ext4.h, struct ext4_super_block). It is
// written once in a disk's life.
func reserve(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const at, size = 1024, 1024
	b := make([]byte, size)
	if _, err := f.ReadAt(b, at); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	if !reserveIn(b) {
		return nil
	}
	if _, err := f.WriteAt(b, at); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	return f.Close()
}

// reserveIn changes a superblock, and tells whether it did.
func reserveIn(b []byte) bool {
	const (
		blocks, reserved, blockSize, magic = 0x04, 0x08, 0x18, 0x38
		incompat, roCompat                 = 0x60, 0x64
		blocksHigh, checksum               = 0x150, 0x3fc
		has64bit, hasChecksum              = 0x80, 0x400
	)
	le := binary.LittleEndian
	if le.Uint16(b[magic:]) != 0xef53 || le.Uint32(b[blockSize:]) > 6 {
		return false // The mount will tell what it is.
	}
	n := uint64(le.Uint32(b[blocks:]))
	if le.Uint32(b[incompat:])&has64bit != 0 {
		n |= uint64(le.Uint32(b[blocksHigh:])) << 32
	}
	want := uint32(min(n/reservePart, reserveBytes>>(10+le.Uint32(b[blockSize:]))))
	if le.Uint32(b[reserved:]) >= want {
		return false
	}
	le.PutUint32(b[reserved:], want)
	if le.Uint32(b[roCompat:])&hasChecksum != 0 {
		le.PutUint32(b[checksum:], crc32c(b[:checksum]))
	}
	return true
}

// crc32c is the checksum of ext4's superblock: that of RFC 3720 without its last
// inversion. The standard library's makes tables first, which take longer than
// this.
func crc32c(b []byte) uint32 {
	c := ^uint32(0)
	for _, v := range b {
		c ^= uint32(v)
		for range 8 {
			c = c>>1 ^ 0x82f63b78&-(c&1)
		}
	}
	return c
}
