package imagestore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// counted is a repository that counts how often each blob is fetched, and may
// hold fetches up.
type counted struct {
	*memory
	mu      sync.Mutex
	fetches map[digest.Digest]int
	delay   time.Duration
	before  func(ctx context.Context, d ocispec.Descriptor)
}

func (c *counted) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	c.mu.Lock()
	if c.fetches == nil {
		c.fetches = map[digest.Digest]int{}
	}
	c.fetches[d.Digest]++
	c.mu.Unlock()
	if strings.Contains(d.MediaType, "tar") {
		time.Sleep(c.delay)
		if c.before != nil {
			c.before(ctx, d)
		}
	}
	return c.memory.Fetch(ctx, d)
}

// Many pulls of images that share layers do each layer once: by one store
// object, and by several, as several processes have.
func TestConcurrentPullsDoEachLayerOnce(t *testing.T) {
	for _, stores := range []int{1, 5} {
		t.Run(fmt.Sprintf("%d stores", stores), func(t *testing.T) {
			e := testlab.Start(t, testlab.Options{NoBoot: true})
			src := &counted{memory: newMemory(), delay: 30 * time.Millisecond}
			var tags []string
			for i := range 6 {
				layers := []string{"base", "libs", fmt.Sprint("half", i%2), fmt.Sprint("own", i)}
				tags = append(tags, fmt.Sprint("t", i))
				src.tagImage(tags[i], nil, layers[:2+i%3]...)
			}
			var open []*imagestore.Store
			for range stores {
				open = append(open, openStore(t, e, 0))
			}
			var wg sync.WaitGroup
			images := make([]*imagestore.Image, 15)
			waits := atomic.Int64{}
			for i := range images {
				wg.Go(func() {
					img, err := open[i%stores].Pull(t.Context(), src, repo+tags[i%len(tags)], &imagestore.PullOptions{Progress: func(ev vic.Event) {
						if ev.Phase == "wait" {
							waits.Add(1)
						}
					}})
					if err != nil {
						t.Error(err)
					}
					images[i] = img
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			layers := 0
			for d, n := range src.fetches {
				for _, i := range images {
					for _, l := range i.Layers() {
						if l.Digest == d && n != 1 {
							t.Errorf("a layer was fetched %d times", n)
						}
					}
				}
				layers += n
			}
			if waits.Load() == 0 {
				t.Error("nobody waited for another")
			}
			wantLayers(t, e, open[0], images...)
			checkChain(t, e, images[5].Root().Path)
		})
	}
}

// checkChain looks at a chain with qemu-img and e2fsck.
func checkChain(t *testing.T, e *testlab.Env, disk string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-O", "raw", wholeChain(t, e.Local(t, disk)), raw)
	command(t, "e2fsck", "-fn", raw)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
}

// A pull whose layers another deletes meanwhile either has them or makes them.
func TestPullBesideDeleteAndGC(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	m := newMemory()
	for i := range 4 {
		m.tagImage(fmt.Sprint("t", i), nil, "base", fmt.Sprint("half", i%2), fmt.Sprint("own", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var pulls, deletions, collections atomic.Int64
	for w := range 4 {
		s := openStore(t, e, 0)
		name := repo + fmt.Sprint("t", w)
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				img, err := s.Pull(t.Context(), m, name, nil)
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				pulls.Add(1)
				// It was published: until somebody deletes the name, all of it is there.
				for _, d := range s.LayerDirs(img) {
					if _, err := os.Stat(filepath.Join(e.Datastore(), "vic/images/layers", d, "layer.json")); err != nil {
						t.Errorf("published without a layer: %v", err)
						return
					}
				}
				if _, err := s.Delete(t.Context(), name, nil); err != nil {
					t.Errorf("delete: %v", err)
					return
				}
				deletions.Add(1)
			}
		})
	}
	gc := openStore(t, e, 0)
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := gc.GC(t.Context()); err != nil {
				t.Errorf("gc: %v", err)
				return
			}
			collections.Add(1)
			time.Sleep(20 * time.Millisecond)
		}
	})
	wg.Wait()
	t.Logf("%d pulls, %d deletions, %d collections", pulls.Load(), deletions.Load(), collections.Load())
	if _, err := gc.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLayers(t, e, gc)
}

