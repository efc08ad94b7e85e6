//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// volumeMount is where the disks of volumes are mounted in the initial RAM disk,
// by unit.
const volumeMount = "/volumes"

// mountedMark is the file of the container's disk that says that it was started
// once: an empty volume is filled in a container's first start only.
const mountedMark = diskMount + "/state/mounted"

// volumes are the disks of volumes that are mounted.
type volumes struct {
	mu    sync.Mutex
	disks map[int]string    // their devices, by unit
	nfs   map[string]string // where NFS servers are mounted, by target
	made  int               // directories for those
	ended bool              // nothing is mounted any more
}

func (v *volumes) note(unit int, dev string) {
	if v.disks == nil {
		v.disks = map[int]string{}
	}
	v.disks[unit] = dev
}

func volumeDir(unit int) string { return filepath.Join(volumeMount, strconv.Itoa(unit)) }

// contentDir is what a container sees of a volume.
func contentDir(unit int) string { return filepath.Join(volumeDir(unit), ext4.RootDir) }

// mount mounts the disks of a container's volumes, several at once.
func (v *volumes) mount(ctx context.Context, u *uevents, mounts []tether.Mount) error {
	names := map[int]string{}
	for _, m := range mounts {
		if m.Volume != nil && m.Volume.NFS == nil {
			names[m.Volume.Unit] = m.Volume.Name
		}
	}
	var wg sync.WaitGroup
	var errs []error
	for unit, name := range names {
		wg.Go(func() {
			dev, err := mountVolume(ctx, u, unit)
			v.mu.Lock()
			defer v.mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("volume %.80q: %w", name, err))
				return
			}
			v.note(unit, dev)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// unmount leaves the filesystems clean, as unmountRoot does.
func (v *volumes) unmount() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
	errs := syncNFS(v.nfs)
	for unit := range v.disks {
		if err := unix.Mount("", volumeDir(unit), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			errs = errors.Join(errs, fmt.Errorf("volume at unit %d: make read-only: %w", unit, err))
		}
	}
	return errs
}

// mountVolume mounts a disk, after its filesystem was made where it has none, and
// lets that have the whole disk where it has grown. It tells the disk's device as
// soon as that is there, also where it fails.
func mountVolume(ctx context.Context, u *uevents, unit int) (dev string, err error) {
	if dev, err = findDisk(ctx, u, unit); err != nil {
		return "", err
	}
	size, blocks, err := prepareVolume(dev)
	if err != nil {
		return dev, fmt.Errorf("%s: %w", dev, err)
	}
	dir := volumeDir(unit)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dev, err
	}
	if err := unix.Mount(dev, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return dev, fmt.Errorf("mount %s as ext4: %w", dev, err)
	}
	if _, err := growFS(dir, size, blocks); err != nil {
		return dev, err
	}
	st, err := os.Lstat(contentDir(unit))
	if err != nil || !st.IsDir() {
		return dev, fmt.Errorf("%s holds no directory /%s: it is no volume of ours", dev, ext4.RootDir)
	}
	return dev, nil
}

// growFS lets the filesystem mounted at dir, of a number of blocks, have the whole of
// its disk, but for less than a group of blocks. It returns how many it has then.
func growFS(dir string, size int64, blocks uint64) (uint64, error) {
	want := uint64(size) / ext4.BlockSize
	if want < blocks+ext4.GroupBlocks {
		return blocks, nil
	}
	want = want / ext4.GroupBlocks * ext4.GroupBlocks
	if err := resizeFS(dir, want); err != nil {
		return blocks, fmt.Errorf("grow its filesystem: %w", err)
	}
	return want, nil
}

// resizeFS grows a mounted ext4 to a number of blocks (EXT4_IOC_RESIZE_FS,
// fs/ext4/ext4.h).
func resizeFS(dir string, blocks uint64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const resize = 1<<30 | 8<<16 | 'f'<<8 | 16 // _IOW('f', 16, __u64)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), resize, uintptr(unsafe.Pointer(&blocks))); e != 0 {
		return e
	}
	return nil
}

// beingMade stands at the start of a disk while its filesystem is made; the
// superblock, which takes its place, is written last.
var beingMade = []byte("vic: a filesystem is being made here\n")

// prepareVolume makes a filesystem on a disk that has none, and tells the disk's
// size and the filesystem's blocks. What is neither zeroes nor an interrupted
// attempt is left as it is.
func prepareVolume(dev string) (size int64, blocks uint64, err error) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, 0, err
	}
	if blocks, err = fsBlocks(f); !errors.Is(err, errNoExt4) {
		return size, blocks, err
	}
	// What filesystems, partition tables and volume managers begin with lies in
	// here.
	head := make([]byte, 1<<20)
	if _, err := f.ReadAt(head, 0); err != nil {
		return size, 0, err
	}
	if !bytes.HasPrefix(head, beingMade) && len(bytes.TrimLeft(head, "\x00")) > 0 {
		return size, 0, errors.New("the disk is not empty, and holds no ext4 filesystem")
	}
	blocks, err = makeFS(f, size)
	return size, blocks, err
}

var errNoExt4 = errors.New("it holds no ext4 filesystem")

// fsBlocks reads how many blocks a disk's filesystem has (Linux,
// Documentation/filesystems/ext4/super.rst).
func fsBlocks(f io.ReaderAt) (uint64, error) {
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint16(sb[0x38:]) != 0xef53 {
		return 0, errNoExt4
	}
	return uint64(binary.LittleEndian.Uint32(sb[4:])) | uint64(binary.LittleEndian.Uint32(sb[0x150:]))<<32, nil
}

// A disk is written to, and keeps what was when Sync returns.
type disk interface {
	io.WriterAt
	Sync() error
}

// makeFS makes an empty filesystem on a disk of zeroes, or goes over an attempt
// that was cut off. Nothing takes it for a filesystem before it is one.
func makeFS(f disk, size int64) (blocks uint64, err error) {
	const group = ext4.GroupBlocks * ext4.BlockSize
	bytes := size / group * group
	fs, err := ext4.New(ext4.Geometry{Bytes: bytes})
	if err != nil {
		return 0, err
	}
	b := make([]byte, ext4.BlockSize)
	copy(b, beingMade)
	if _, err := f.WriteAt(b, 0); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	for _, lba := range fs.Dirty() {
		if lba == 0 {
			continue
		}
		fs.Block(lba, b)
		if _, err := f.WriteAt(b, int64(lba)*ext4.BlockSize); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	fs.Block(0, b)
	if _, err := f.WriteAt(b, 0); err != nil {
		return 0, err
	}
	return uint64(bytes) / ext4.BlockSize, f.Sync()
}

// newNamespace makes the container's world with its mounts. mounting is held.
func (m *machine) newNamespace(etc etcFiles) (*namespace, error) {
	_, err := os.Lstat(mountedMark)
	w := surroundings{config: m.config, mounts: m.mounts, first: err != nil}
	if len(m.mounts) > 0 {
		if w.nfs, err = m.volumes.mountNFS(context.Background(), m.mounts, m.net.resolv()); err != nil {
			return nil, err
		}
	}
	ns, err := newNamespace(diskMount+"/rootfs", etc, w)
	if err != nil || !w.first {
		return ns, err
	}
	return ns, os.WriteFile(mountedMark, nil, 0o600)
}
