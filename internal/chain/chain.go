// Package chain opens a virtual disk through its chain of parents and reads it as one.
//
// A chain's top is a child that holds what differs from its parent, which may be a child in turn;
// the last is a flat disk. [Open] follows parentFileNameHint from the top, checks that every
// parent's content is what its child was made from (parentCID), and gives a [Disk] that reads
// like the whole.
//
// Paths are slash paths in one name space of the caller's, for example the files of one
// datastore; the caller's [Opener] turns them into files. No path ever leads out of that name space by "..".
//
// The formats and the meaning of CIDs are those of VMware's "Virtual Disk Format 5.0".
package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// MaxLinks is the greatest number of disks in a chain.
const MaxLinks = 64

// File is an open file of the datastore.
type File interface {
	io.ReaderAt
	io.Closer
	// Size is the file's length in bytes. It must not change while the file is open.
	Size() int64
}

// Opener opens the file at a path. ctx bounds the call, not the file.
type Opener func(ctx context.Context, path string) (File, error)

// Link is one disk of a chain.
type Link struct {
	Path       string // of the descriptor
	Extent     string // of the file with the data; Path again where the descriptor is embedded
	CreateType string
	CID        uint32
	ParentCID  uint32 // vmdk.NoParent for the last
	Bytes      int64  // capacity
}

type link struct {
	Link
	sparse *vmdk.Sparse // nil for a flat extent
	flat   File
	start  int64 // offset of a flat extent in its file
	files  []File
}

// Disk is an opened chain. It is safe for concurrent use, until Close.
type Disk struct {
	links []*link // top first
}

// Open opens the chain whose top's descriptor is at top. On error all files are closed again.
//
// What is not supported is refused: chains of more than [MaxLinks] disks, disks of several extents,
// compressed disks, extents outside their descriptor's directory.
func Open(ctx context.Context, top string, open Opener) (*Disk, error) {
	d := &Disk{}
	if err := d.follow(ctx, top, open); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) follow(ctx context.Context, top string, open Opener) error {
	at, err := clean(top)
	if err != nil {
		return fmt.Errorf("chain: %w", err)
	}
	seen := map[string]bool{}
	for {
		if seen[at] {
			return fmt.Errorf("chain: %s is its own ancestor", at)
		}
		seen[at] = true
		if len(d.links) == MaxLinks {
			return fmt.Errorf("chain: %s has more than %d links", top, MaxLinks)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		l, hint, err := openLink(ctx, at, open)
		if l != nil {
			d.links = append(d.links, l)
		}
		if err != nil {
			return fmt.Errorf("chain: %s: %w", at, err)
		}
		if n := len(d.links); n > 1 {
			if child := d.links[n-2]; child.ParentCID != l.CID {
				return fmt.Errorf("chain: %s was made from a parent with CID %08x, but %s has %08x: the parent was written to since, or it is another disk",
					child.Path, child.ParentCID, at, l.CID)
			}
		}
		if l.ParentCID == vmdk.NoParent {
			return nil
		}
		if at, err = resolve(at, hint); err != nil {
			return fmt.Errorf("chain: %s: parentFileNameHint: %w", l.Path, err)
		}
	}
}

// clean brings a path into the one form by which loops are found.
func clean(p string) (string, error) {
	c := path.Clean(p)
	if p == "" || c == "." || c == "/" || strings.ContainsAny(p, "\x00\\") {
		return "", fmt.Errorf("%q is not a path of a file", p)
	}
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("%q leads out of the datastore", p)
	}
	return c, nil
}

// resolve finds a parent: hint is absolute or relative to the child's directory.
func resolve(child, hint string) (string, error) {
	if path.IsAbs(hint) {
		return clean(hint)
	}
	if path.IsAbs(child) {
		// Joining would silently stop ".." at "/".
		rel, err := clean(path.Join(strings.TrimPrefix(path.Dir(child), "/"), hint))
		return "/" + rel, err
	}
	return clean(path.Join(path.Dir(child), hint))
}

