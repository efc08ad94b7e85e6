package vsphere

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// A Datastore is one of the session's datacenter, as far as it does not change.
type Datastore struct {
	Ref  types.ManagedObjectReference
	Name string
	// SparseDisks tells that it takes vmfsSparse disks.
	SparseDisks bool
}

type inventory struct {
	dc   types.ManagedObjectReference
	path string

	mu         sync.Mutex
	datastores []Datastore
}

// Datacenter returns the session's datacenter and its inventory path.
func (s *Session) Datacenter() (types.ManagedObjectReference, string) { return s.inv.dc, s.inv.path }

// Datastores returns the datacenter's datastores by name: as they were when
// they were read last, or, with fresh, as they are.
func (s *Session) Datastores(ctx context.Context, fresh bool) ([]Datastore, error) {
	s.inv.mu.Lock()
	known := s.inv.datastores
	s.inv.mu.Unlock()
	if !fresh {
		return slices.Clone(known), nil
	}
	all, err := s.readInventory(ctx, types.ObjectSpec{
		Obj: s.inv.dc, SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "Datacenter", Path: "datastore"}},
	})
	if err != nil {
		return nil, err
	}
	return s.keep(all), nil
}

// Datastore finds a datastore of the datacenter, by f. One that is not known
// yet is looked for in vSphere; one that is not there is fault.ErrNotFound.
func (s *Session) Datastore(ctx context.Context, what string, f func(Datastore) bool) (Datastore, error) {
	for _, fresh := range []bool{false, true} {
		all, err := s.Datastores(ctx, fresh)
		if err != nil {
			return Datastore{}, err
		}
		if i := slices.IndexFunc(all, f); i >= 0 {
			return all[i], nil
		}
	}
	return Datastore{}, fault.Of(fault.ErrNotFound, "datastore '%s' not found", what)
}

// Files gives access to a datastore of the datacenter.
func (s *Session) Files(ds types.ManagedObjectReference, name string) *Files {
	return NewFiles(s, s.inv.dc, s.inv.path, ds, name)
}

// open finds the datacenter and its datastores, in one round trip.
func (s *Session) open(ctx context.Context, name string) error {
	all, err := s.readInventory(ctx, types.ObjectSpec{
		Obj: s.Vim.ServiceContent.RootFolder,
		SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{
				SelectionSpec: types.SelectionSpec{Name: "folders"}, Type: "Folder", Path: "childEntity",
				SelectSet: []types.BaseSelectionSpec{
					&types.SelectionSpec{Name: "folders"},
					&types.TraversalSpec{Type: "Datacenter", Path: "datastore"},
				},
			},
		},
	})
	if err != nil {
		return err
	}
	s.inv.dc, s.inv.path, err = all.choose(name)
	if err != nil {
		return err
	}
	s.keep(all)
	return nil
}

// entities are folders, datacenters and datastores as they were read.
type entities map[types.ManagedObjectReference]*entity

type entity struct {
	name        string
	parent      types.ManagedObjectReference
	datastores  []types.ManagedObjectReference
	sparseDisks bool
}

func (s *Session) readInventory(ctx context.Context, from types.ObjectSpec) (entities, error) {
	res, err := property.DefaultCollector(s.Vim).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{from},
		PropSet: []types.PropertySpec{
			{Type: "Folder", PathSet: []string{"name", "parent"}},
			{Type: "Datacenter", PathSet: []string{"name", "parent", "datastore"}},
			{Type: "Datastore", PathSet: []string{"name", "capability"}},
		},
	}}})
	if err != nil {
		return nil, Judge(err)
	}
	all := entities{}
	for _, o := range res.Returnval {
		e := &entity{}
		for _, p := range o.PropSet {
			switch v := p.Val.(type) {
			case string:
				e.name = v
			case types.ManagedObjectReference:
				e.parent = v
			case types.ArrayOfManagedObjectReference:
				e.datastores = v.ManagedObjectReference
			case types.DatastoreCapability:
				e.sparseDisks = v.VmfsSparseSupported != nil && *v.VmfsSparseSupported
			}
		}
		all[o.Obj] = e
	}
	return all, nil
}

