package imagestore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

const (
	layerFile  = "layer.json"
	diskFile   = "layer.vmdk"
	extentFile = "layer-delta.vmdk"
	indexFile  = "index"

	documentLimit = 64 << 20
	indexLimit    = 1 << 30
)

// layer is what layer.json says.
type layer struct {
	Version int           `json:"version"`
	Format  int           `json:"format"` // ext4.FormatVersion it was written with
	ChainID digest.Digest `json:"chainID,omitempty"`
	DiffID  digest.Digest `json:"diffID,omitempty"`
	Parent  digest.Digest `json:"parent,omitempty"`
	// Dir names the directory below layers/ that holds the disk: the layer's
	// own, or, for a layer that changes nothing, its parent's.
	Dir string `json:"dir"`
	CID uint32 `json:"cid"`
	// Depth counts the chain's disks below the container's, the base included.
	Depth int `json:"depth"`
	// Bytes is the capacity; Extent and Index are file sizes. Where a helper VM
	// wrote the disk, Extent is how many bytes it wrote.
	Bytes  int64 `json:"bytes"`
	Extent int64 `json:"extent"`
	Index  int64 `json:"index,omitempty"`
	// Tar is the size of the tar that the layer was made from; Record is the
	// size of the file that it comes out again with, and Places the length of
	// its first part. All are 0 in what a release before wrote.
	Tar    int64 `json:"tar,omitempty"`
	Record int64 `json:"record,omitempty"`
	Places int64 `json:"places,omitempty"`
}

// chainIDs gives the chain ID of every layer, after the OCI image
// specification, config.md, "Layer ChainID".
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	out := make([]digest.Digest, len(diffIDs))
	for i, d := range diffIDs {
		out[i] = d
		if i > 0 {
			out[i] = digest.SHA256.FromString(out[i-1].String() + " " + d.String())
		}
	}
	return out
}

// layerDir names a layer's directory. Size and format are part of the name:
// disks of another size or format are other disks.
func (s *Store) layerDir(chain digest.Digest) string {
	return layerName(chain.Encoded(), s.bytes, ext4.FormatVersion)
}

func (s *Store) baseDir() string { return layerName("base", s.bytes, ext4.FormatVersion) }

func layerName(what string, bytes int64, format int) string {
	return fmt.Sprintf("%s-%dm-v%d", what, bytes>>20, format)
}

// needs names the layer directories that a layer cannot do without: its
// parent's, and that of its disk where that is not its own.
func (l *layer) needs(name string) []string {
	var out []string
	base := layerName("base", l.Bytes, l.Format)
	switch {
	case l.Parent != "":
		out = append(out, layerName(l.Parent.Encoded(), l.Bytes, l.Format))
	case name != base:
		out = append(out, base)
	}
	if l.Dir != name {
		out = append(out, l.Dir)
	}
	return out
}

// dirs names the directories of a chain's layers, the lowest first.
func (s *Store) dirs(diffIDs []digest.Digest) []string {
	var out []string
	for _, c := range chainIDs(diffIDs) {
		out = append(out, s.layerDir(c))
	}
	return out
}

// contentID derives a disk's CID from what it holds, so that the same layer has
// the same bytes everywhere.
func contentID(name string) uint32 {
	h := sha256.Sum256([]byte("vic layer " + name))
	id := binary.LittleEndian.Uint32(h[:])
	if id >= 0xfffffffe || id == 0 { // values with a meaning of their own
		id = 1
	}
	return id
}

func (s *Store) readLayer(ctx context.Context, dir string) (*layer, error) {
	p := s.path("layers", dir, layerFile)
	b, err := s.files.ReadFile(ctx, p, documentLimit)
	if err != nil {
		return nil, err
	}
	l := &layer{}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fault.Of(vic.ErrInvalid, "%s is no layer record: %v", s.files.Path(p), err)
	}
	if l.Version != 1 || l.Dir == "" || strings.Contains(l.Dir, "/") {
		return nil, fault.Of(vic.ErrInvalid, "%s is no layer record of this release", s.files.Path(p))
	}
	return l, nil
}

