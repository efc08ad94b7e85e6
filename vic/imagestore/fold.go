package imagestore

import (
	"context"
	"fmt"
	"path"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/vic"
)

// maxDepth bounds the disks of a chain, the base included. vSphere's own
// snapshot chains end at 32, and a container's child and an administrator's
// snapshots need room too.
const maxDepth = 28

// foldDepth is how many disks are left below the disk of a layer that would lie
// deeper than maxDepth. Such a layer's disk holds also what the disks between
// have, so one layer in maxDepth-foldDepth copies as many.
//
// Whether a layer is folded depends on nothing but the number of layers below
// it, so that it is the same bytes in every store whose disks are uploaded. (One
// whose disks a helper VM writes has a foundation of one disk, not of two.)
const foldDepth = 14

// below is the disk under a new layer's. It is opened when it is first read:
// most layers need nothing of what is below them.
type below struct {
	ctx  context.Context
	s    *Store
	top  *layer
	disk *chain.Disk

	// dir and cid are of the disk that the new one is a child of, and depth
	// counts it and those below it.
	dir   string
	cid   uint32
	depth int
}

// under returns what a layer on top of parent has below it.
func (s *Store) under(ctx context.Context, parent *layer) (*below, error) {
	b := &below{ctx: ctx, s: s, top: parent, dir: parent.Dir, cid: parent.CID, depth: parent.Depth}
	if b.depth < maxDepth {
		return b, nil
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	links := b.disk.Links()
	if len(links) != parent.Depth {
		b.close()
		return nil, fault.Of(vic.ErrInvalid, "the chain of %s has %d disks, and its record says %d", s.disk(parent).Path, len(links), parent.Depth)
	}
	at := links[len(links)-foldDepth]
	b.dir, b.cid, b.depth = path.Base(path.Dir(at.Path)), at.CID, foldDepth
	// What the hint will say must be the disk that was meant.
	files, p, err := s.locate(ctx, at.Path)
	if err != nil {
		b.close()
		return nil, err
	}
	ds, _ := files.Datastore()
	if own, _ := s.files.Datastore(); ds != own || p != s.path("layers", b.dir, diskFile) {
		b.close()
		return nil, fault.Of(vic.ErrInvalid, "disk %s is not one of this store's", at.Path)
	}
	return b, nil
}

func (b *below) open() (err error) {
	if b.disk == nil {
		if b.disk, err = b.s.openDisk(b.ctx, b.s.disk(b.top).Path, nil); err != nil {
			return fmt.Errorf("open the layer below: %w", err)
		}
	}
	return nil
}

func (b *below) ReadAt(p []byte, off int64) (int, error) {
	if err := b.open(); err != nil {
		return 0, err
	}
	return b.disk.ReadAt(p, off)
}

func (b *below) close() {
	if b.disk != nil {
		_ = b.disk.Close() // It was only read.
	}
}

// hint is the way from the new layer's directory to the disk's parent.
func (b *below) hint() string { return "../" + b.dir + "/" + diskFile }

// copyFolded writes what the folded disks hold, as far as the filesystem has a
// use for it.
func (b *below) copyFolded(fs *ext4.FS, w *vmdk.LayerWriter) error {
	n := b.top.Depth - b.depth
	if n == 0 {
		return nil
	}
	blocks := make([]bool, b.top.Bytes/ext4.BlockSize)
	for d := b.disk; n > 0; n-- {
		err := d.TopRuns(func(off, size int64) error {
			for i := off / ext4.BlockSize; i*ext4.BlockSize < off+size; i++ {
				blocks[i] = fs.Used(uint64(i))
			}
			return nil
		})
		if err != nil {
			return err
		}
		d = d.Parent()
	}
	buf := make([]byte, 1<<20)
	for i := 0; i < len(blocks); {
		k := 0
		for i+k < len(blocks) && blocks[i+k] && k < len(buf)/ext4.BlockSize {
			k++
		}
		if k == 0 {
			i++
			continue
		}
		p, off := buf[:k*ext4.BlockSize], int64(i)*ext4.BlockSize
		if err := b.ctx.Err(); err != nil {
			return err
		}
		if _, err := b.disk.ReadAt(p, off); err != nil {
			return fmt.Errorf("read the layers below: %w", err)
		}
		if _, err := w.WriteAt(p, off); err != nil {
			return err
		}
		i += k
	}
	return nil
}
