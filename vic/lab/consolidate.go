package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/vmdk"
)

// consolidate deletes the child disks that snapshots made and nobody needs any
// more, and merges those that alone stand on a disk which no snapshot keeps into
// that disk. m.power is held. The end of the process may come at any step: data is
// merged into the lower disk while the upper one still has it, then who stood on the
// upper one stands on the lower one, then the upper one goes.
func (l *Lab) consolidate(ctx context.Context, m *machine, vm *simulator.VirtualMachine) types.BaseMethodFault {
	defer l.refreshAll()
	idle, fault := l.idle(m, vm)
	if fault != nil || idle == nil {
		return fault
	}
	return l.changeDisks(ctx, m, vm, l.look(vm), func() types.BaseMethodFault {
		for {
			x, fault := l.idle(m, vm)
			if fault != nil || x == nil {
				return fault
			}
			if x.into.store != nil {
				fault = l.mergeDown(ctx, m, vm, x)
			}
			if fault == nil {
				fault = l.deleteDisk(x.disk)
			}
			if _, gone := fault.(*types.FileNotFound); fault != nil && !gone {
				return fault
			}
			l.note(m, func(n *labState) {
				n.Deltas = slices.DeleteFunc(slices.Clone(n.Deltas), func(d string) bool { return d == x.disk.String() })
			})
			l.journal.flush()
		}
	})
}

// An idleDisk is one to delete, after its content went into another where that is
// named.
type idleDisk struct {
	disk, into location
	above      []location // children of the disk
}

// diskUsers are the VM's configuration and those of its snapshots, whose disks are
// in use. They are copies.
func (l *Lab) diskUsers(m *machine, vm *simulator.VirtualMachine) map[types.ManagedObjectReference][]types.BaseVirtualDevice {
	out := map[types.ManagedObjectReference][]types.BaseVirtualDevice{m.ref: l.look(vm).config.Hardware.Device}
	for _, o := range l.reg.AllReference("VirtualMachineSnapshot") {
		s, ok := o.(*simulator.VirtualMachineSnapshot)
		if !ok || s.Vm != m.ref {
			continue
		}
		lc := l.context()
		lc.WithLock(s, func() { out[s.Self] = copyDevices(s.Config.Hardware.Device) })
	}
	return out
}

// idle finds the next disk to consolidate.
func (l *Lab) idle(m *machine, vm *simulator.VirtualMachine) (*idleDisk, types.BaseMethodFault) {
	used := map[string]bool{}
	for _, devices := range l.diskUsers(m, vm) {
		for _, d := range devicesOf(devices).SelectByType((*types.VirtualDisk)(nil)) {
			used[diskFile(d)] = true
		}
	}
	parent := map[string]location{}
	above := map[string][]location{}
	var deltas []location
	for _, name := range l.noted(m.ref).Deltas {
		at, fault := l.resolve(name)
		if fault != nil {
			return nil, fault
		}
		k, fault := openLink(at)
		if _, gone := fault.(*types.FileNotFound); gone && !used[name] {
			return &idleDisk{disk: at}, nil
		}
		if fault == nil {
			parent[name], fault = l.parentOf(k)
		}
		if fault != nil {
			return nil, fault
		}
		p := parent[name].String()
		above[p] = append(above[p], at)
		deltas = append(deltas, at)
	}
	for _, d := range deltas {
		p := parent[d.String()]
		switch {
		case !used[d.String()] && len(above[d.String()]) == 0:
			return &idleDisk{disk: d}, nil
		case !used[p.String()] && len(above[p.String()]) == 1:
			return &idleDisk{disk: d, into: p, above: above[d.String()]}, nil
		}
	}
	return nil, nil
}

