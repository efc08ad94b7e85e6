// Package imagestore keeps OCI images on a datastore as chains of virtual
// disks.
//
// One ext4 filesystem spans all disks of a chain. Its foundation holds the empty
// filesystem, and each layer that is not empty is a further child with only the
// blocks that the layer changes. How they are written depends on what the
// datastore takes; see Publish. A
// layer's disk is found by its chain ID (OCI image specification, config.md,
// "Layer ChainID"), so images share what they have in common, and a container
// adds one writable child on top.
//
// A store is a directory of a datastore:
//
//	layers/NAME/layer.json        what the layer is; NAME is a chain ID or base-…
//	layers/NAME/layer.vmdk        the disk's descriptor; its extent lies beside it
//	layers/NAME/index             the filesystem's metadata after this layer
//	layers/NAME/tar.zst           with the disk, the tar that the layer was made from
//	images/DIGEST.json            an image, by the digest of its manifest
//	names/HASH.json               a name and the image it stands for, whole
//	leases/                       who is at work in the store
//
// Directories are filled under a name that begins with ".new-" and published
// by one rename, so a reader sees all of a layer or nothing. Any number of
// processes may pull, delete and collect garbage in one store at the same time,
// and any may be killed at any moment.
package imagestore

import (
	"context"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// DefaultBytes is the size of the filesystem of images and containers where
// Options give none. Only what is used takes room.
const DefaultBytes = 8 << 30

// Options of a store; nil means all defaults.
type Options struct {
	// Bytes is the size of the filesystem, a multiple of 128 MiB. Layers of
	// one size are not shared with those of another.
	Bytes int64
	// TempDir is where a layer lies while it is converted, unlinked from the
	// start; empty is os.TempDir.
	TempDir string
	// Workers is how many layers are unpacked at once; 0 is one per core.
	Workers int
	// Sweep clears away what killed processes left, as Store.Sweep does, when
	// the store is opened. Without it that is done by the first operation
	// that changes the store, and opening asks nothing of the datastore.
	Sweep bool

	// Publish says how disks come to the datastore; empty decides by what the
	// datastore takes.
	Publish Publish
	// Helper says what VM writes disks where they cannot be uploaded. It is not
	// looked at where they can. Package engine fills it in from the VCH.
	Helper *HelperSpec

	leaseTime time.Duration
}

// A Store is an open image store. Its methods may be called by several
// goroutines.
type Store struct {
	c       *vic.Client
	files   *vsphere.Files
	dir     string
	bytes   int64
	tempDir string
	workers int

	leaseTime time.Duration
	shared    *shared
	publisher publisher
	// held is the lease of the operation under way. It is set only in the
	// copies of a store that operations work with.
	held *lease
}

// Open opens the image store at a place, which need not exist yet. A
// datastore that does not take uploaded delta disks (its capability
// vmfsSparseSupported is not set) needs Options.Helper, or it is vic.ErrInvalid.
func Open(ctx context.Context, c *vic.Client, at vic.Place, o *Options) (*Store, error) {
	const op = "open image store"
	if o == nil {
		o = &Options{}
	}
	ds := types.ManagedObjectReference{Type: "Datastore", Value: at.Datastore.ID}
	s := &Store{
		c:     c,
		files: c.Session().Files(ds, at.Datastore.Name),
		dir:   at.Dir, bytes: o.Bytes, tempDir: o.TempDir, workers: o.Workers,
		leaseTime: o.leaseTime, shared: newShared(),
	}
	if s.leaseTime == 0 {
		s.leaseTime = leaseTime
	}
	if s.bytes == 0 {
		s.bytes = DefaultBytes
	}
	if s.tempDir == "" {
		s.tempDir = os.TempDir()
	}
	if s.workers <= 0 {
		s.workers = runtime.GOMAXPROCS(0)
	}
	if at.Dir == "" || path.Clean(at.Dir) != at.Dir || path.IsAbs(at.Dir) {
		return nil, fault.Wrap(op, at.Datastore, fault.Of(vic.ErrInvalid, "Dir %q: want a plain relative path", at.Dir))
	}
	if _, err := ext4.New(ext4.Geometry{Bytes: s.bytes}); err != nil {
		return nil, fault.Wrap(op, at.Datastore, fault.As(vic.ErrInvalid, fmt.Errorf("Bytes: %w", err)))
	}
	d, err := c.Session().Datastore(ctx, at.Datastore.ID, func(d vsphere.Datastore) bool { return d.Ref == ds })
	if err != nil {
		return nil, fault.Wrap(op, at.Datastore, err)
	}
	if s.publisher, err = choosePublisher(o, d); err != nil {
		return nil, fault.Wrap(op, at.Datastore, err)
	}
	if o.Sweep {
		if err := s.Sweep(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// OpenNamed opens the image store at "datastore" or "datastore/directory".
// The directory defaults to vic/images.
func OpenNamed(ctx context.Context, c *vic.Client, place string, o *Options) (*Store, error) {
	name, dir, _ := strings.Cut(place, "/")
	if dir == "" {
		dir = "vic/images"
	}
	ds, err := c.Session().Datastore(ctx, name, func(d vsphere.Datastore) bool { return d.Name == name })
	if err != nil {
		return nil, fault.Wrap("open image store", vic.Ref{Kind: "datastore", Name: name}, err)
	}
	return Open(ctx, c, vic.Place{Datastore: vic.Ref{Kind: "datastore", ID: ds.Ref.Value, Name: ds.Name}, Dir: dir}, o)
}

func (s *Store) path(elem ...string) string { return path.Join(append([]string{s.dir}, elem...)...) }

func (s *Store) ref() vic.Ref { return vic.Ref{Kind: "image store", ID: s.files.Path(s.dir)} }