// model reads the filesystem's metadata after a layer.
func (s *Store) model(ctx context.Context, l *layer) (*ext4.FS, error) {
	if l.Dir == s.baseDir() {
		fs, err := ext4.New(ext4.Geometry{Bytes: s.bytes})
		if err == nil {
			fs.Commit()
		}
		return fs, err
	}
	p := s.path("layers", l.Dir, indexFile)
	b, err := s.files.ReadFile(ctx, p, indexLimit)
	var fs *ext4.FS
	if err == nil {
		if fs, err = ext4.Unmarshal(b); err == nil {
			return fs, nil
		}
		err = fault.As(vic.ErrInvalid, fmt.Errorf("%s: %w", s.files.Path(p), err))
	}
	if errors.Is(err, vic.ErrNotFound) || errors.Is(err, vic.ErrInvalid) {
		return s.rebuild(ctx, l, err)
	}
	return nil, err
}

// disk is the layer's disk, for a container to make a child of.
func (s *Store) disk(l *layer) vic.Disk {
	return vic.Disk{Path: s.files.Path(s.path("layers", l.Dir, diskFile)), Bytes: l.Bytes}
}

// base opens the chain's foundation, or makes it: the empty filesystem.
func (s *Store) base(ctx context.Context) (*layer, error) {
	l, err := s.readLayer(ctx, s.baseDir())
	if !errors.Is(err, vic.ErrNotFound) {
		return l, err
	}
	fs, err := ext4.New(ext4.Geometry{Bytes: s.bytes})
	if err != nil {
		return nil, err
	}
	sp, err := newSpool(s.tempDir, s.bytes)
	if err != nil {
		return nil, err
	}
	defer sp.close()
	if err := sp.seal(fs, nil, nil, nil); err != nil {
		return nil, err
	}
	l = &layer{Version: 1, Format: ext4.FormatVersion, Dir: s.baseDir(), CID: contentID(s.baseDir()), Bytes: s.bytes}
	return s.publish(ctx, l, func(ctx context.Context, tmp string) error { return s.publisher.base(ctx, s, tmp, l, sp) })
}

// upload puts a layer's files into a directory.
func (s *Store) upload(ctx context.Context, dir string, l *layer, sp *spool, parentCID uint32, parentHint string, index []byte, tell func(int64)) error {
	if index != nil {
		if err := s.put(ctx, path.Join(dir, indexFile), index); err != nil {
			return err
		}
	}
	return s.publisher.child(ctx, s, dir, l, sp, parentCID, parentHint, tell)
}

func (s *Store) putRecord(ctx context.Context, dir string, r *recorder) error {
	return s.files.Put(ctx, path.Join(dir, recordFile), r.reader(), r.size)
}

func (s *Store) put(ctx context.Context, p string, b []byte) error {
	return s.files.Put(ctx, p, strings.NewReader(string(b)), int64(len(b)))
}

// publish fills a new directory and gives it its name. Where somebody else
// published the same layer meanwhile, theirs is taken and ours deleted.
func (s *Store) publish(ctx context.Context, l *layer, fill func(ctx context.Context, tmp string) error) (*layer, error) {
	name := l.Dir
	if l.ChainID != "" {
		name = s.layerDir(l.ChainID)
	}
	if s.held == nil {
		err := s.using(ctx, leaseDoc{Wants: append(l.needs(name), name, s.baseDir())}, func(ctx context.Context, s *Store) (err error) {
			l, err = s.publish(ctx, l, fill)
			return err
		})
		return l, err
	}
	tmp, err := s.held.stage(ctx, "layers", func(tmp string) error { return s.files.MkdirAll(ctx, tmp) })
	err = func() error {
		if err != nil {
			return err
		}
		if err := fill(ctx, tmp); err != nil {
			return err
		}
		b, err := json.MarshalIndent(l, "", "  ")
		if err != nil {
			return err
		}
		if err := s.put(ctx, path.Join(tmp, layerFile), b); err != nil {
			return err
		}
		return s.files.Move(ctx, tmp, s.path("layers", name), false)
	}()
	if err == nil {
		return l, nil
	}
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	if e := s.erase(dctx, tmp); e != nil {
		return nil, &fault.Error{Op: "publish layer", Ref: vic.Ref{Kind: "layer", ID: name}, Err: err, Left: []vic.Ref{{Kind: "file", ID: s.files.Path(tmp)}}}
	}
	switch {
	case errors.Is(err, errLost):
		return nil, err
	case errors.Is(err, vic.ErrConflict):
		return s.readLayer(ctx, name)
	case errors.Is(err, vic.ErrNotFound): // of what was staged, if the lease was broken
		if e := s.held.check(dctx); e != nil {
			return nil, e
		}
	}
	return nil, err
}
