package vch

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Create makes a VCH. The record comes first, then pool, folder and ISO; if
// one of them fails, what was made is undone, and what could not be undone is
// named in the error's Left.
//
// A name that is taken is vic.ErrConflict, unless spec.ID is the ID of the VCH
// that has it, which is then opened.
func Create(ctx context.Context, c *vic.Client, spec Spec, o Options) (*VCH, error) {
	const op = "create"
	ref := vic.Ref{Kind: "VCH", ID: spec.ID, Name: spec.Name}
	if err := spec.Validate(); err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	if _, err := publicKey(c); err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	iso, size, err := openISO(o.BootISO)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	defer iso.Close()

	have, err := existing(ctx, c, spec)
	if have != nil || err != nil {
		return have, fault.Wrap(op, ref, err)
	}
	rec, at, pool, err := plan(ctx, c, spec)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	h := &VCH{c: c, rec: rec, at: at}
	if left, err := h.make(ctx, pool, iso, size, o.Progress); err != nil {
		return nil, &fault.Error{Op: op, Ref: h.Ref(), Err: err, Left: left}
	}
	return h, nil
}

// existing answers a name that is taken.
func existing(ctx context.Context, c *vic.Client, spec Spec) (*VCH, error) {
	r, at, err := lookup(ctx, c, spec.Name)
	switch {
	case errors.Is(err, vic.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case spec.ID == "" || r.Owner.ID != spec.ID:
		return nil, fault.Of(vic.ErrConflict, "the name is taken by VCH %s", r.Owner.ID)
	case r.State != ready:
		return nil, r.State.explain()
	}
	return &VCH{c: c, rec: r, at: at}, nil
}

// plan resolves the spec's names and makes the record, in memory only.
func plan(ctx context.Context, c *vic.Client, spec Spec) (*record, *vsphere.Files, *object.ResourcePool, error) {
	f := finder(c)
	if spec.CPUs == 0 {
		spec.CPUs = 1
	}
	if spec.MemoryMB == 0 {
		spec.MemoryMB = 512
	}
	if spec.ID == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		spec.ID = hex.EncodeToString(b[:])
	}
	authority, err := publicKey(c)
	if err != nil {
		return nil, nil, nil, err
	}
	var cr *object.ComputeResource
	if spec.Compute == "" {
		cr, err = f.DefaultComputeResource(ctx)
	} else {
		cr, err = f.ComputeResource(ctx, spec.Compute)
	}
	if err != nil {
		return nil, nil, nil, describe("Compute", suggest(ctx, f, err))
	}
	root, err := cr.ResourcePool(ctx)
	if err != nil {
		return nil, nil, nil, describe("Compute", vsphere.Judge(err))
	}
	dsName, imageDir, _ := strings.Cut(spec.ImageStore, "/")
	if imageDir == "" {
		imageDir = "vic/images"
	}
	ds, err := c.Session().Datastore(ctx, dsName, func(d vsphere.Datastore) bool { return d.Name == dsName })
	if err != nil {
		return nil, nil, nil, describe("ImageStore", err)
	}
	if spec.VolumeStores == nil {
		spec.VolumeStores = map[string]string{"default": dsName}
	}
	dsRef := vic.Ref{Kind: "datastore", ID: ds.Ref.Value, Name: ds.Name}
	volumes, err := volumePlaces(ctx, c, &spec, dsRef)
	if err != nil {
		return nil, nil, nil, describe("VolumeStores", err)
	}
	folders, err := object.NewDatacenter(c.Vim(), dcRef(c)).Folders(ctx)
	if err != nil {
		return nil, nil, nil, vsphere.Judge(err)
	}
	at := c.Session().Files(ds.Ref, ds.Name)
	return &record{
		Version: 1, State: creating, Created: time.Now().UTC(), Spec: spec,
		Owner: vic.Owner{
			ID: spec.ID, Name: spec.Name, Datacenter: c.Datacenter().Name,
			Datastore: dsRef, BootISO: at.Path(path.Join(dir(spec.Name), "bootstrap.iso")),
			Authority: authority,
			NIC:       spec.NIC, CPUs: spec.CPUs, MemoryMB: spec.MemoryMB,
		},
		Images:       vic.Place{Datastore: dsRef, Dir: imageDir},
		Volumes:      volumes,
		PoolParent:   vic.Ref{Kind: "pool", ID: root.Reference().Value},
		FolderParent: vic.Ref{Kind: "folder", ID: folders.VmFolder.Reference().Value},
	}, at, root, nil
}

// publicKey is the client's authority's, in authorized_keys form.
func publicKey(c *vic.Client) (string, error) {
	if c.Authority() == nil {
		return "", fault.Of(vic.ErrInvalid, "the client has no Authority: without one no controller could speak to the containers")
	}
	pub, err := ssh.NewPublicKey(c.Authority().Public())
	if err != nil {
		return "", fault.Of(vic.ErrInvalid, "Authority: %v", err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))), nil
}

