package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	cgroupChild = cgroupRoot + "/probe"
)

// controlGroups probes version 2 and programs for the kernel. The first one
// mounts what the others use.
func controlGroups() []probe {
	limit := func(file, value string) func() error {
		return func() error { return write(cgroupChild+"/"+file, value) }
	}
	return []probe{
		{"cgroup2", cgroup2},
		{"cgroup-cpu", limit("cpu.max", "50000 100000")},
		{"cgroup-cpu-weight", limit("cpu.weight", "50")},
		{"cgroup-cpuset", limit("cpuset.cpus", "0")},
		{"cgroup-memory", limit("memory.max", "64M")},
		{"cgroup-swap", limit("memory.swap.max", "0")},
		{"cgroup-pids", limit("pids.max", "100")},
		{"cgroup-hugetlb", limit("hugetlb.2MB.max", "0")},
		{"cgroup-io-max", func() error {
			if err := await("/dev/sda"); err != nil {
				return err
			}
			return write(cgroupChild+"/io.max", "8:0 rbps=1048576 wiops=100")
		}},
		{"cgroup-io-weight", limit("io.weight", "default 50")},
		{"cgroup-freeze", limit("cgroup.freeze", "0")},
		{"cgroup-kill", limit("cgroup.kill", "1")},
		{"cgroup-pressure", exists(cgroupChild+"/cpu.pressure", cgroupChild+"/io.pressure", cgroupChild+"/memory.pressure")},
		{"cgroup-v1", cgroupV1},
		{"bpf-jit", func() error { return holds("/proc/sys/net/core/bpf_jit_enable", "1") }},
		{"bpf-cgroup-device", bpfDevices},
		{"bpf-map", func() error {
			attr := [5]uint32{unix.BPF_MAP_TYPE_HASH, 4, 4, 16, 0}
			_, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
			return err
		}},
		{"bpf-xdp", func() error { _, err := bpfLoad(unix.BPF_PROG_TYPE_XDP, 2); return err }},
		{"bpf-sched-cls", func() error { _, err := bpfLoad(unix.BPF_PROG_TYPE_SCHED_CLS, 0); return err }},
		{"bpf-fs", func() error { return mount("bpf", "/sys/fs/bpf", "bpf", "") }},
	}
}

func cgroup2() error {
	if err := mount("cgroup2", cgroupRoot, "cgroup2", ""); err != nil {
		return err
	}
	want := []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "misc"}
	if err := holds(cgroupRoot+"/cgroup.controllers", want...); err != nil {
		return err
	}
	if err := write(cgroupRoot+"/cgroup.subtree_control", "+"+strings.Join(want, " +")); err != nil {
		return err
	}
	if err := os.Mkdir(cgroupChild, 0o755); err != nil {
		return err
	}
	return holds(cgroupChild+"/cgroup.controllers", want...)
}

// cgroupV1 mounts the controllers that older runtimes look for.
func cgroupV1() error {
	for _, c := range []string{"devices", "freezer", "cpuacct", "net_cls", "net_prio"} {
		if err := mount("cgroup", "/run/cgroup/"+c, "cgroup", c); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	return call("bpf", unix.SYS_BPF, cmd, uintptr(attr), size)
}

// bpfLoad loads a program that returns the value.
func bpfLoad(kind uint32, value int32) (uintptr, error) {
	insns := make([]byte, 16)
	insns[0] = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K // r0 = value
	binary.LittleEndian.PutUint32(insns[4:], uint32(value))
	insns[8] = unix.BPF_JMP | unix.BPF_EXIT
	license := append([]byte("GPL"), 0)
	attr := struct {
		kind, n       uint32
		insns, licens uint64
		_             [12]uint64
	}{kind: kind, n: 2, insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), licens: uint64(uintptr(unsafe.Pointer(&license[0])))}
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// bpfDevices denies all devices to a group, as runtimes do where there is no
// devices controller, and has a child in it try one. The program must have
// been compiled.
func bpfDevices() error {
	prog, err := bpfLoad(unix.BPF_PROG_TYPE_CGROUP_DEVICE, 0)
	if err != nil {
		return err
	}
	var info [28]uint32 // bpf_prog_info; jited_prog_len is the fifth word
	get := struct {
		fd, n uint32
		info  uint64
	}{uint32(prog), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&get), unsafe.Sizeof(get)); err != nil {
		return fmt.Errorf("information: %w", err)
	}
	if info[4] == 0 {
		return fmt.Errorf("the program is interpreted")
	}
	group, err := os.Open(cgroupChild)
	if err != nil {
		return err
	}
	attach := [4]uint32{uint32(group.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", "open", "/dev/full")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("a child in the group: %w", err)
	}
	if !strings.HasSuffix(string(out), unix.EPERM.Error()) {
		return fmt.Errorf("opening /dev/full in the group: %s", out)
	}
	return nil
}
