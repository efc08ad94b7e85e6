package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// files probes filesystems and what is done to files.
func files() []probe {
	return []probe{
		{"filesystems", filesystems},
		{"tmpfs-xattr", tmpfsXattr},
		{"ext4", ext4},
		{"iso9660", iso9660},
		{"overlay", overlay},
		{"overlay-userns-xattr", overlayUserxattr},
		{"fuse", fuse},
		{"nfs3", func() error {
			return refused(unix.Mount("127.0.0.1:/x", "/run", "nfs", 0, "vers=3,addr=127.0.0.1,nolock,tcp,port=1,mountproto=tcp,mountport=1,soft,retrans=0,timeo=5"))
		}},
		{"nfs4.0", nfs4("4.0")},
		{"nfs4.1", nfs4("4.1")},
		{"nfs4.2", nfs4("4.2")},
		{"autofs", exists("/dev/autofs")},
		{"loop", loop},
		{"dm-crypt", dmCrypt},
		{"binfmt_misc", binfmtMisc},
		{"inotify", func() error {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				return err
			}
			_, err = unix.InotifyAddWatch(fd, "/run", unix.IN_CREATE)
			return err
		}},
		{"fanotify", func() error {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT, unix.O_RDONLY)
			if err != nil {
				return err
			}
			if err := os.WriteFile("/run/watched", nil, 0o600); err != nil {
				return err
			}
			return unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, "/run/watched")
		}},
		{"dnotify", func() error {
			f, err := os.Open("/run")
			if err != nil {
				return err
			}
			_, err = unix.FcntlInt(f.Fd(), unix.F_NOTIFY, 4) // DN_CREATE
			return err
		}},
		{"file-handles", func() error {
			if err := os.WriteFile("/run/handle", nil, 0o600); err != nil {
				return err
			}
			_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/run/handle", 0)
			return err
		}},
	}
}

func filesystems() error {
	return holds("/proc/filesystems", "ext4", "overlay", "tmpfs", "devtmpfs", "iso9660", "squashfs", "fuse", "fuseblk", "fusectl",
		"virtiofs", "nfs", "nfs4", "autofs", "mqueue", "hugetlbfs", "cgroup2", "bpf", "binfmt_misc", "securityfs", "proc", "sysfs", "devpts")
}

// acl is a POSIX ACL with an entry for user 1000 (acl(5); the form is that of
// include/uapi/linux/posix_acl_xattr.h).
func acl() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, uint32(2))
	for _, e := range []struct {
		Tag, Perm uint16
		ID        uint32
	}{{1, 6, ^uint32(0)}, {2, 4, 1000}, {4, 4, ^uint32(0)}, {0x10, 4, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		_ = binary.Write(&b, binary.LittleEndian, e)
	}
	return b.Bytes()
}

// capability is a file capability of version 2 (cap_net_raw, permitted and
// effective), as images have on ping.
func capability() []byte {
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b, 0x02000001)
	binary.LittleEndian.PutUint32(b[4:], 1<<unix.CAP_NET_RAW)
	return b
}

// xattrs sets attributes of each kind on a new file.
func xattrs(file string, kinds ...string) error {
	if err := os.WriteFile(file, []byte("contents"), 0o644); err != nil {
		return err
	}
	values := map[string][]byte{"user.probe": []byte("u"), "trusted.probe": []byte("t"), "security.capability": capability(), "system.posix_acl_access": acl()}
	for _, k := range kinds {
		if err := unix.Setxattr(file, k, values[k], 0); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

func tmpfsXattr() error {
	return xattrs("/run/xattr", "trusted.probe", "security.capability", "system.posix_acl_access")
}

// ext4 mounts the disk that the test attached.
func ext4() error {
	if err := await("/dev/sda"); err != nil {
		return err
	}
	if err := mount("/dev/sda", "/run/ext4", "ext4", "acl"); err != nil {
		return err
	}
	if err := xattrs("/run/ext4/file", "user.probe", "trusted.probe", "security.capability", "system.posix_acl_access"); err != nil {
		return err
	}
	return unix.Unmount("/run/ext4", 0)
}

// iso9660 reads the CD that the test inserted.
func iso9660() error {
	if err := await("/dev/sr0"); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/cd", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/sr0", "/run/cd", "iso9660", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	return holds("/run/cd/A longer name.txt", "hello")
}

// overlay copies a file up and looks whether its attributes came along.
func overlay() error {
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.MkdirAll("/run/ov/"+d, 0o755); err != nil {
			return err
		}
	}
	if err := xattrs("/run/ov/lower/file", "trusted.probe", "security.capability"); err != nil {
		return err
	}
	if err := mount("overlay", "/run/ov/merged", "overlay", "lowerdir=/run/ov/lower,upperdir=/run/ov/upper,workdir=/run/ov/work"); err != nil {
		return err
	}
	if err := os.Chmod("/run/ov/merged/file", 0o600); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := unix.Getxattr("/run/ov/upper/file", "security.capability", b)
	if err == nil && !bytes.Equal(b[:n], capability()) {
		return fmt.Errorf("the capability became % x", b[:n])
	}
	return err
}

// overlayUserxattr is what containers in containers mount.
func overlayUserxattr() error {
	return mount("overlay", "/run/ov/merged2", "overlay", "lowerdir=/run/ov/lower:/run/ov/upper,userxattr")
}

func fuse() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := mount("probe", "/run/fuse", "fuse", fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		return err
	}
	// The kernel's first request, FUSE_INIT, is there to read.
	b := make([]byte, 64<<10)
	if n, err := unix.Read(fd, b); err != nil || n < 8 || binary.LittleEndian.Uint32(b[4:]) != 26 {
		return fmt.Errorf("read %d bytes: %v", n, err)
	}
	return unix.Unmount("/run/fuse", unix.MNT_DETACH)
}

// refused passes for the error of a filesystem that is there and met nobody
// at the other end.
func refused(err error) error {
	switch {
	case err == nil:
		return errors.New("something answered")
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ETIMEDOUT):
		return nil
	}
	return err
}

func nfs4(version string) func() error {
	return func() error {
		return refused(unix.Mount("127.0.0.1:/x", "/run", "nfs4", 0, "vers="+version+",addr=127.0.0.1,clientaddr=127.0.0.1,proto=tcp,port=1,soft,retrans=0,timeo=5"))
	}
}

func loop() error {
	if err := os.WriteFile("/run/backing", make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	back, err := os.OpenFile("/run/backing", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("/dev/loop%d", n)
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = dev.WriteAt(bytes.Repeat([]byte("x"), 512), 512)
	return err
}

// dmCrypt asks the device mapper for its targets (DM_LIST_VERSIONS,
// include/uapi/linux/dm-ioctl.h).
func dmCrypt() error {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 16<<10)
	for i, v := range []uint32{4, 0, 0, uint32(len(b)), 312} { // version, data_size, data_start
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
	if _, err := call("DM_LIST_VERSIONS", unix.SYS_IOCTL, f.Fd(), 0xc138fd0d, uintptr(unsafe.Pointer(&b[0]))); err != nil {
		return err
	}
	for _, target := range []string{"crypt", "linear"} {
		if !bytes.Contains(b, []byte(target+"\x00")) {
			return fmt.Errorf("no target %s", target)
		}
	}
	return nil
}

func binfmtMisc() error {
	const dir = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		return err
	}
	if err := write(dir+"/register", ":probe:E::probe::/run/i386:"); err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "/probe")
	if err != nil || !slices.Contains(strings.Fields(string(b)), "enabled") {
		return fmt.Errorf("%q %v", b, err)
	}
	return nil
}