// mergeDown writes what a child has into its parent, and has all that stood on the
// child stand on the parent.
func (l *Lab) mergeDown(ctx context.Context, m *machine, vm *simulator.VirtualMachine, x *idleDisk) types.BaseMethodFault {
	low, fault := openLink(x.into)
	if fault != nil {
		return fault
	}
	for _, f := range low.files() {
		if by := l.locks.holder(f); by != "" {
			return fileLocked(f.String(), by)
		}
	}
	if err := l.mergeData(ctx, x.disk, low); err != nil {
		return diskFault(x.into, fmt.Errorf("merge %s into it: %w", x.disk, err))
	}
	for _, c := range x.above {
		if fault := l.reparent(c, low); fault != nil {
			return fault
		}
	}
	for ref, devices := range l.diskUsers(m, vm) {
		for _, d := range devices {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			at, fault := l.resolve(diskFile(disk))
			if fault != nil {
				return fault
			}
			if at == x.disk {
				at = x.into
			}
			if fault := l.rebase(disk, at); fault != nil {
				return fault
			}
		}
		l.set(l.reg.Get(ref), types.PropertyChange{Name: "config.hardware.device", Val: devices})
	}
	l.journal.flush()
	return nil
}

// mergeData writes what the disk at top holds itself into its parent low. A flat
// parent is written in place, where a second time does no harm; the extent of a
// sparse one is made anew beside it.
func (l *Lab) mergeData(ctx context.Context, top location, low link) (err error) {
	d, err := l.openData(ctx, top)
	if err != nil {
		return err
	}
	defer d.Close()
	if len(low.desc.Extents) != 1 {
		return errors.New("disks of several extents are not merged")
	}
	ext := low.files()[1]
	if low.desc.ParentCID == vmdk.NoParent {
		f, err := ext.root.OpenFile(ext.rel, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(copyRuns(ctx, f, d), f.Close())
	}
	tmp := location{ext.store, path.Join(hidden, "merge-"+randomText())}
	if err := copyTree(ctx, ext, tmp, func(int32) {}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.root.Remove(tmp.rel)
		}
	}()
	f, err := tmp.root.OpenFile(tmp.rel, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	var w *vmdk.Child
	if err == nil {
		w, err = vmdk.OpenChild(f, st.Size(), d.Parent())
	}
	if err == nil {
		err = copyRuns(ctx, w, d)
	}
	var size int64
	if err == nil {
		size, err = w.Finish()
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return tmp.root.Rename(tmp.rel, ext.rel)
}

// copyRuns writes what the top of a chain holds itself to w.
func copyRuns(ctx context.Context, w io.WriterAt, d *chain.Disk) error {
	buf := make([]byte, 1<<20)
	return d.TopRuns(func(off, n int64) error {
		for n > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(n, int64(len(buf)), d.Size()-off)]
			if len(p) == 0 {
				return nil // the last grain goes on behind the disk's end
			}
			if _, err := d.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if _, err := w.WriteAt(p, off); err != nil {
				return err
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return nil
	})
}

// reparent has a child name another parent, by one rename.
func (l *Lab) reparent(child location, parent link) types.BaseMethodFault {
	k, fault := openLink(child)
	if fault != nil {
		return fault
	}
	d := *k.desc
	d.ParentCID, d.ParentHint = parent.desc.CID, hintTo(child, parent.at)
	return replaceDescriptor(child, &d)
}

func replaceDescriptor(at location, d *vmdk.Descriptor) types.BaseMethodFault {
	tmp := location{at.store, path.Join(hidden, "desc-"+randomText())}
	err := writeDescriptor(tmp, d)
	if err == nil {
		err = tmp.root.Rename(tmp.rel, at.rel)
	}
	if err != nil {
		return fileFault(at.String(), err)
	}
	return nil
}

// openData opens a disk with its parents for reading.
func (l *Lab) openData(ctx context.Context, at location) (*chain.Disk, error) {
	return chain.Open(ctx, "/vmfs/volumes/"+at.name+"/"+at.rel, func(_ context.Context, p string) (chain.File, error) {
		rest, ok := strings.CutPrefix(p, "/vmfs/volumes/")
		ds, rel, _ := strings.Cut(rest, "/")
		s := l.stores[ds]
		if !ok || s == nil {
			return nil, fmt.Errorf("%q is on no datastore", p)
		}
		f, err := s.root.Open(rel)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return sizedFile{f, st.Size()}, nil
	})
}

// A sizedFile is a file that knows how long it was when it was opened.
type sizedFile struct {
	*os.File
	size int64
}

func (f sizedFile) Size() int64 { return f.size }
