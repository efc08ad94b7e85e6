package vch

import (
	"context"

	"github.com/hashicorp/go-multierror"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Delete removes a VCH: pool, folder, ISO and record. Images and volumes stay,
// because other VCHs may share their stores. A VCH that still has VMs is
// vic.ErrInUse; package engine deletes containers first where asked to. A VCH
// that is not there is no error, so that deleting again completes what a crash
// cut off.
func Delete(ctx context.Context, c *vic.Client, name string) error {
	const op = "delete"
	ref := vic.Ref{Kind: "VCH", Name: name}
	if !nameRE.MatchString(name) {
		return fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "no VCH can have this name"))
	}
	rec, at, err := lookup(ctx, c, name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(op, ref, err)
	}
	pool, folder, err := rec.find(ctx, c)
	if err != nil {
		return fault.Wrap(op, rec.ref(), err)
	}
	if err := vacant(ctx, c, pool, folder); err != nil {
		return fault.Wrap(op, rec.ref(), err)
	}
	rec.State = deleting
	if err := rec.write(ctx, at); err != nil {
		return fault.Wrap(op, rec.ref(), err)
	}
	var errs *multierror.Error
	var left []vic.Ref
	for _, r := range []*types.ManagedObjectReference{folder, pool} {
		if r == nil {
			continue
		}
		if err := destroy(ctx, c, *r); err != nil && !isNotFound(err) {
			errs = multierror.Append(errs, err)
			left = append(left, vic.Ref{Kind: r.Type, ID: r.Value, Name: name})
		}
	}
	if err := errs.ErrorOrNil(); err != nil {
		return &fault.Error{Op: op, Ref: rec.ref(), Err: err, Left: left}
	}
	return fault.Wrap(op, rec.ref(), at.Delete(ctx, dir(name)))
}

// find returns pool and folder as the record names them, or, where a crash
// came before it could, those of the VCH's name under the parents it names;
// nil for what does not exist.
func (r *record) find(ctx context.Context, c *vic.Client) (pool, folder *types.ManagedObjectReference, err error) {
	pool, err = child(ctx, c, r.Owner.Pool, mor("ResourcePool", r.PoolParent), "ResourcePool", "resourcePool", r.Owner.Name)
	if err != nil {
		return nil, nil, err
	}
	folder, err = child(ctx, c, r.Owner.Folder, mor("Folder", r.FolderParent), "Folder", "childEntity", r.Owner.Name)
	return pool, folder, err
}

func child(ctx context.Context, c *vic.Client, known vic.Ref, parent types.ManagedObjectReference, kind, path, name string) (*types.ManagedObjectReference, error) {
	req := types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{{
			Obj: parent, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: parent.Type, Path: path}},
		}},
		PropSet: []types.PropertySpec{{Type: kind, PathSet: []string{"name"}}},
	}}}
	res, err := property.DefaultCollector(c.Vim()).RetrieveProperties(ctx, req)
	if err != nil {
		return nil, vsphere.Judge(err)
	}
	for _, o := range res.Returnval {
		if known.ID != "" && o.Obj.Value == known.ID {
			return &o.Obj, nil
		}
		for _, p := range o.PropSet {
			if known.ID == "" && p.Name == "name" && p.Val == name {
				return &o.Obj, nil
			}
		}
	}
	return nil, nil
}

// vacant makes sure that nothing lives in pool and folder.
func vacant(ctx context.Context, c *vic.Client, pool, folder *types.ManagedObjectReference) error {
	if pool != nil {
		var p mo.ResourcePool
		err := vsphere.Properties(ctx, c.Session(), *pool, []string{"vm", "resourcePool"}, &p)
		if err != nil && !isNotFound(err) {
			return err
		}
		if len(p.Vm) > 0 || len(p.ResourcePool) > 0 {
			return fault.Of(vic.ErrInUse, "%d VMs and %d pools are in its resource pool", len(p.Vm), len(p.ResourcePool))
		}
	}
	if folder != nil {
		kids, err := object.NewFolder(c.Vim(), *folder).Children(ctx)
		if err = vsphere.Judge(err); err != nil && !isNotFound(err) {
			return err
		}
		if len(kids) > 0 {
			return fault.Of(vic.ErrInUse, "%d objects are in its VM folder", len(kids))
		}
	}
	return nil
}
