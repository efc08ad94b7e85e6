package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processes probes what programs ask for about processes, memory and each
// other.
func processes() []probe {
	list := []probe{
		{"exec-i386", execI386},
		{"seccomp", seccomp},
		{"landlock", landlock},
		{"yama", exists("/proc/sys/kernel/yama/ptrace_scope")},
		{"io_uring", func() error {
			var params [120]byte
			_, err := call("io_uring_setup", unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)))
			return err
		}},
		{"aio", func() error {
			var ctx uint64
			_, err := call("io_setup", unix.SYS_IO_SETUP, 4, uintptr(unsafe.Pointer(&ctx)))
			return err
		}},
		{"epoll", func() error { _, err := unix.EpollCreate1(0); return err }},
		{"pidfd", func() error { _, err := unix.PidfdOpen(os.Getpid(), 0); return err }},
		{"userfaultfd", userfaultfd},
		{"memfd", memfd},
		{"hugepages", hugepages},
		{"transparent-hugepages-madvise", func() error { return holds("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]") }},
		{"name-mapping", nameMapping},
		{"sysv-shm", func() error { _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600); return err }},
		{"sysv-sem", func() error { _, err := call("semget", unix.SYS_SEMGET, 0, 1, unix.IPC_CREAT|0o600); return err }},
		{"sysv-msg", func() error { _, err := call("msgget", unix.SYS_MSGGET, 0, unix.IPC_CREAT|0o600); return err }},
		{"mqueue", mqueue},
		{"keys", keys},
		{"process_vm_readv", processVMReadv},
		{"kcmp", func() error {
			pid := uintptr(os.Getpid())
			_, err := call("kcmp", unix.SYS_KCMP, pid, pid, 1)
			return err
		}},
		{"perf-event", func() error {
			_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK,
				Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, 0, -1, -1, 0)
			return err
		}},
		{"swap", exists("/proc/swaps")},
		{"pressure", exists("/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory")},
		{"process-io", exists("/proc/self/io")},
	}
	for _, ns := range []struct {
		name string
		flag uintptr
	}{
		{"mnt", unix.CLONE_NEWNS}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"pid", unix.CLONE_NEWPID},
		{"net", unix.CLONE_NEWNET}, {"user", unix.CLONE_NEWUSER}, {"cgroup", unix.CLONE_NEWCGROUP}, {"time", unix.CLONE_NEWTIME},
	} {
		list = append(list, probe{"namespace-" + ns.name, func() error { return namespace(ns.name, ns.flag) }})
	}
	return list
}

// child is what the program does when it calls itself.
func child(args []string) {
	switch args[0] {
	case "readlink":
		s, err := os.Readlink(args[1])
		if err != nil {
			s = err.Error()
		}
		fmt.Print(s)
	case "open":
		_, err := os.OpenFile(args[1], os.O_RDWR, 0)
		fmt.Print(err)
	}
}

// namespace has a child be in a new namespace and tell which.
func namespace(name string, flag uintptr) error {
	if name == "time" {
		return timeNamespace()
	}
	link := "/proc/self/ns/" + name
	ours, err := os.Readlink(link)
	if err != nil {
		return err
	}
	var complaints strings.Builder
	cmd := exec.Command("/proc/self/exe", "readlink", link)
	cmd.Stderr = &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
	if name == "user" {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
	}
	theirs, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w %q", err, complaints.String())
	}
	// In another PID namespace /proc, which is still ours, has no self.
	if name != "pid" && !strings.HasPrefix(string(theirs), name+":[") {
		return fmt.Errorf("the child says %q", theirs)
	}
	if string(theirs) == ours {
		return fmt.Errorf("the child is still in %s", ours)
	}
	return nil
}

// timeNamespace has only the thread unshare: children that share its memory,
// as Go's do until they call exec, could not be born into the new namespace.
func timeNamespace() error {
	const link = "/proc/thread-self/ns/time_for_children"
	before, err := os.Readlink(link)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return err
	}
	after, err := os.Readlink(link)
	if err == nil && after == before {
		return fmt.Errorf("still in %s", before)
	}
	return err
}

// execI386 runs a 32-bit program: an ELF header (System V ABI), one segment,
// and exit(7) by the system call of that ABI.
func execI386() error {
	p := []byte{
		0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 0x04, 0x08, 52, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x04, 0x08, 0, 0x80, 0x04, 0x08, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 5, 0, 0, 0, 0, 0x10, 0, 0,
		0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80, // mov $1,%eax; mov $7,%ebx; int $0x80
	}
	if err := os.WriteFile("/run/i386", p, 0o755); err != nil {
		return err
	}
	err := exec.Command("/run/i386").Run()
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && ee.ExitCode() == 7 {
		return nil
	}
	return fmt.Errorf("exit status: %v", err)
}

// seccomp forbids uname(2), as a container runtime's profile would.
func seccomp() error {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_UNAME},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTNAM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, err := call("seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&fprog))); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != unix.ENOTNAM {
		return fmt.Errorf("uname under the filter: %v", err)
	}
	return nil
}

func landlock() error {
	v, err := call("landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if err == nil && v < 2 {
		return fmt.Errorf("version %d", v)
	}
	return err
}

func userfaultfd() error {
	fd, err := call("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	api := struct{ api, features, ioctls uint64 }{api: 0xaa}
	_, err = call("UFFDIO_API", unix.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api)))
	return err
}

func memfd() error {
	fd, err := unix.MemfdCreate("probe", unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	return err
}

// hugepages reserves a huge page and writes to it.
func hugepages() error {
	if err := write("/proc/sys/vm/nr_hugepages", "1"); err != nil {
		return err
	}
	b, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	if err != nil {
		return err
	}
	b[0] = 1
	return errors.Join(unix.Munmap(b), mount("none", "/run/hugetlbfs", "hugetlbfs", "pagesize=2M"))
}

func nameMapping() error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	name := append([]byte("probe"), 0)
	return unix.Prctl(unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME, uintptr(unsafe.Pointer(&b[0])), 4096, uintptr(unsafe.Pointer(&name[0])))
}

func mqueue() error {
	if err := mount("mqueue", "/run/mqueue", "mqueue", ""); err != nil {
		return err
	}
	name := append([]byte("probe"), 0)
	if _, err := call("mq_open", unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600, 0); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join("/run/mqueue", "probe"))
	return err
}

func keys() error {
	id, err := unix.AddKey("user", "probe", []byte("secret"), unix.KEY_SPEC_PROCESS_KEYRING)
	if err != nil {
		return err
	}
	b := make([]byte, 16)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
	if err == nil && string(b[:n]) != "secret" {
		return fmt.Errorf("the key reads %q", b[:n])
	}
	return err
}

func processVMReadv() error {
	from, to := []byte("probe"), make([]byte, 5)
	local := []unix.Iovec{{Base: &to[0], Len: 5}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from[0])), Len: 5}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	if err == nil && string(to) != "probe" {
		return fmt.Errorf("read %q", to)
	}
	return err
}
