// Package bootiso builds the image that container VMs boot from: an ISO 9660
// file with a Linux kernel, an initial RAM disk that holds the tether and the
// kernel modules it loads, and the isolinux boot loader. A VM's disks hold
// nothing of ours to boot from, so every container of a VCH shares one image.
//
// The same inputs give the same bytes. [Extract] takes an image apart again,
// for machines that boot a kernel directly.
package bootiso