// openLink opens one disk. A link that is not nil owns the files opened so far.
func openLink(ctx context.Context, at string, open Opener) (*link, string, error) {
	f, err := open(ctx, at)
	if err != nil {
		return nil, "", err
	}
	l := &link{Link: Link{Path: at, Extent: at}, files: []File{f}}
	head := make([]byte, 32)
	if n, err := f.ReadAt(head, 0); n < len(head) {
		return l, "", fmt.Errorf("not a virtual disk: %d bytes long (%w)", n, notNil(err))
	}
	var d *vmdk.Descriptor
	switch vmdk.Kind(head) {
	case "sparse":
		if l.sparse, d, err = vmdk.OpenKDMV(f, f.Size()); err != nil {
			return l, "", err
		}
	case "descriptor":
		if d, err = readDescriptor(f); err != nil {
			return l, "", err
		}
	case "vmfsSparse":
		return l, "", errors.New("this is the extent of a vmfsSparse disk: open its descriptor")
	default:
		return l, "", errors.New("not a virtual disk: neither a descriptor nor a sparse extent")
	}
	l.CID, l.ParentCID, l.CreateType, l.Bytes = d.CID, d.ParentCID, d.CreateType, d.Bytes()
	if l.sparse == nil {
		err = l.openExtent(ctx, d, open)
	}
	return l, d.ParentHint, err
}

func notNil(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readDescriptor(f File) (*vmdk.Descriptor, error) {
	n := f.Size()
	if n > vmdk.MaxDescriptorBytes {
		return nil, fmt.Errorf("descriptor of %d bytes: the limit is %d", n, vmdk.MaxDescriptorBytes)
	}
	raw := make([]byte, n)
	if k, err := f.ReadAt(raw, 0); k < len(raw) {
		return nil, fmt.Errorf("descriptor: %w", notNil(err))
	}
	return vmdk.ParseDescriptor(raw)
}

func (l *link) openExtent(ctx context.Context, d *vmdk.Descriptor, open Opener) error {
	if len(d.Extents) != 1 {
		return fmt.Errorf("%d extents: only disks of one are supported", len(d.Extents))
	}
	e := d.Extents[0]
	if strings.ContainsAny(e.File, "/\\") || e.File == "." || e.File == ".." || e.File == "" {
		return fmt.Errorf("extent file %q is not a plain name: extents must lie beside their descriptor", e.File)
	}
	l.Extent = path.Join(path.Dir(l.Path), e.File)
	f, err := open(ctx, l.Extent)
	if err != nil {
		return err
	}
	l.files = append(l.files, f)
	switch e.Type {
	case "VMFS", "FLAT":
		l.flat, l.start = f, int64(e.Offset)*vmdk.SectorSize
		if f.Size() < l.start+l.Bytes {
			return fmt.Errorf("%s is %d bytes long: the descriptor needs %d", l.Extent, f.Size(), l.start+l.Bytes)
		}
		if l.ParentCID != vmdk.NoParent {
			return fmt.Errorf("a flat disk cannot have a parent (parentCID %08x)", l.ParentCID)
		}
	case "VMFSSPARSE":
		if l.sparse, err = vmdk.OpenCOWD(f, f.Size()); err != nil {
			return err
		}
		if l.sparse.Size() != l.Bytes {
			return fmt.Errorf("%s has a capacity of %d bytes, the descriptor says %d", l.Extent, l.sparse.Size(), l.Bytes)
		}
	default:
		return fmt.Errorf("extent type %s is not supported: only VMFS, FLAT, VMFSSPARSE and monolithicSparse disks are", e.Type)
	}
	return nil
}

// Size is the capacity of the top, in bytes.
func (d *Disk) Size() int64 { return d.links[0].Bytes }

// Links describes the chain, top first.
func (d *Disk) Links() []Link {
	out := make([]Link, len(d.links))
	for i, l := range d.links {
		out[i] = l.Link
	}
	return out
}

// Close closes all files of the chain.
func (d *Disk) Close() error {
	var errs []error
	for _, l := range d.links {
		for _, f := range l.files {
			errs = append(errs, f.Close())
		}
		l.files = nil
	}
	return errors.Join(errs...)
}
