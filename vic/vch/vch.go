package vch

import (
	"context"
	"maps"
	"sort"
	"sync"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A VCH is a virtual container host that exists.
type VCH struct {
	c  *vic.Client
	at *vsphere.Files

	mu  sync.Mutex
	rec *record // replaced, not changed, once the VCH is open
}

// Open looks a VCH up by name. One whose creation or deletion was not
// completed is vic.ErrState; Delete clears it away.
func Open(ctx context.Context, c *vic.Client, name string) (*VCH, error) {
	const op = "open"
	ref := vic.Ref{Kind: "VCH", Name: name}
	if !nameRE.MatchString(name) {
		return nil, fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "no VCH can have this name"))
	}
	rec, at, err := lookup(ctx, c, name)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	if rec.State != ready {
		return nil, fault.Wrap(op, rec.ref(), rec.State.explain())
	}
	return &VCH{c: c, rec: rec, at: at}, nil
}

// A Summary is what List tells of a VCH.
type Summary struct {
	ID, Name string
	// State is "ready", or "creating" or "deleting" where that is under way or
	// was cut off.
	State     string
	Datastore string
}

// List tells all VCHs of the client's datacenter, by name.
func List(ctx context.Context, c *vic.Client) ([]Summary, error) {
	const op = "list VCHs"
	all, err := stores(ctx, c, true)
	if err != nil {
		return nil, fault.Wrap(op, c.Datacenter(), err)
	}
	var mu sync.Mutex
	var out []Summary
	err = eachStore(all, func(f *vsphere.Files) error {
		es, err := f.List(ctx, home)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range es {
			if !e.Dir || !nameRE.MatchString(e.Name) {
				continue
			}
			r, err := readRecord(ctx, f, e.Name)
			if isNotFound(err) {
				continue // being made or deleted at this moment
			}
			if err != nil {
				return err
			}
			_, ds := f.Datastore()
			mu.Lock()
			out = append(out, Summary{ID: r.Owner.ID, Name: r.Owner.Name, State: string(r.State), Datastore: ds})
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return nil, fault.Wrap(op, c.Datacenter(), err)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (h *VCH) record() *record {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rec
}

// Owner is what makers of container VMs need to know.
func (h *VCH) Owner() vic.Owner { return h.record().Owner }

// Images is where the VCH's image store is.
func (h *VCH) Images() vic.Place { return h.record().Images }

// Volumes is where the VCH's volume stores are, by label.
func (h *VCH) Volumes() map[string]vic.Place { return maps.Clone(h.record().Volumes) }

// Spec is what the VCH was made from, defaults filled in.
func (h *VCH) Spec() Spec { return h.record().Spec }

// Ref names the VCH.
func (h *VCH) Ref() vic.Ref { return h.record().ref() }
