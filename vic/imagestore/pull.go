package imagestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// PullOptions are the details of a pull; nil means none.
type PullOptions struct {
	// Progress hears of each layer, by its digest: phases "exists", "wait"
	// (for another pull that makes it), "download" (bytes of the registry), "apply", "upload" and "done". It is
	// called by one goroutine at a time and not after Pull has returned.
	Progress func(vic.Event)
	// Verify looks at the disks of those layers that are there, and makes anew
	// what is gone of them.
	Verify bool
}

// Pull brings an image into the store under a name, which ends in a tag or a
// digest. Layers that are there already are not fetched again. Nothing of a
// layer is visible before all of it is there and verified, and the name stands
// for the image only after all layers do.
//
// What a registry sends that is not what the digests say is vic.ErrInvalid;
// an image of another platform than linux/amd64, or with parts that cannot be
// run, is vic.ErrUnsupported.
func (s *Store) Pull(ctx context.Context, src Source, name string, o *PullOptions) (*Image, error) {
	const op = "pull"
	if o == nil {
		o = &PullOptions{}
	}
	img, err := s.pull(ctx, src, name, o.Verify, &teller{op: op, f: o.Progress})
	return img, fault.Wrap(op, vic.Ref{Kind: "image", Name: name}, err)
}

// teller serialises progress and ends it.
type teller struct {
	mu     sync.Mutex
	op     string
	f      func(vic.Event)
	closed bool
}

func (t *teller) tell(id, phase string, done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f != nil && !t.closed {
		t.f(vic.Event{Op: t.op, ID: id, Phase: phase, Done: done, Total: total, Time: time.Now()})
	}
}

func (t *teller) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
}

func (s *Store) pull(ctx context.Context, src Source, name string, verify bool, t *teller) (*Image, error) {
	defer t.close()
	ref, err := reference(name)
	if err != nil {
		return nil, err
	}
	f, err := describeImage(ctx, src, ref, platform)
	if err != nil {
		return nil, err
	}
	var img *Image
	err = s.usingImage(ctx, f, func(ctx context.Context, s *Store) (err error) {
		img, err = s.bring(ctx, src, name, f, verify, t)
		return err
	})
	return img, err
}

// usingImage runs do with a use of all that an image has. Where the lease is
// lost, because the process slept so long that it was taken for dead, do runs
// again, with what is there by then.
func (s *Store) usingImage(ctx context.Context, f *found, do func(ctx context.Context, s *Store) error) error {
	wants := append(s.dirs(f.config.RootFS.DiffIDs), s.baseDir())
	for try := 0; ; try++ {
		err := s.using(ctx, leaseDoc{Wants: wants, Image: f.manifest}, do)
		if !errors.Is(err, errLost) || try == 3 {
			return err
		}
	}
}

// bring makes what an image needs and then its records.
func (s *Store) bring(ctx context.Context, src Source, name string, f *found, verify bool, t *teller) (*Image, error) {
	top, err := s.layers(ctx, src, f, verify, t)
	if err != nil {
		return nil, err
	}
	doc, err := s.enter(ctx, f, top, repositoryOf(name), nil)
	if err != nil {
		return nil, err
	}
	return s.name(ctx, name, doc)
}

// layers makes sure that every layer of an image is in the store and returns
// the top one. Those that others are making are waited for.
func (s *Store) layers(ctx context.Context, src Source, f *found, verify bool, t *teller) (*layer, error) {
	chain := chainIDs(f.config.RootFS.DiffIDs)
	dirs := s.dirs(f.config.RootFS.DiffIDs)
	told := 0
	for {
		whole := len(chain)
		if verify {
			var err error
			if whole, err = s.intact(ctx, dirs); err != nil {
				return nil, why(ctx, err)
			}
		}
		parent, n, err := s.present(ctx, chain[:whole])
		if err != nil {
			return nil, why(ctx, err)
		}
		for ; told < n; told++ {
			d := f.layers[told]
			t.tell(d.Digest.String(), "exists", d.Size, d.Size)
		}
		if n == len(chain) {
			return parent, nil
		}
		end, free, err := s.reserve(ctx, dirs, n, func() { t.tell(f.layers[n].Digest.String(), "wait", 0, f.layers[n].Size) })
		if err != nil {
			return nil, why(ctx, err)
		}
		if end == n {
			continue
		}
		err = s.make(ctx, src, f, t, chain[:end], parent, n)
		free()
		if err != nil {
			return nil, err
		}
		told = end
	}
}

