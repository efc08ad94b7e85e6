// Package volumestore keeps volumes: disks with names that outlive containers.
//
// A VCH has stores, each a directory of a datastore that is called by a label.
// A volume is a directory in one of them, by the volume's name:
//
//	NAME/volume.json   what the volume is: name, size, labels, options
//	NAME/disk.vmdk     the disk's descriptor; its data lies beside it
//
// A volume is filled under a name that begins with ".new-" and published by one
// rename, and taken out of the store by one rename to a name that begins with
// ".del-", so it is seen whole or not at all, and any process may be killed at
// any moment. Whoever uses a volume is known to vSphere alone: it is in use while
// a VM has its disk.
//
// The disk is one that vSphere makes, thin and empty, in whatever format the
// datastore has, so that it has no parent, can grow, and can be had on every
// datastore. The guest that mounts it first writes the ext4 filesystem (see
// tether.Volume).
//
// A store may be on an NFS server. Then its directory of the datastore has the
// records alone, and a volume is a directory on the server, NAME-ID, which the first
// guest that mounts it makes: controllers need not reach the server. Any number of
// containers have it at a time; the VMs of those that do name its ID in their extraConfig.
// It has no size, begins empty, and its deletion leaves its files on the server,
// where no other volume finds them: the server's administrator deletes them.
package volumestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

const (
	recordFile  = "volume.json"
	diskFile    = "disk.vmdk"
	recordLimit = 1 << 20

	newPrefix = ".new-"
	delPrefix = ".del-"
	// wantPrefix begins what is made and wants its name, where there are several
	// stores.
	wantPrefix = ".want-"
)

// A Store is the volume stores of a VCH, each by its label. Its methods may be
// called by several goroutines. It holds nothing that must be closed.
type Store struct {
	c      *vic.Client
	places []*place // by label
}

// place is one directory of volumes.
type place struct {
	label string
	files *vsphere.Files
	dir   string
	nfs   *vic.NFS // where the volumes are; nil: they are disks beside their records
}

// Open opens volume stores by their labels (see vch.VCH.Volumes). The
// directories need not exist yet, and nothing is asked of vSphere. With none,
// every Create is vic.ErrUnsupported.
func Open(c *vic.Client, places map[string]vic.Place) (*Store, error) {
	const op = "open volume stores"
	s := &Store{c: c}
	for _, label := range slices.Sorted(keys(places)) {
		at := places[label]
		ref := vic.Ref{Kind: "volume store", Name: label}
		switch {
		case !labelRE.MatchString(label):
			return nil, fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "label %.80q: want at most 64 letters, digits, '-', '_' or '.'", label))
		case at.Datastore.ID == "" || at.Dir == "" || path.Clean(at.Dir) != at.Dir || path.IsAbs(at.Dir) || strings.HasPrefix(at.Dir, ".."):
			return nil, fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "[%s] %s: want a plain relative directory of a datastore", at.Datastore.Name, at.Dir))
		}
		for _, p := range s.places {
			if r, _ := p.files.Datastore(); r.Value == at.Datastore.ID && p.dir == at.Dir {
				return nil, fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "it is the same directory as store %q", p.label))
			}
		}
		nfs, err := openNFS(at)
		if err != nil {
			return nil, fault.Wrap(op, ref, err)
		}
		ds := types.ManagedObjectReference{Type: "Datastore", Value: at.Datastore.ID}
		s.places = append(s.places, &place{label: label, files: c.Session().Files(ds, at.Datastore.Name), dir: at.Dir, nfs: nfs})
	}
	return s, nil
}

// Labels names the stores.
func (s *Store) Labels() []string {
	var out []string
	for _, p := range s.places {
		out = append(out, p.label)
	}
	return out
}

// place finds the store of a label.
func (s *Store) place(label string) (*place, error) {
	if len(s.places) == 0 {
		return nil, fault.Of(vic.ErrUnsupported, "the VCH has no volume store: create it with one, labelled %q where volumes name none", DefaultStore)
	}
	named := label
	if label == "" {
		label = DefaultStore
	}
	for _, p := range s.places {
		if p.label == label {
			return p, nil
		}
	}
	there := strings.Join(s.Labels(), ", ")
	if named == "" {
		return nil, fault.Of(vic.ErrInvalid, "Store: none is named, and none has the label %q; there are %s", DefaultStore, there)
	}
	return nil, fault.Of(vic.ErrNotFound, "Store: there is no volume store %.80q; there are %s", named, there)
}

func (p *place) path(elem ...string) string {
	return path.Join(append([]string{p.dir}, elem...)...)
}

