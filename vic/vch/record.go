package vch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// home is where the records of a datastore's VCHs lie.
const home = "vic/vch"

// recordLimit is more than any record takes; a larger file is none.
const recordLimit = 1 << 20

type state string

const (
	creating state = "creating"
	ready    state = "ready"
	deleting state = "deleting"
)

// record is the document on the datastore.
type record struct {
	Version int       `json:"version"`
	State   state     `json:"state"`
	Created time.Time `json:"created"`
	Spec    Spec      `json:"spec"`
	Owner   vic.Owner `json:"owner"`
	Images  vic.Place `json:"images"`
	// Volumes are the volume stores by label.
	Volumes map[string]vic.Place `json:"volumes,omitempty"`
	// Parents of pool and folder, to find them by name where a crash came
	// before their references were written.
	PoolParent   vic.Ref `json:"poolParent"`
	FolderParent vic.Ref `json:"folderParent"`
}

func dir(name string) string  { return path.Join(home, name) }
func file(name string) string { return path.Join(home, name, "vch.json") }

func (r *record) write(ctx context.Context, f *vsphere.Files) error {
	return r.writeTo(ctx, f, file(r.Owner.Name))
}

func (r *record) writeTo(ctx context.Context, f *vsphere.Files, p string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return f.WriteFile(ctx, p, b)
}

func readRecord(ctx context.Context, f *vsphere.Files, name string) (*record, error) {
	b, err := f.ReadFile(ctx, file(name), recordLimit)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fault.Of(vic.ErrInvalid, "%s is no VCH record: %v", f.Path(file(name)), err)
	}
	if r.Version != 1 {
		return nil, fault.Of(vic.ErrUnsupported, "%s: version %d was written by a newer release; this one knows 1", f.Path(file(name)), r.Version)
	}
	if r.Owner.Name != name || r.Owner.ID == "" {
		return nil, fault.Of(vic.ErrInvalid, "%s is the record of %q, not of %q", f.Path(file(name)), r.Owner.Name, name)
	}
	return r, nil
}

// stores opens the datastores of the client's datacenter: those that were known
// when they were last asked for, or, with fresh, those there are.
func stores(ctx context.Context, c *vic.Client, fresh bool) ([]*vsphere.Files, error) {
	all, err := c.Session().Datastores(ctx, fresh)
	if err != nil {
		return nil, err
	}
	var out []*vsphere.Files
	for _, ds := range all {
		out = append(out, c.Session().Files(ds.Ref, ds.Name))
	}
	return out, nil
}

func dcRef(c *vic.Client) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Datacenter", Value: c.Datacenter().ID}
}

func finder(c *vic.Client) *find.Finder {
	dc := object.NewDatacenter(c.Vim(), dcRef(c))
	dc.InventoryPath = c.Datacenter().Name
	return find.NewFinder(c.Vim(), false).SetDatacenter(dc)
}

// eachStore calls fn for every datastore at once and joins the errors.
func eachStore(fs []*vsphere.Files, fn func(*vsphere.Files) error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = fn(f) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// lookup finds the record of a name on whichever datastore it is. Only the
// names of datastores are kept by a client, so where those that are known do
// not have it, vSphere is asked which there are by now.
func lookup(ctx context.Context, c *vic.Client, name string) (*record, *vsphere.Files, error) {
	for _, fresh := range []bool{false, true} {
		rec, at, err := lookupIn(ctx, c, name, fresh)
		if rec != nil {
			return rec, at, nil
		}
		if err != nil && fresh {
			return nil, nil, err
		}
	}
	return nil, nil, fault.Of(vic.ErrNotFound, "no datastore of %s holds a VCH of this name", c.Datacenter().Name)
}

func lookupIn(ctx context.Context, c *vic.Client, name string, fresh bool) (*record, *vsphere.Files, error) {
	all, err := stores(ctx, c, fresh)
	if err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	var rec *record
	var at *vsphere.Files
	err = eachStore(all, func(f *vsphere.Files) error {
		r, err := readRecord(ctx, f, name)
		if errors.Is(err, vic.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if rec != nil {
			_, a := at.Datastore()
			_, b := f.Datastore()
			return fault.Of(vic.ErrInvalid, "datastores %q and %q both hold a VCH of this name", a, b)
		}
		rec, at = r, f
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return rec, at, nil
}

func (r *record) ref() vic.Ref { return vic.Ref{Kind: "VCH", ID: r.Owner.ID, Name: r.Owner.Name} }

func (s state) explain() error {
	return fault.Of(vic.ErrState, "its state is %q: another process works on it, or was ended; delete it to start anew", s)
}

func mor(kind string, r vic.Ref) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: kind, Value: r.ID}
}

func describe(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
