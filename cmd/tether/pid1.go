//go:build linux && amd64

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// pid1Program is PID 1 of the container's PID namespace, an ELF file of some
// 300 bytes. It mounts /proc, which only a process inside the namespace can
// do, writes mount's result (8 bytes, an errno below zero) to its descriptor
// 0, has the kernel reap orphans by ignoring SIGCHLD (waitid(2), NOTES) and
// sleeps for good. A copy of the tether could do that too, for some
// milliseconds of every start and some megabytes of every VM's memory.
func pid1Program() []byte {
	// The data behind the code, by its distance from the code's start.
	const code = 96
	const act, name, path = code, code + 32, code + 37
	var b []byte
	op := func(p ...byte) { b = append(b, p...) }
	lea := func(opcode byte, target int) { // lea r64, [rip+distance]
		op(0x48, 0x8d, opcode)
		b = binary.LittleEndian.AppendUint32(b, uint32(target-len(b)-4))
	}
	lea(0x3d, name)                          // rdi: source "proc"
	lea(0x35, path)                          // rsi: target "/proc"
	op(0x48, 0x89, 0xfa)                     // rdx: type, as source
	op(0x41, 0xba, 0x0e, 0, 0, 0)            // r10: nosuid, nodev, noexec
	op(0x45, 0x31, 0xc0)                     // r8: no data
	op(0xb8, unix.SYS_MOUNT, 0, 0, 0)        // eax
	op(0x0f, 0x05)                           // syscall
	op(0x50)                                 // push its result
	op(0xbf, byte(unix.SIGCHLD), 0, 0, 0)    // edi
	lea(0x35, act)                           // rsi: sigaction
	op(0x31, 0xd2)                           // rdx: no old one
	op(0x41, 0xba, 8, 0, 0, 0)               // r10: size of a signal set
	op(0xb8, unix.SYS_RT_SIGACTION, 0, 0, 0) // eax
	op(0x0f, 0x05)                           // syscall
	op(0x31, 0xff)                           // edi: descriptor 0
	op(0x48, 0x89, 0xe6)                     // rsi: the pushed result
	op(0xba, 8, 0, 0, 0)                     // edx
	op(0xb8, unix.SYS_WRITE, 0, 0, 0)        // eax
	op(0x0f, 0x05)                           // syscall
	op(0x31, 0xff)                           // edi
	op(0xb8, unix.SYS_CLOSE, 0, 0, 0)        // eax
	op(0x0f, 0x05)                           // syscall
	op(0xb8, unix.SYS_PAUSE, 0, 0, 0)        // eax
	op(0x0f, 0x05)                           // syscall
	op(0xeb, 0xf7)                           // again
	op(1, 0, 0, 0, 0, 0, 0, 0)               // sigaction: SIG_IGN
	b = append(b, make([]byte, 24)...)       // flags, restorer, mask
	b = append(b, "proc\x00/proc\x00"...)
	return elfProgram(b)
}

// elfProgram makes an executable of code that runs at any address.
func elfProgram(b []byte) []byte {
	const (
		base   = 0x400000
		header = 64 + 56 // ELF-64 file header and one program header
	)
	size := uint64(header + len(b))
	f := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	f = le.AppendUint16(f, 2)  // e_type: executable
	f = le.AppendUint16(f, 62) // e_machine: x86-64
	f = le.AppendUint32(f, 1)
	f = le.AppendUint64(f, base+header) // e_entry
	f = le.AppendUint64(f, 64)          // e_phoff
	f = le.AppendUint64(f, 0)
	f = le.AppendUint32(f, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} { // e_ehsize … e_shstrndx
		f = le.AppendUint16(f, v)
	}
	f = le.AppendUint32(f, 1) // PT_LOAD
	f = le.AppendUint32(f, 5) // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		f = le.AppendUint64(f, v)
	}
	return append(f, b...)
}

// startPID1 starts the program as PID 1 of a new namespace and waits until
// /proc is mounted. The file is put at name for a moment; the calling thread's
// root and mount namespace are those of the container.
func startPID1(name string) (pid int, err error) {
	if err := os.WriteFile(name, pid1Program(), 0o500); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	pid, err = syscall.ForkExec(name, []string{"vic-init"}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{w.Fd()},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID},
	})
	_ = w.Close()
	if err != nil {
		return 0, fmt.Errorf("PID namespace: %w", err)
	}
	var result [8]byte
	if _, err := io.ReadFull(r, result[:]); err != nil {
		return 0, fmt.Errorf("PID namespace: its first process ended: %w", err)
	}
	if n := int64(binary.LittleEndian.Uint64(result[:])); n < 0 {
		return 0, fmt.Errorf("mount /proc: %w", unix.Errno(-n))
	}
	return pid, nil
}
