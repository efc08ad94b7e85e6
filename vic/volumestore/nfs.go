package volumestore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

var idRE = regexp.MustCompile(`^[0-9a-f]{32}$`)

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// NFS is the volume's directory, where its store is one of an NFS server, for
// containervm.Mount. Any number of running VMs may have it at a time.
func (v *Volume) NFS() (vic.NFS, bool) {
	if v.at.nfs == nil {
		return vic.NFS{}, false
	}
	n := *v.at.nfs
	n.Dir = v.dir()
	return n, true
}

// dir is the name of the directory on the server. A volume that is made anew under
// a name that was deleted has another.
func (v *Volume) dir() string { return v.doc.Name + "-" + v.doc.ID }

// ID of a volume on an NFS server, for containervm.Mount; empty for others.
func (v *Volume) ID() string { return v.doc.ID }

// check tells what of a record cannot be right in the place.
func (p *place) check(d *document) error {
	switch {
	case p.nfs == nil && (d.Bytes <= 0 || d.Bytes > MaxBytes):
		return fault.Of(vic.ErrInvalid, "a size of %d bytes", d.Bytes)
	case p.nfs == nil && d.ID != "":
		return fault.Of(vic.ErrInvalid, "it is of a volume on an NFS server, and the store is none")
	case p.nfs != nil && (!idRE.MatchString(d.ID) || d.Bytes != 0):
		return fault.Of(vic.ErrInvalid, "it is of no volume on an NFS server")
	}
	return nil
}

// sized refuses a size in a place that gives none.
func (p *place) sized(w *want) error {
	if p.nfs != nil && w.bytes != 0 {
		return fault.Of(vic.ErrInvalid, "%s: store %q is on an NFS server, where a volume is a directory and has no size of its own: leave it out", w.sizedBy, p.label)
	}
	return nil
}

// users tells which VMs have the volume of a name, whose record lies in the
// directory at. Where the record is gone there is nothing that could be had.
func (p *place) users(ctx context.Context, c *vic.Client, name, at string) ([]vsphere.DiskUser, error) {
	if p.nfs == nil {
		all, err := vsphere.DiskUsers(ctx, c.Session())
		return all[p.files.Path(p.path(name, diskFile))], err
	}
	b, err := p.files.ReadFile(ctx, p.path(at, recordFile), recordLimit)
	if errors.Is(err, vic.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil || p.check(&d) != nil {
		return nil, nil // a creation that was cut off
	}
	all, err := vsphere.VolumeUsers(ctx, c.Session())
	return all[d.ID], err
}

// allUsers are the VMs that have volumes, by key of the volume.
func (s *Store) allUsers(ctx context.Context) (map[string][]vsphere.DiskUser, error) {
	all, err := vsphere.DiskUsers(ctx, s.c.Session())
	if err != nil || !slices.ContainsFunc(s.places, func(p *place) bool { return p.nfs != nil }) {
		return all, err
	}
	more, err := vsphere.VolumeUsers(ctx, s.c.Session())
	for id, users := range more {
		all[id] = users
	}
	return all, err
}

// key finds the volume's users.
func (v *Volume) key() string {
	if v.at.nfs != nil {
		return v.doc.ID
	}
	return v.Disk().Path
}

// openNFS reads where a store is.
func openNFS(at vic.Place) (*vic.NFS, error) {
	if at.NFS == "" {
		return nil, nil
	}
	n, err := vic.ParseNFS(at.NFS)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// directory is what people are told of where a volume's files are.
func (v *Volume) directory() string {
	n, ok := v.NFS()
	if !ok {
		return ""
	}
	s, _, _ := strings.Cut(n.String(), "?")
	return s
}
