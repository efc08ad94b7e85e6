package imagestore

import (
	"context"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// DeleteOptions are the details of a deletion; nil means none.
type DeleteOptions struct {
	// Force takes all names from an image that is asked for by its digest, where
	// it has several, and the names from one that a container was made from.
	// Such an image stays, without a name, until the container is gone and
	// Prune deletes it.
	Force bool
}

// Delete takes a name from the store, and with its last name the image and
// those of its layers that nobody else needs. Instead of a name it takes the
// digest of an image, or four or more of a digest's first hexadecimal digits,
// and deletes the image with its name; one that has several is vic.ErrConflict.
// An image that a container was made from is vic.ErrInUse. What is not there is
// no error.
//
// Pulls may run beside it: what a pull that is under way needs stays.
func (s *Store) Delete(ctx context.Context, name string, o *DeleteOptions) (*Deleted, error) {
	const op = "delete image"
	ref := vic.Ref{Kind: "image", Name: name}
	if o == nil {
		o = &DeleteOptions{}
	}
	d, err := s.collect(ctx, func(st *state) (*plan, error) {
		id, byName, err := st.find(name)
		if err != nil || id == "" {
			return nil, err
		}
		names := st.namesOf(id)
		vms := st.containers(id)
		switch {
		case byName && len(names) > 1:
			return &plan{names: []string{name}}, nil
		case len(vms) > 0 && (!o.Force || len(names) == 0):
			return nil, fault.Of(vic.ErrInUse, "container %s was made from it: delete that first", vms[0])
		case len(names) > 1 && !o.Force:
			return nil, fault.Of(vic.ErrConflict, "it has the names %s: delete those, or force", strings.Join(names, ", "))
		case len(vms) > 0:
			return &plan{names: names}, nil
		}
		return &plan{names: names, images: map[digest.Digest]bool{id: true}}, nil
	})
	return d, fault.Wrap(op, ref, err)
}

// find looks an image up by name, else by digest. Nothing found is an empty
// digest.
func (st *state) find(name string) (id digest.Digest, byName bool, err error) {
	if n := st.names[name]; n != nil {
		return n.Manifest, true, nil
	}
	var ids []digest.Digest
	for d := range st.images {
		ids = append(ids, d)
	}
	id, repo, err := match(name, ids)
	if id != "" && repo != "" && !inRepository(st.namesOf(id), repo) {
		id = ""
	}
	return id, false, err
}

// vmUse is what the disks of VMs stand on.
type vmUse struct {
	// dirs are all layer directories that a disk needs.
	dirs map[string]bool
	// tops are the VMs by the layer directory that their disk was made on.
	tops map[string][]string
}

// vmUse asks vSphere what the VMs of the datacenter use.
func (s *Store) vmUse(ctx context.Context) (*vmUse, error) {
	vms, err := vsphere.VMs(ctx, s.c.Session(), "name", "config.hardware.device")
	if err != nil {
		return nil, err
	}
	_, ds := s.files.Datastore()
	layers := s.path("layers") + "/"
	out := &vmUse{dirs: map[string]bool{}, tops: map[string][]string{}}
	for _, m := range vms {
		if m.Config == nil {
			return nil, fault.Of(vic.ErrUnavailable, "vSphere does not tell now which disks VM %q has, so nothing can be deleted safely", m.Name)
		}
		for _, d := range m.Config.Hardware.Device {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			top := true
			for _, p := range vsphere.BackingChain(disk.Backing) {
				name, file, err := vsphere.SplitPath(p)
				if err != nil || name != ds || !strings.HasPrefix(file, layers) {
					continue
				}
				dir := path.Base(path.Dir(file))
				out.dirs[dir] = true
				if top {
					out.tops[dir] = append(out.tops[dir], m.Name)
				}
				top = false
			}
		}
	}
	return out, nil
}
