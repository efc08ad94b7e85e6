package imagestore

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Delete takes a name from the store, and with its last name the image and
// those of its layers that no other image has. An image that a VM's disk is a
// child of is vic.ErrInUse. A name that is not there is no error.
//
// It must not run beside a Pull of an image that shares layers with this one.
func (s *Store) Delete(ctx context.Context, name string) error {
	const op = "delete image"
	ref := vic.Ref{Kind: "image", Name: name}
	img, err := s.Image(ctx, name)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	last := true
	for _, o := range all {
		if o.name == name {
			continue
		}
		if o.doc.Manifest == img.doc.Manifest {
			last = false
		}
		for _, d := range s.dirsOf(&o.doc) {
			keep[d] = true
		}
	}
	if !last {
		return fault.Wrap(op, ref, s.files.Delete(ctx, s.path("names", nameFile(name))))
	}
	used, err := s.used(ctx)
	if err != nil {
		return fault.Wrap(op, ref, err)
	}
	if used[img.doc.Dir] {
		return fault.Wrap(op, ref, fault.Of(vic.ErrInUse, "a VM's disk is a child of it: delete the container first"))
	}
	doomed := []string{s.path("names", nameFile(name)), s.path("images", imageFile(img.doc.Manifest))}
	for _, d := range s.dirsOf(&img.doc) {
		if !keep[d] && !used[d] {
			doomed = append(doomed, s.path("layers", d))
		}
	}
	for _, p := range doomed {
		if err := s.files.Delete(ctx, p); err != nil {
			return &fault.Error{Op: op, Ref: ref, Err: err, Left: []vic.Ref{{Kind: "file", ID: s.files.Path(p)}}}
		}
	}
	return nil
}

// dirsOf lists the directories an image's chain lies in, top first, so that a
// deletion that is cut off leaves no layer without its parent.
func (s *Store) dirsOf(doc *imageDoc) []string {
	chain := chainIDs(append([]digest.Digest(nil), doc.Config.RootFS.DiffIDs...))
	var out []string
	for i := len(chain) - 1; i >= 0; i-- {
		out = append(out, s.layerDir(chain[i]))
	}
	return append(out, s.baseDir())
}

// used tells the layer directories that disks of VMs are children of.
func (s *Store) used(ctx context.Context) (map[string]bool, error) {
	v, err := view.NewManager(s.c.Vim()).CreateContainerView(ctx, types.ManagedObjectReference{Type: "Datacenter", Value: s.c.Datacenter().ID}, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, vsphere.Judge(err)
	}
	defer func() {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = v.Destroy(dctx)
	}()
	var vms []mo.VirtualMachine
	if err := v.Retrieve(ctx, []string{"VirtualMachine"}, []string{"config.hardware.device"}, &vms); err != nil {
		return nil, vsphere.Judge(err)
	}
	_, ds := s.files.Datastore()
	layers := s.path("layers") + "/"
	out := map[string]bool{}
	for _, m := range vms {
		if m.Config == nil {
			continue
		}
		for _, d := range m.Config.Hardware.Device {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			for _, p := range backingChain(disk.Backing) {
				name, file, err := vsphere.SplitPath(p)
				if err == nil && name == ds && strings.HasPrefix(file, layers) {
					out[path.Base(path.Dir(file))] = true
				}
			}
		}
	}
	return out, nil
}

// backingChain lists a disk's file and those of its parents.
func backingChain(b types.BaseVirtualDeviceBackingInfo) []string {
	var out []string
	for len(out) < 256 {
		switch x := b.(type) {
		case *types.VirtualDiskFlatVer2BackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		case *types.VirtualDiskSparseVer2BackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		case *types.VirtualDiskSeSparseBackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		default:
			return out
		}
	}
	return out
}
