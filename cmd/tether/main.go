//go:build linux && amd64

// The runtime names its memory mappings for the kernel (since Go 1.25), one
// call each, which nobody looks at here.
//go:debug decoratemappings=0

// Command tether is PID 1 of a container VM. It brings up the machine, runs
// the container's process on the root disk and serves controllers over the
// protocol of package vic/tether; when the process has ended it puts
// everything to disk and powers the VM off. It takes no arguments: what to run
// arrives by guestinfo.
//
// # The process's world
//
// The process lives in its own mount namespace, with the disk's /rootfs as its
// root, and in its own PID namespace. PID 1 of that namespace is a tiny
// program of ours that only adopts and reaps orphans. So the container cannot
// see or signal the tether, everything in it ends with its main process, and
// the main process is not an init in the kernel's eyes: unhandled signals,
// even those it sends itself, end it as they end any process. It has the
// network, host name and IPC of the VM, which is its alone, the capabilities
// that Docker grants by default unless its settings say otherwise, and a cgroup
// of its own, /container.
package main

import (
	"fmt"
	"os"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "tether: runs as PID 1 of a container VM only")
		os.Exit(125)
	}
	log := newConsole(os.Stderr)
	m := &machine{log: log, told: make(chan struct{}, 1)}
	m.run()
	powerOff(log)
}
