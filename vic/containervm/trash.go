package containervm

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/hashicorp/go-multierror"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Between the moment a VM leaves the inventory and the end of its files nothing
// in vSphere would tell that these are a container's. So a deletion writes down
// first, on the VCH's datastore, where they lie.

// trash is the directory of an owner's notes, each named after a container.
func trash(o vic.Owner) string { return path.Join("vic", "deleting", o.ID) }

const noteLimit = 4 << 10

// noteDeletion writes down where the files of the container lie, as a datastore
// path.
func (v *VM) noteDeletion(ctx context.Context, at string) (files *vsphere.Files, note string, err error) {
	files, err = v.filesOn(ctx, v.owner.Datastore.Name)
	if err != nil {
		return nil, "", err
	}
	note = path.Join(trash(v.owner), v.id)
	put := func() error { return files.Put(ctx, note, strings.NewReader(at), int64(len(at))) }
	if err := put(); err == nil || ctx.Err() != nil {
		return files, note, err
	}
	if err := files.MkdirAll(ctx, path.Dir(note)); err != nil {
		return nil, "", err
	}
	return files, note, put()
}

// Sweep deletes the files of the owner's containers whose deletion was cut off
// after their VMs had left the inventory. Deletions that go on meanwhile are not
// in its way.
func Sweep(ctx context.Context, c *vic.Client, owner vic.Owner) error {
	const op = "sweep containers"
	ref := types.ManagedObjectReference{Type: "Datastore", Value: owner.Datastore.ID}
	files := c.Session().Files(ref, owner.Datastore.Name)
	notes, err := files.List(ctx, trash(owner))
	if errors.Is(err, vic.ErrNotFound) || err == nil && len(notes) == 0 {
		return nil
	}
	if err != nil {
		return fault.Wrap(op, owner.Datastore, err)
	}
	used, err := directories(ctx, c)
	if err != nil {
		return fault.Wrap(op, owner.Datastore, err)
	}
	var errs *multierror.Error
	for _, n := range notes {
		if n.Dir || !idRE.MatchString(n.Name) {
			continue
		}
		v := &VM{c: c, id: n.Name, owner: owner}
		if err := v.sweep(ctx, files, path.Join(trash(owner), n.Name), used); err != nil {
			errs = multierror.Append(errs, fault.Wrap(op, vic.Ref{Kind: "vm", ID: n.Name}, err))
		}
	}
	return errs.ErrorOrNil()
}

// SweepAll is Sweep for an owner that is to go, and makes no more containers.
func SweepAll(ctx context.Context, c *vic.Client, owner vic.Owner) error {
	if err := Sweep(ctx, c, owner); err != nil {
		return err
	}
	ref := types.ManagedObjectReference{Type: "Datastore", Value: owner.Datastore.ID}
	return fault.Wrap("sweep containers", owner.Datastore, c.Session().Files(ref, owner.Datastore.Name).Delete(ctx, trash(owner)))
}

// sweep deletes what a note says, unless a VM uses it, and the note.
func (v *VM) sweep(ctx context.Context, files *vsphere.Files, note string, used map[string]bool) error {
	b, err := files.ReadFile(ctx, note, noteLimit)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ds, dir, err := vsphere.SplitPath(string(b))
	if err != nil || path.Dir(dir) != "." || dir == "." || dir == "vic" {
		return fault.Of(vic.ErrInvalid, "%s is no note of a deletion: %.80q", files.Path(note), b)
	}
	// A VM that has the directory was not deleted after all.
	if !used[string(b)] {
		at, err := v.filesOn(ctx, ds)
		if err != nil {
			return err
		}
		if err := v.deleteFiles(ctx, at, dir); err != nil {
			return err
		}
	}
	return files.Delete(ctx, note)
}

// deleteFiles deletes a container's directory, its disks as disks where a
// datastore may keep their data elsewhere.
func (v *VM) deleteFiles(ctx context.Context, files *vsphere.Files, dir string) error {
	es, err := files.List(ctx, dir)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var disks []string
	for _, e := range es {
		if !e.Dir && strings.HasSuffix(e.Name, ".vmdk") {
			disks = append(disks, path.Join(dir, e.Name))
		}
	}
	v.deleteDisks(ctx, files, disks)
	return files.Delete(ctx, dir)
}

// directories are those of all VMs of the datacenter, as datastore paths.
func directories(ctx context.Context, c *vic.Client) (map[string]bool, error) {
	vms, err := vsphere.VMs(ctx, c.Session(), "name", "config.files.vmPathName")
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, m := range vms {
		if m.Config == nil {
			return nil, fault.Of(vic.ErrUnavailable, "vSphere does not tell now where VM %q lies, so nothing can be deleted safely", m.Name)
		}
		used[path.Dir(m.Config.Files.VmPathName)] = true
	}
	return used, nil
}
