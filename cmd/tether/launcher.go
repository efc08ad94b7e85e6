//go:build linux && amd64

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// launcherProgram is what a process with limits of its own begins as, an ELF
// file of some 400 bytes: it sets the limits on itself, which nobody else could
// do before its first instruction, and becomes the program that its first
// argument names, with the arguments after it. Where that fails it writes the
// limit's number, or -1 for the program, and the negative errno to descriptor 3
// (8 bytes each) and ends. Descriptor 3 is closed by the new program's start.
func launcherProgram(limits []tether.Ulimit) ([]byte, error) {
	var b []byte
	op := func(p ...byte) { b = append(b, p...) }
	call := func(n byte, high byte) { op(0xb8, n, high, 0, 0, 0x0f, 0x05) } // mov eax, n; syscall
	// A jump's distance is filled in when its target is known.
	jump := func(opcode byte) (land func()) {
		op(opcode, 0)
		from := len(b)
		return func() { b[from-1] = byte(len(b) - from) }
	}
	op(0xbf, 3, 0, 0, 0)               // edi: descriptor
	op(0xbe, unix.F_SETFD, 0, 0, 0)    // esi
	op(0xba, unix.FD_CLOEXEC, 0, 0, 0) // edx
	call(unix.SYS_FCNTL, 0)            //
	op(0x48, 0x8d, 0x1d, 0, 0, 0, 0)   // lea rbx, [rip+table]
	table := len(b)                    // its distance goes here
	loop := len(b)                     //
	op(0x48, 0x8b, 0x33)               // mov rsi, [rbx]: the limit
	op(0x48, 0x83, 0xfe, 0xff)         // cmp rsi, -1
	run := jump(0x74)                  // je run
	op(0x31, 0xff)                     // edi: 0, this process
	op(0x48, 0x8d, 0x53, 8)            // lea rdx, [rbx+8]: the values
	op(0x45, 0x31, 0xd2)               // r10d: no old ones
	call(unix.SYS_PRLIMIT64&0xff, unix.SYS_PRLIMIT64>>8)
	op(0x48, 0x85, 0xc0)           // test rax, rax
	failed := jump(0x78)           // js failed
	op(0x48, 0x83, 0xc3, 24)       // add rbx, 24
	op(0xeb, byte(loop-len(b)-2))  // jmp loop
	run()                          //
	op(0x48, 0x8b, 0x7c, 0x24, 8)  // mov rdi, [rsp+8]: argv[0]
	op(0x48, 0x8d, 0x74, 0x24, 16) // lea rsi, [rsp+16]: argv+1
	op(0x48, 0x8b, 0x04, 0x24)     // mov rax, [rsp]: argc
	op(0x48, 0x8d, 0x54, 0xc4, 16) // lea rdx, [rsp+rax*8+16]: the environment
	call(unix.SYS_EXECVE, 0)       //
	failed()                       //
	op(0x50)                       // push rax: the errno
	op(0xff, 0x33)                 // push [rbx]
	op(0xbf, 3, 0, 0, 0)           // edi
	op(0x48, 0x89, 0xe6)           // rsi: what was pushed
	op(0xba, 16, 0, 0, 0)          // edx
	call(unix.SYS_WRITE, 0)        //
	op(0xbf, codeSetup, 0, 0, 0)   // edi
	call(unix.SYS_EXIT_GROUP, 0)   //
	binary.LittleEndian.PutUint32(b[table-4:], uint32(len(b)-table))
	for _, l := range limits {
		resource, soft, hard, err := l.Resource()
		if err != nil {
			return nil, err
		}
		for _, v := range []uint64{uint64(resource), soft, hard} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	b = binary.LittleEndian.AppendUint64(b, ^uint64(0))
	return elfProgram(b), nil
}

// newLauncher opens a launcher's program for being run, or nil where there are no
// limits to set. It is nowhere in the container's tree.
func newLauncher(limits []tether.Ulimit) (*os.File, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	program, err := launcherProgram(limits)
	if err != nil {
		return nil, fmt.Errorf("settings.ulimits: %w", err)
	}
	fd, err := unix.MemfdCreate("vic-launch", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("settings.ulimits: %w", err)
	}
	w := os.NewFile(uintptr(fd), "vic-launch")
	defer w.Close()
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("settings.ulimits: %w", err)
	}
	// What is open for writing cannot be run.
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("settings.ulimits: %w", err)
	}
	defer r.Close()
	// Out of the way of the descriptors that the program gets.
	high, err := unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return nil, fmt.Errorf("settings.ulimits: %w", err)
	}
	return os.NewFile(uintptr(high), "vic-launch"), nil
}

// launch is syscall.ForkExec by way of the launcher, where there is one.
func (n *namespace) launch(file string, argv []string, attr *syscall.ProcAttr) (pid int, told *os.File, err error) {
	if n.launcher == nil {
		pid, err = syscall.ForkExec(file, argv, attr)
		return pid, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	a := *attr
	a.Files = append(append([]uintptr(nil), attr.Files...), w.Fd())
	pid, err = syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", n.launcher.Fd()), append([]string{file}, argv...), &a)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return 0, nil, err
	}
	return pid, r, nil
}

// launched waits until the launcher has become the program, and tells why it has
// not.
func launched(told *os.File, name string) error {
	if told == nil {
		return nil
	}
	defer told.Close()
	var b [16]byte
	_, err := io.ReadFull(told, b[:])
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return &startError{codeSetup, fmt.Errorf("settings.ulimits: %w", err)}
	}
	what, errno := int64(binary.LittleEndian.Uint64(b[:])), unix.Errno(-int64(binary.LittleEndian.Uint64(b[8:])))
	if what < 0 {
		return runError(name, errno)
	}
	return &startError{codeSetup, fmt.Errorf("settings.ulimits: limit %d: %w", what, errno)}
}
