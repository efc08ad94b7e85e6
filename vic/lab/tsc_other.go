//go:build !amd64

package lab

// hostTSC is 0: QEMU counts in nanoseconds or what else it has there.
func hostTSC() int { return 0 }