// volumePlaces resolves the names of the volume stores' datastores. The records of
// those on NFS servers lie beside the VCH's.
func volumePlaces(ctx context.Context, c *vic.Client, spec *Spec, at vic.Ref) (map[string]vic.Place, error) {
	out := map[string]vic.Place{}
	seen := map[vic.Place]string{}
	for _, label := range slices.Sorted(maps.Keys(spec.VolumeStores)) {
		if isNFS(spec.VolumeStores[label]) {
			out[label] = vic.Place{Datastore: at, Dir: path.Join("vic/nfs", spec.Name, label), NFS: spec.VolumeStores[label]}
			continue
		}
		name, dir, _ := strings.Cut(spec.VolumeStores[label], "/")
		if dir == "" {
			dir = path.Join("vic/volumes", spec.Name)
		}
		ds, err := c.Session().Datastore(ctx, name, func(d vsphere.Datastore) bool { return d.Name == name })
		if err != nil {
			return nil, describe(label, err)
		}
		p := vic.Place{Datastore: vic.Ref{Kind: "datastore", ID: ds.Ref.Value, Name: ds.Name}, Dir: dir}
		if other, ok := seen[p]; ok {
			return nil, fault.Of(vic.ErrInvalid, "%q and %q are the same directory [%s] %s", other, label, ds.Name, dir)
		}
		seen[p], out[label] = label, p
	}
	return out, nil
}

// suggest adds the names there are to a name that is not found.
func suggest(ctx context.Context, f *find.Finder, err error) error {
	err = vsphere.Judge(err)
	if all, e := f.ComputeResourceList(ctx, "*"); e == nil {
		var names []string
		for _, cr := range all {
			names = append(names, cr.Name())
		}
		return fault.As(vic.ErrNotFound, describe(err.Error()+"; there are", errors.New(strings.Join(names, ", "))))
	}
	return err
}

// make makes what the record says, and undoes it in reverse where a step
// fails.
func (h *VCH) make(ctx context.Context, root *object.ResourcePool, iso io.Reader, size int64, p func(vic.Event)) (left []vic.Ref, err error) {
	name := h.rec.Owner.Name
	var undo []step
	defer func() {
		if err != nil {
			left = unwind(ctx, undo)
		}
	}()
	tell := func(phase string, total int64) {
		if p != nil {
			p(vic.Event{Op: "create", ID: name, Phase: phase, Total: total, Time: time.Now()})
		}
	}
	// The record is written into a directory of a name that nobody looks at,
	// and one rename publishes it: that decides between two creators of one
	// name, and a crash before it leaves nothing that is in anyone's way.
	tell("record", 0)
	tmp := path.Join(home, ".new-"+h.rec.Owner.ID)
	if err := h.at.MkdirAll(ctx, tmp); err != nil {
		return nil, err
	}
	undo = append(undo, step{vic.Ref{Kind: "file", ID: h.at.Path(tmp)}, func(ctx context.Context) error { return h.at.Delete(ctx, tmp) }})
	if err := h.rec.writeTo(ctx, h.at, path.Join(tmp, "vch.json")); err != nil {
		return nil, err
	}
	if err := h.at.Move(ctx, tmp, dir(name), false); err != nil {
		if errors.Is(err, vic.ErrConflict) {
			err = fault.Of(vic.ErrConflict, "the name has just been taken")
		}
		return nil, err
	}
	undo = append(undo, step{vic.Ref{Kind: "file", ID: h.at.Path(dir(name))}, func(ctx context.Context) error { return h.at.Delete(ctx, dir(name)) }})
	// What is asked for is heard of, for it to be undone.
	octx, cancel := vsphere.Outlive(ctx)
	defer cancel()
	tell("pool", 0)
	pool, err := root.Create(octx, name, types.DefaultResourceConfigSpec())
	if err != nil {
		return nil, describe("resource pool", vsphere.Judge(err))
	}
	h.rec.Owner.Pool = vic.Ref{Kind: "pool", ID: pool.Reference().Value, Name: name}
	undo = append(undo, step{h.rec.Owner.Pool, func(ctx context.Context) error { return destroy(ctx, h.c, pool.Reference()) }})
	tell("folder", 0)
	folder, err := object.NewFolder(h.c.Vim(), mor("Folder", h.rec.FolderParent)).CreateFolder(octx, name)
	if err != nil {
		return nil, describe("VM folder", vsphere.Judge(err))
	}
	h.rec.Owner.Folder = vic.Ref{Kind: "folder", ID: folder.Reference().Value, Name: name}
	undo = append(undo, step{h.rec.Owner.Folder, func(ctx context.Context) error { return destroy(ctx, h.c, folder.Reference()) }})
	if err := h.rec.write(ctx, h.at); err != nil {
		return nil, err
	}
	tell("ISO", size)
	_, isoPath, _ := vsphere.SplitPath(h.rec.Owner.BootISO)
	if err := h.at.Put(ctx, isoPath, iso, size); err != nil {
		return nil, err
	}
	h.rec.State = ready
	if err := h.rec.write(ctx, h.at); err != nil {
		return nil, err
	}
	tell("done", 0)
	return nil, nil
}

type step struct {
	ref vic.Ref
	fn  func(context.Context) error
}

// unwind undoes steps in reverse on a detached context and returns what
// resisted.
func unwind(ctx context.Context, steps []step) (left []vic.Ref) {
	ctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].fn(ctx); err != nil && !isNotFound(err) {
			left = append(left, steps[i].ref)
		}
	}
	return left
}

func destroy(ctx context.Context, c *vic.Client, ref types.ManagedObjectReference) error {
	return vsphere.Do(ctx, c.Session(), object.NewCommon(c.Vim(), ref).Destroy)
}

func isNotFound(err error) bool { return errors.Is(err, vic.ErrNotFound) }

func openISO(p string) (*os.File, int64, error) {
	if p == "" {
		return nil, 0, fault.Of(vic.ErrInvalid, "BootISO is empty: name the bootstrap ISO (package bootiso makes one)")
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, 0, fault.As(vic.ErrInvalid, describe("BootISO", err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fault.Of(vic.ErrInvalid, "BootISO: %s is no regular file", p)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