// A pull that dies while it holds the right to make a layer delays others for as
// long as a lease stands, and what it left goes.
func TestDeadPull(t *testing.T) {
	const stands = time.Second
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	src := &counted{memory: newMemory()}
	src.tagImage("a", nil, "one", "two")
	dead := openStore(t, e, stands)
	dctx, die := context.WithCancel(t.Context())
	started := make(chan struct{}, 9)
	ended := make(chan error, 1)
	src.before = func(ctx context.Context, _ ocispec.Descriptor) {
		started <- struct{}{}
		<-ctx.Done()
	}
	go func() {
		_, err := dead.Pull(dctx, src, repo+"a", nil)
		ended <- err
	}()
	<-started
	// Dead is one whose leases nobody renews: copied, they are as the death of
	// a process leaves them.
	store := filepath.Join(e.Datastore(), "vic/images")
	copyDir(t, filepath.Join(store, "leases"), filepath.Join(store, "saved"))
	die()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if left := storeFiles(t, e, "leases"); len(left) > 0 {
		t.Errorf("a pull that was cancelled left %v", left)
	}
	copyDir(t, filepath.Join(store, "saved"), filepath.Join(store, "leases"))
	if err := os.RemoveAll(filepath.Join(store, "saved")); err != nil {
		t.Fatal(err)
	}
	uses, _ := filepath.Glob(filepath.Join(store, "leases/use-*"))
	if len(uses) != 1 {
		t.Fatal(uses)
	}
	half := filepath.Join(store, "layers", ".new-"+strings.TrimPrefix(filepath.Base(uses[0]), "use-")+"-7")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	src.before = nil
	s := openStore(t, e, stands)
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); err != nil {
		t.Errorf("what lives was swept: %v", err)
	}
	begin := time.Now()
	img := pull(t, s, src.memory, "a")
	if took := time.Since(begin); took < stands/2 || took > 8*stands {
		t.Errorf("the pull took %v, where a lease stands for %v", took, stands)
	}
	wantLayers(t, e, s, img)
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	_ = os.RemoveAll(to)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// What a living one wants stays, and goes when it has died.
func TestLeaseKeepsLayers(t *testing.T) {
	const stands = time.Second
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, stands), newMemory()
	m.tagImage("a", nil, "one", "two", "three")
	img := pull(t, s, m, "a")
	dirs := s.LayerDirs(img)
	die, err := openStore(t, e, stands).TakeLease(t.Context(), dirs[1])
	if err != nil {
		t.Fatal(err)
	}
	if d, err := s.Delete(t.Context(), img.Name(), nil); err != nil || !slices.Equal(d.Layers, []string{dirs[2]}) {
		t.Errorf("%+v, %v", d, err)
	}
	time.Sleep(2 * stands)
	if d, err := s.GC(t.Context()); err != nil || len(d.Layers) > 0 {
		t.Errorf("deleted what a living one wants: %+v, %v", d, err)
	}
	die()
	if d, err := s.GC(t.Context()); err != nil || len(d.Layers) > 0 {
		t.Errorf("at once: %+v, %v", d, err)
	}
	time.Sleep(stands + 300*time.Millisecond)
	if d, err := s.GC(t.Context()); err != nil || len(d.Layers) != 3 {
		t.Errorf("%+v, %v", d, err)
	}
	wantLayers(t, e, s)
}

// A pull that was taken for dead while it slept publishes nothing then, and
// begins again.
func TestPullThatSlept(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	src := &counted{memory: newMemory()}
	src.tagImage("a", nil, "one", "two")
	s := openStore(t, e, 0)
	store := filepath.Join(e.Datastore(), "vic/images")
	var once sync.Once
	src.before = func(context.Context, ocispec.Descriptor) {
		once.Do(func() {
			// As another process that broke its lease leaves it.
			uses, _ := filepath.Glob(filepath.Join(store, "leases/use-*"))
			for _, u := range uses {
				if err := os.Rename(u, filepath.Join(store, "leases/dead-0123456789abcdef-"+filepath.Base(u))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	img, err := s.Pull(t.Context(), src, repo+"a", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range img.Layers() {
		if n := src.fetches[l.Digest]; n != 2 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
	if _, err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLayers(t, e, s, img)
}

// One who deletes and dies, wherever it was, stops nobody for long. What it had
// taken out and a VM stands on is put back.
func TestDeadGC(t *testing.T) {
	const stands = time.Second
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, stands), newMemory()
	m.tagImage("a", nil, "one", "two")
	img := pull(t, s, m, "a")
	dirs := s.LayerDirs(img)
	container(t, e, "made-beside", img)
	store := filepath.Join(e.Datastore(), "vic/images")
	trash := filepath.Join(store, "leases/gc/0123456789abcdef")
	if err := os.MkdirAll(trash, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(trash, "lease.json"), []byte(`{"version":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if err := os.Rename(filepath.Join(store, "layers", d), filepath.Join(trash, d)); err != nil {
			t.Fatal(err)
		}
	}
	m.tagImage("b", nil, "another")
	begin := time.Now()
	b := pull(t, s, m, "b")
	if took := time.Since(begin); took < stands/2 {
		t.Errorf("a pull did not wait for one who deletes: %v", took)
	}
	wantLayers(t, e, s, img, b)
	checkChain(t, e, img.Root().Path)
}

// Who comes when the lower layers of a pull are there already waits for those that
// it has yet to make.
func TestPullWaitsForLayersFurtherUp(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	src := &counted{memory: newMemory()}
	src.tagImage("a", nil, "one", "two", "three")
	a, c := openStore(t, e, 0), openStore(t, e, 0)
	upper := digest.FromBytes(gz(oneFile("file1", "two")))
	release := make(chan struct{})
	var once sync.Once
	src.before = func(_ context.Context, d ocispec.Descriptor) {
		if d.Digest == upper {
			<-release
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Pull(t.Context(), src, repo+"a", nil); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		n := 0
		for _, l := range storeFiles(t, e, "layers") {
			if !strings.HasPrefix(l, ".") && !strings.HasPrefix(l, "base") {
				n++
			}
		}
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the first layer does not come")
		}
	}
	img, err := c.Pull(t.Context(), src, repo+"a", &imagestore.PullOptions{Progress: func(ev vic.Event) {
		if ev.Phase == "wait" {
			once.Do(func() { time.AfterFunc(300*time.Millisecond, func() { close(release) }) })
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, l := range img.Layers() {
		if n := src.fetches[l.Digest]; n != 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
	wantLayers(t, e, c, img)
}
