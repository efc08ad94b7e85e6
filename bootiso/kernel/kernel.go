// Package kernel holds the Linux kernel that container VMs boot: everything
// they need built in, no modules.
//
// The kernel in this directory is Linux, under the GNU General Public License
// version 2 only (with the exception for system calls; file COPYING). It is
// Debian's source package [SourcePackage] in version [SourceVersion] with the
// changes in the directory patches, configured by the file config. "make
// kernel", or bootiso/kernel/build alone, makes the same bytes again from
// that source. The Go code around it is under the licence of this module.
//
// A bzImage is what boot loaders, and so vSphere's VMs, start. QEMU starts the
// kernel proper faster, as the ELF file that [ELF] takes out of a bzImage.
package kernel

import _ "embed" // for go:embed

// What the kernel was made from.
const (
	// Version is the kernel's release, as "uname -r" prints it.
	Version = "6.1.192-vic"
	// SourcePackage is the Debian package that holds the source, and
	// SourceVersion the package's version.
	SourcePackage = "linux-source-6.1"
	SourceVersion = "6.1.192-2"
)

//go:embed vmlinuz
var image []byte

//go:embed config
var config string

// Image returns the kernel, an x86-64 bzImage with an EFI stub. All callers
// share the bytes, which must not be changed.
func Image() []byte { return image }

// Config returns what the kernel's configuration says beyond Kconfig's
// defaults, in the form of a .config file. The whole configuration is in the
// running kernel's /proc/config.gz.
func Config() string { return config }