// keep notes the datacenter's datastores and returns them.
func (s *Session) keep(all entities) []Datastore {
	var out []Datastore
	if dc := all[s.inv.dc]; dc != nil {
		for _, ref := range dc.datastores {
			if e := all[ref]; e != nil && e.name != "" {
				out = append(out, Datastore{Ref: ref, Name: e.name, SparseDisks: e.sparseDisks})
			}
		}
	}
	slices.SortFunc(out, func(a, b Datastore) int { return strings.Compare(a.Name, b.Name) })
	s.inv.mu.Lock()
	defer s.inv.mu.Unlock()
	s.inv.datastores = out
	return slices.Clone(out)
}

// path composes an inventory path, which leaves the root folder out.
func (all entities) path(ref types.ManagedObjectReference) string {
	p := ""
	for range 100 {
		e := all[ref]
		if e == nil || e.parent.Value == "" {
			break
		}
		p = "/" + e.name + p
		ref = e.parent
	}
	return p
}

// choose finds the datacenter of a name or an inventory path, which may have
// wildcards, or of a reference's text; an empty name means the only one.
func (all entities) choose(name string) (types.ManagedObjectReference, string, error) {
	var none types.ManagedObjectReference
	var refs []types.ManagedObjectReference
	var paths []string
	for ref, e := range all {
		if ref.Type != "Datacenter" || e.name == "" {
			continue
		}
		p := all.path(ref)
		paths = append(paths, p)
		if name == "" || all.matches(name, ref, p) {
			refs = append(refs, ref)
		}
	}
	slices.Sort(paths)
	there := strings.Join(paths, ", ")
	switch {
	case len(refs) == 1:
		return refs[0], all.path(refs[0]), nil
	case name == "" && len(refs) == 0:
		return none, "", fault.Of(fault.ErrNotFound, "no default datacenter found")
	case name == "":
		return none, "", fault.Of(fault.ErrInvalid, "default datacenter resolves to multiple instances, please specify: there are %s", there)
	case len(refs) == 0:
		return none, "", fault.Of(fault.ErrNotFound, "datacenter '%s' not found; there are %s", name, there)
	}
	return none, "", fault.Of(fault.ErrInvalid, "path '%s' resolves to multiple datacenters", name)
}

func (all entities) matches(name string, ref types.ManagedObjectReference, p string) bool {
	if r := object.ReferenceFromString(name); r != nil && *r == ref {
		return true
	}
	if !strings.Contains(name, "/") {
		ok, err := path.Match(name, all[ref].name)
		return ok || err != nil && name == all[ref].name
	}
	name = path.Join("/", strings.TrimPrefix(name, "./"))
	ok, err := path.Match(name, p)
	return ok || err != nil && name == p
}

// Properties reads properties of one object into dst, a *mo type.
func Properties(ctx context.Context, s *Session, ref types.ManagedObjectReference, props []string, dst any) error {
	return Judge(property.DefaultCollector(s.Vim).RetrieveOne(ctx, ref, props, dst))
}

// Children reads properties of all objects of a kind that are children of a
// folder, in one round trip, page by page where they are many.
func Children[T any](ctx context.Context, s *Session, folder types.ManagedObjectReference, kind string, props []string) ([]T, error) {
	req := types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{{
			Obj: folder, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "Folder", Path: "childEntity"}},
		}},
		PropSet: []types.PropertySpec{{Type: kind, PathSet: props}},
	}}}
	res, err := property.DefaultCollector(s.Vim).RetrieveProperties(ctx, req)
	if err != nil {
		return nil, Judge(err)
	}
	var out []T
	if err := mo.LoadObjectContent(res.Returnval, &out); err != nil {
		return nil, Judge(err)
	}
	return out, nil
}

func gone(ref types.ManagedObjectReference) error {
	return fault.As(fault.ErrNotFound, fmt.Errorf("%s %s is gone", ref.Type, ref.Value))
}