// make makes the layers of a chain from the nth on, on top of parent, which is
// nil for the first.
func (s *Store) make(ctx context.Context, src Source, f *found, t *teller, chain []digest.Digest, parent *layer, missing int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := s.unpackAll(ctx, cancel, src, f, missing, len(chain), t)
	defer func() { // wait for those still at work, and drop what is not used
		cancel(nil)
		for _, r := range results {
			if u := <-r; u != nil {
				u.close()
			}
		}
	}()

	var err error
	if parent == nil {
		if parent, err = s.base(ctx); err != nil {
			return why(ctx, err)
		}
	}
	var fs *ext4.FS
	for i := missing; i < len(chain); i++ {
		u := <-results[i-missing]
		if u == nil {
			return context.Cause(ctx)
		}
		parent, fs, err = s.add(ctx, parent, fs, u, f, chain, i, t)
		u.close()
		if err != nil {
			return why(ctx, fmt.Errorf("layer %d (%s): %w", i+1, f.layers[i].Digest, err))
		}
	}
	return nil
}

// why returns the failure that ended a context, where one did, because every
// request that was under way then fails with it.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// present finds the longest part of a chain that the store has, and returns
// its top (nil for none) and its length.
func (s *Store) present(ctx context.Context, chain []digest.Digest) (*layer, int, error) {
	for n := len(chain); n > 0; n-- {
		l, err := s.readLayer(ctx, s.layerDir(chain[n-1]))
		if err == nil {
			return l, n, nil
		}
		if !errors.Is(err, vic.ErrNotFound) {
			return nil, 0, err
		}
	}
	return nil, 0, nil
}

// unpackAll unpacks the missing layers, some at once, lower ones first. Each
// channel gets one result and is closed; after a failure, whose cause cancel
// is told, the others get nil.
func (s *Store) unpackAll(ctx context.Context, cancel context.CancelCauseFunc, src Source, f *found, missing, end int, t *teller) []chan *unpacked {
	sem := semaphore.NewWeighted(int64(s.workers))
	var results []chan *unpacked
	for range f.layers[missing:end] {
		results = append(results, make(chan *unpacked, 1))
	}
	go func() {
		for i, d := range f.layers[missing:end] {
			if sem.Acquire(ctx, 1) != nil {
				close(results[i])
				continue
			}
			go func() {
				defer sem.Release(1)
				defer close(results[i])
				id := d.Digest.String()
				u, err := s.unpack(ctx, src, d, f.config.RootFS.DiffIDs[missing+i], func(n int64) { t.tell(id, "download", n, d.Size) })
				if err != nil {
					cancel(fmt.Errorf("layer %d (%s): %w", missing+i+1, d.Digest, err))
					return
				}
				results[i] <- u
			}()
		}
	}()
	return results
}

// add puts a layer on top of its parent: in the model, then on the datastore.
func (s *Store) add(ctx context.Context, parent *layer, fs *ext4.FS, u *unpacked, f *found, chain []digest.Digest, i int, t *teller) (*layer, *ext4.FS, error) {
	id := f.layers[i].Digest.String()
	l := &layer{
		Version: 1, Format: ext4.FormatVersion, ChainID: chain[i], DiffID: f.config.RootFS.DiffIDs[i],
		Dir: s.layerDir(chain[i]), CID: contentID(s.layerDir(chain[i])), Bytes: s.bytes,
	}
	if i > 0 {
		l.Parent = chain[i-1]
	}
	if u.layer.Entries == 0 { // changes nothing: shares its parent's disk
		l.Dir, l.CID, l.Depth = parent.Dir, parent.CID, parent.Depth
		if err := u.record.finish(); err != nil {
			return nil, nil, err
		}
		u.record.describe(l)
		l, err := s.publish(ctx, l, func(ctx context.Context, tmp string) error { return s.putRecord(ctx, tmp, u.record) })
		t.tell(id, "done", f.layers[i].Size, f.layers[i].Size)
		return l, fs, err
	}
	var err error
	if fs == nil {
		if fs, err = s.model(ctx, parent); err != nil {
			return nil, nil, err
		}
	}
	t.tell(id, "apply", 0, 0)
	under, err := s.under(ctx, parent)
	if err != nil {
		return nil, nil, err
	}
	defer under.close()
	l.Depth = under.depth + 1
	if err := u.spool.seal(fs, u.layer, u.record, under); err != nil {
		var full *ext4.NoSpaceError
		if errors.As(err, &full) {
			err = fault.As(vic.ErrNoSpace, fmt.Errorf("%w; open the image store with more Bytes", err))
		}
		return nil, nil, err
	}
	index, err := fs.MarshalBinary()
	if err != nil {
		return nil, nil, err
	}
	l.Extent, l.Index = u.spool.size, int64(len(index))
	u.record.describe(l)
	t.tell(id, "upload", 0, l.Extent)
	l, err = s.publish(ctx, l, func(ctx context.Context, tmp string) error {
		if err := s.putRecord(ctx, tmp, u.record); err != nil {
			return err
		}
		return s.upload(ctx, tmp, l, u.spool, under.cid, under.hint(), index,
			func(n int64) { t.tell(id, "upload", n, u.spool.size) })
	})
	if err != nil {
		return nil, nil, err
	}
	t.tell(id, "done", f.layers[i].Size, f.layers[i].Size)
	return l, fs, nil
}
