package imagestore_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// killOrder is what a process is told that works in a store until it is killed.
type killOrder struct {
	URL, User, Password string
	CA                  []byte

	Place   vic.Place
	Prefix  string // of the names that are its own
	Seed    uint64
	LeaseMS int
	Disk    vic.Disk // of a container, to be committed
}

const killEnv = "VIC_TEST_KILL_ORDER"

// killImages are images that share layers, of contents that do not shrink.
func killImages() *memory {
	m := newMemory()
	noise := func(text string) string {
		var seed [32]byte
		copy(seed[:], text)
		b := make([]byte, 200<<10)
		_, _ = rand.NewChaCha8(seed).Read(b)
		return text + string(b)
	}
	for i := range 6 {
		m.tagImage(strconv.Itoa(i), nil, []string{noise("base"), noise(fmt.Sprint("middle", i%2)), noise(fmt.Sprint("upper", i%3)), noise(fmt.Sprint("own", i))}[:2+i%3]...)
	}
	return m
}

// TestKillWorker is the process that is killed. It says what it has done, each
// thing before the next begins.
func TestKillWorker(t *testing.T) {
	var o killOrder
	if os.Getenv(killEnv) == "" {
		t.Skip("runs in a process of its own")
	}
	if err := json.Unmarshal([]byte(os.Getenv(killEnv)), &o); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c, err := vic.Connect(ctx, vic.Config{URL: o.URL, User: o.User, Password: o.Password, CA: o.CA})
	if err != nil {
		t.Fatal(err)
	}
	s, err := imagestore.Open(ctx, c, o.Place, imagestore.WithLeaseTime(imagestore.Options{Bytes: small, Sweep: true}, time.Duration(o.LeaseMS)*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	m := killImages()
	r := rand.New(rand.NewPCG(o.Seed, 1))
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	say := func(what ...any) { fmt.Println(append([]any{"KILL"}, what...)...) }
	say("ready")
	for {
		select {
		case <-over:
			say("over")
			return
		default:
		}
		tag := strconv.Itoa(r.IntN(6))
		name := "registry.example/" + o.Prefix + ":" + tag
		switch n := r.IntN(10); {
		case n < 2 && os.Getenv("VIC_SOAK") != "":
			name := "registry.example/" + o.Prefix + ":made"
			img, err := s.Commit(ctx, o.Disk, name, nil)
			if err != nil {
				t.Fatalf("commit: %v", err)
			}
			say("has", name, img.Digest())
		case n < 7:
			img, err := s.Pull(ctx, retag{m, tag}, name, nil)
			if err != nil {
				t.Fatalf("pull: %v", err)
			}
			say("has", name, img.Digest())
		case n < 9:
			say("deletes", name)
			if _, err := s.Delete(ctx, name, nil); err != nil {
				t.Fatalf("delete: %v", err)
			}
		case r.IntN(2) == 0:
			if _, err := s.GC(ctx); err != nil {
				t.Fatalf("gc: %v", err)
			}
		default:
			if _, err := s.Prune(ctx, nil); err != nil {
				t.Fatalf("prune: %v", err)
			}
		}
	}
}

// retag is a repository that has one tag.
type retag struct {
	*memory
	tag string
}

// worker is a running TestKillWorker.
type worker struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ready chan struct{}
	done  chan struct{}

	mu   sync.Mutex
	has  map[string]string // names and digests that were acknowledged
	over bool
	out  []string
}

func startWorker(t *testing.T, o killOrder, has map[string]string) *worker {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{ready: make(chan struct{}), done: make(chan struct{}), has: map[string]string{}}
	for name, id := range has {
		if strings.HasPrefix(name, "registry.example/"+o.Prefix+":") {
			w.has[name] = id
		}
	}
	w.cmd = exec.Command(os.Args[0], "-test.run=^TestKillWorker$", "-test.v", "-test.timeout=5m")
	w.cmd.Env = append(os.Environ(), killEnv+"="+string(b))
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = w.cmd.Stdout
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.hear(lines.Text())
		}
	}()
	return w
}

func (w *worker) hear(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := strings.Fields(line)
	switch {
	case len(f) < 2 || f[0] != "KILL":
		w.out = append(w.out, line)
	case f[1] == "ready":
		close(w.ready)
	case f[1] == "over":
		w.over = true
	case f[1] == "has":
		w.has[f[2]] = f[3]
	case f[1] == "deletes":
		delete(w.has, f[2])
	}
}

