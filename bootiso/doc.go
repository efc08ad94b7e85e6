// Package bootiso builds the image that container VMs boot from: an ISO 9660
// file with a Linux kernel, an initial RAM disk that holds the tether and,
// where the kernel is a distribution's, the modules it loads, and a boot
// loader of our own. A VM's disks hold nothing of ours to boot from, so every
// container of a VCH shares one image.
//
// [Default] gives an image without further ado: package kernel's kernel and
// the tether of this module. [Build] makes one from given parts. The same
// inputs give the same bytes. [Extract] takes an image apart again, for
// machines that boot a kernel directly.
//
// # Firmware
//
// The image boots on a BIOS, by "El Torito" 1.0 without emulation; container
// VMs are created with the firmware "bios". EFI is not supported: it would
// need a FAT file system in the image and a second loader, since the kernel's
// own EFI stub is not told of the RAM disk and the command line by the
// firmware.
//
// # Releases
//
// Programs that are to run where there is no Go carry the tether:
//
//	go generate ./bootiso
//	go build -tags vic_release ./cmd/vic
//
//go:generate env CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 GOFLAGS= GOWORK=off go build -tags=vic_guest -mod=readonly -trimpath -buildvcs=false "-ldflags=-s -w -buildid=" -o release/tether ../cmd/tether
package bootiso