// document is what volume.json says.
type document struct {
	Version   int               `json:"version"`
	Name      string            `json:"name"`
	ID        string            `json:"id,omitempty"` // on NFS servers
	Bytes     int64             `json:"bytes"`
	Created   time.Time         `json:"created"`
	Anonymous bool              `json:"anonymous,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
}

// Info is what a store knows of a volume.
type Info struct {
	Name string
	// Store is the label of the volume's store.
	Store string
	// Bytes is the size of its disk, and 0 of a volume on an NFS server, where
	// Directory is.
	Bytes     int64
	Directory string
	Created   time.Time
	// Anonymous: it was made without a name, and goes with its container where
	// that is asked for.
	Anonymous bool
	Labels    map[string]string
	Options   map[string]string
}

// A Volume is one that exists.
type Volume struct {
	s   *Store
	at  *place
	doc document
}

// Name of the volume.
func (v *Volume) Name() string { return v.doc.Name }

// Disk is the volume's disk, for containervm.Mount; zero where it has none (see NFS).
func (v *Volume) Disk() vic.Disk {
	if v.at.nfs != nil {
		return vic.Disk{}
	}
	return vic.Disk{Path: v.at.files.Path(v.at.path(v.doc.Name, diskFile)), Bytes: v.doc.Bytes}
}

// Info tells what the volume's record says.
func (v *Volume) Info() Info {
	d := v.doc
	return Info{Name: d.Name, Store: v.at.label, Bytes: d.Bytes, Directory: v.directory(), Created: d.Created, Anonymous: d.Anonymous, Labels: d.Labels, Options: d.Options}
}

// Ref names the volume.
func (v *Volume) Ref() vic.Ref { return ref(v.doc.Name) }

func ref(name string) vic.Ref { return vic.Ref{Kind: "volume", Name: name} }

// read reads the record of a name. A volume that is not there is
// vic.ErrNotFound.
func (s *Store) read(ctx context.Context, p *place, name string) (*Volume, error) {
	file := p.path(name, recordFile)
	b, err := p.files.ReadFile(ctx, file, recordLimit)
	if err != nil {
		return nil, err
	}
	v := &Volume{s: s, at: p}
	if err := json.Unmarshal(b, &v.doc); err != nil {
		return nil, fault.Of(vic.ErrInvalid, "%s is no volume's record: %v", p.files.Path(file), err)
	}
	d := &v.doc
	switch {
	case d.Version != 1:
		return nil, fault.Of(vic.ErrUnsupported, "%s: version %d was written by a newer release; this one knows 1", p.files.Path(file), d.Version)
	case d.Name != name:
		return nil, fault.Of(vic.ErrInvalid, "%s is the record of %.140q", p.files.Path(file), d.Name)
	}
	if err := p.check(d); err != nil {
		return nil, fmt.Errorf("%s: %w", p.files.Path(file), err)
	}
	return v, nil
}

// Open looks a volume up by its name, in all stores. One that is in several is
// vic.ErrInvalid.
func (s *Store) Open(ctx context.Context, name string) (*Volume, error) {
	v, err := s.open(ctx, name)
	return v, fault.Wrap("open", ref(name), err)
}

func (s *Store) open(ctx context.Context, name string) (*Volume, error) {
	if !nameRE.MatchString(name) {
		return nil, fault.Of(vic.ErrInvalid, "no volume can have this name")
	}
	found := make([]*Volume, len(s.places))
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range s.places {
		g.Go(func() (err error) {
			found[i], err = s.read(gctx, p, name)
			if errors.Is(err, vic.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(v *Volume) bool { return v == nil })
	switch len(found) {
	case 0:
		return nil, fault.Of(vic.ErrNotFound, "no volume has this name")
	case 1:
		return found[0], nil
	}
	return nil, fault.Of(vic.ErrInvalid, "stores %q and %q both have a volume of this name", found[0].at.label, found[1].at.label)
}

// ListOptions choose volumes; nil means all. Those that fit every condition are
// told.
type ListOptions struct {
	// Names are parts of names, one of which must be in the name.
	Names []string
	// Labels are "name" or "name=value", all of which the volume must have.
	Labels []string
	// Unlabelled are the same, none of which it may have.
	Unlabelled []string
	// Dangling, where it is not nil, tells whether no VM, or some VM, has the volume.
	Dangling *bool
	// Anonymous lets only anonymous volumes through.
	Anonymous bool
}

// List returns the volumes by name.
func (s *Store) List(ctx context.Context, o *ListOptions) ([]*Volume, error) {
	if o == nil {
		o = &ListOptions{}
	}
	out, err := s.list(ctx, o)
	return out, fault.Wrap("list volumes", vic.Ref{}, err)
}

func (s *Store) list(ctx context.Context, o *ListOptions) ([]*Volume, error) {
	var out []*Volume
	for _, p := range s.places {
		vs, err := s.listPlace(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("store %q: %w", p.label, err)
		}
		out = append(out, vs...)
	}
	var users map[string][]vsphere.DiskUser
	if o.Dangling != nil && len(out) > 0 {
		var err error
		if users, err = s.allUsers(ctx); err != nil {
			return nil, err
		}
	}
	out = slices.DeleteFunc(out, func(v *Volume) bool {
		return !o.fits(&v.doc) || o.Dangling != nil && *o.Dangling == (len(users[v.key()]) > 0)
	})
	slices.SortFunc(out, func(a, b *Volume) int {
		return strings.Compare(a.doc.Name+"\x00"+a.at.label, b.doc.Name+"\x00"+b.at.label)
	})
	return out, nil
}

func (o *ListOptions) fits(d *document) bool {
	has := func(cond string) bool {
		k, want, valued := strings.Cut(cond, "=")
		v, ok := d.Labels[k]
		return ok && (!valued || v == want)
	}
	in := func(part string) bool { return strings.Contains(d.Name, part) }
	switch {
	case o.Anonymous && !d.Anonymous,
		len(o.Names) > 0 && !slices.ContainsFunc(o.Names, in),
		slices.ContainsFunc(o.Unlabelled, has):
		return false
	}
	return !slices.ContainsFunc(o.Labels, func(c string) bool { return !has(c) })
}

func (s *Store) listPlace(ctx context.Context, p *place) ([]*Volume, error) {
	es, err := p.files.List(ctx, p.dir)
	if errors.Is(err, vic.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := make([]*Volume, len(es))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, e := range es {
		if !e.Dir || !nameRE.MatchString(e.Name) {
			continue
		}
		g.Go(func() (err error) {
			found[i], err = s.read(gctx, p, e.Name)
			if errors.Is(err, vic.ErrNotFound) {
				return nil // deleted at this moment, or somebody's own directory
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(v *Volume) bool { return v == nil }), nil
}