// kill ends the worker as a power failure would, once all that it said is heard.
func (w *worker) kill(t *testing.T) map[string]string {
	t.Helper()
	_ = w.cmd.Process.Signal(syscall.SIGKILL)
	<-w.done
	err := w.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("a worker ended by itself: %v\n%s", err, strings.Join(w.out, "\n"))
	}
	return w.has
}

// finish lets the worker end what it is at.
func (w *worker) finish(t *testing.T) map[string]string {
	t.Helper()
	_ = w.stdin.Close()
	<-w.done
	if err := w.cmd.Wait(); err != nil || !w.over {
		t.Errorf("a worker that was not killed failed: %v\n%s", err, strings.Join(w.out, "\n"))
	}
	return w.has
}

// Processes that pull, delete and collect garbage in one store are killed at any
// moment. What was acknowledged is there, all that is published is whole, the
// others go on, and what is left of the dead goes when their leases have run out.
func TestKill(t *testing.T) {
	rounds, lease := 4, 1500*time.Millisecond
	if os.Getenv("VIC_SOAK") != "" {
		rounds = 200
	} else if testing.Short() {
		rounds = 2
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("VIC_TEST_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d rounds, VIC_TEST_SEED=%d", rounds, seed)
	r := rand.New(rand.NewPCG(seed, 2))
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, e, lease)
	m := killImages()
	disk := changedContainer(t, e, s, m)
	kept := storeFiles(t, e, "layers") // by the container
	must := map[string]string{}        // names and digests that were acknowledged
	states := map[string]int{}
	for round := range rounds {
		order := killOrder{URL: cfg.URL, User: cfg.User, Password: cfg.Password, CA: cfg.CA, Place: e.Engine.VCH().Images(), LeaseMS: int(lease.Milliseconds()), Disk: disk}
		var ws []*worker
		for _, p := range []string{"killed", "spared"} {
			order.Prefix, order.Seed = p, r.Uint64()
			ws = append(ws, startWorker(t, order, must))
		}
		for _, w := range ws {
			select {
			case <-w.ready:
			case <-w.done:
				t.Fatalf("a worker did not start: %s", strings.Join(w.out, "\n"))
			}
		}
		time.Sleep(time.Duration(r.Int64N(int64(700 * time.Millisecond))))
		acknowledged := ws[0].kill(t)
		states[leftovers(t, e)]++
		for name, id := range ws[1].finish(t) {
			acknowledged[name] = id
		}
		checkStore(t, e, round%25 == 0)
		must = acknowledged
		for name, id := range must {
			img, err := s.Image(t.Context(), name)
			// Each commit is another image, and the killed one may have begun the next.
			again := err == nil && strings.HasSuffix(name, ":made")
			if err != nil || img.Digest().String() != id && !again {
				t.Errorf("round %d: %s, which was acknowledged, is lost: %v", round, name, err)
			}
		}
		time.Sleep(lease + 100*time.Millisecond)
		if err := s.Sweep(t.Context()); err != nil {
			t.Errorf("round %d: sweep: %v", round, err)
		}
		if _, err := s.GC(t.Context()); err != nil {
			t.Errorf("round %d: gc: %v", round, err)
		}
		for _, dir := range []string{"layers", "images", "names", "leases"} {
			for _, n := range storeFiles(t, e, dir) {
				if dir == "leases" || strings.HasPrefix(n, ".") {
					t.Errorf("round %d: %s/%s is left", round, dir, n)
				}
			}
		}
		checkStore(t, e, false)
		tag := strconv.Itoa(r.IntN(6))
		img, err := s.Pull(t.Context(), m, repo+tag, nil)
		if err != nil {
			t.Errorf("round %d: pull again: %v", round, err)
		} else if round%25 == 0 {
			checkChain(t, e, img.Root().Path)
		}
		if r.IntN(3) == 0 { // begin from nothing, sometimes
			if _, err := s.Prune(t.Context(), &imagestore.PruneOptions{All: true}); err != nil {
				t.Errorf("round %d: prune: %v", round, err)
			}
			clear(must)
			if l := storeFiles(t, e, "layers"); !slices.Equal(l, kept) {
				t.Errorf("round %d: after all images but the container's are gone there are layers %v, want %v", round, l, kept)
			}
		}
		if t.Failed() {
			t.Fatalf("round %d of %d", round, rounds)
		}
	}
	t.Logf("what the killed left: %v", states)
}

// changedContainer makes a container of an image of its own, with files changed,
// and returns its disk.
func changedContainer(t *testing.T, e *testlab.Env, s *imagestore.Store, m *memory) vic.Disk {
	t.Helper()
	img, err := s.Pull(t.Context(), retag{m, "0"}, "registry.example/container:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := containervm.Create(t.Context(), e.Client, containervm.Spec{
		Owner: e.Engine.VCH().Owner(), Name: "kept", Root: img.Root(), ImageName: img.Name(), Args: []string{"true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := noise(9, 300<<10)
	if err := w.WriteHeader(&tar.Header{Name: "changed", Mode: 0o644, Size: int64(len(data))}); err != nil {
		t.Fatal(err)
	}
	_, err = w.Write([]byte(data))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.TarIn(t.Context(), disk, "/", &b, nil); err != nil {
		t.Fatal(err)
	}
	return disk
}

// leftovers tells what kinds of things a killed process left.
func leftovers(t *testing.T, e *testlab.Env) string {
	var kinds []string
	for _, n := range storeFiles(t, e, "leases") {
		kind, _, _ := strings.Cut(n, "-")
		kinds = append(kinds, kind)
	}
	for _, dir := range []string{"layers", "images", "names"} {
		for _, n := range storeFiles(t, e, dir) {
			if strings.HasPrefix(n, ".new-") {
				kinds = append(kinds, "half "+strings.TrimSuffix(dir, "s"))
			}
		}
	}
	slices.Sort(kinds)
	return strings.Join(slices.Compact(kinds), "+")
}

// checkStore looks at the files of a store, while it may be worked in by nobody,
// without the code that wrote them.
func checkStore(t *testing.T, e *testlab.Env, fsck bool) {
	t.Helper()
	store := filepath.Join(e.Datastore(), "vic/images")
	type record struct {
		Parent, ChainID, Dir string
		Extent, Index        int64
	}
	layers := map[string]record{}
	for _, d := range storeFiles(t, e, "layers") {
		if strings.HasPrefix(d, ".") {
			continue
		}
		var l record
		readJSON(t, filepath.Join(store, "layers", d, "layer.json"), &l)
		layers[d] = l
	}
	suffix := ""
	for d, l := range layers {
		_, suffix, _ = strings.Cut(d, "-")
		if l.Dir != d {
			continue
		}
		for file, want := range map[string]int64{"layer-delta.vmdk": l.Extent, "index": l.Index} {
			if st, err := os.Stat(filepath.Join(store, "layers", d, file)); want > 0 && (err != nil || st.Size() != want) {
				t.Errorf("layer %s: %s is not of %d bytes: %v", d, file, want, err)
			}
		}
		parent := "base-" + suffix
		if l.Parent != "" {
			parent = strings.TrimPrefix(l.Parent, "sha256:") + "-" + suffix
		}
		if _, ok := layers[parent]; !ok {
			t.Errorf("layer %s is without its parent", d)
			continue
		}
		c, err := chain.Open(t.Context(), "layers/"+d+"/layer.vmdk", func(_ context.Context, p string) (chain.File, error) {
			return openLocal(filepath.Join(store, p))
		})
		if err != nil {
			t.Errorf("layer %s: %v", d, err)
			continue
		}
		c.Close()
		if fsck {
			checkChain(t, e, "[datastore1] vic/images/layers/"+d+"/layer.vmdk")
		}
	}
	for _, n := range storeFiles(t, e, "images") {
		if strings.HasPrefix(n, ".") {
			continue
		}
		var doc struct{ Dir string }
		readJSON(t, filepath.Join(store, "images", n), &doc)
		if _, ok := layers[doc.Dir]; !ok {
			t.Errorf("image %s is without its layer %s", n, doc.Dir)
		}
	}
	for _, n := range storeFiles(t, e, "names") {
		if strings.HasPrefix(n, ".") {
			continue
		}
		var doc struct {
			Name, Manifest string
			Image          struct {
				Dir    string
				Layers []struct{}
			}
		}
		readJSON(t, filepath.Join(store, "names", n), &doc)
		if _, err := os.Stat(filepath.Join(store, "images", strings.TrimPrefix(doc.Manifest, "sha256:")+".json")); err != nil {
			t.Errorf("name %s is without its image: %v", doc.Name, err)
		}
		if _, ok := layers[doc.Image.Dir]; !ok {
			t.Errorf("name %s is without its layer %s", doc.Name, doc.Image.Dir)
		}
	}
}

// localFile is a file of this machine as part of a chain.
type localFile struct {
	*os.File
	size int64
}

func (f localFile) Size() int64 { return f.size }

func openLocal(p string) (chain.File, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return localFile{f, st.Size()}, nil
}
