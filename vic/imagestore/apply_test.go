package imagestore_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/lab"
)

// native is a lab whose datastore takes no uploaded delta disks.
func native(o *lab.Options) { o.NativeDatastores = []string{"datastore1"} }

// helpers lists what there is of helper VMs: in the inventory, and on the
// datastore.
func helpers(t *testing.T, e *testlab.Env) []string {
	t.Helper()
	out := slices.DeleteFunc(inventory(t, e), func(n string) bool { return !strings.HasPrefix(n, "vic-helper-") })
	dirs, err := filepath.Glob(filepath.Join(e.Datastore(), "vic-helper-*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(out, dirs...)
}

// clean fails where anything is left of operations that are over.
func clean(t *testing.T, e *testlab.Env) {
	t.Helper()
	if left := helpers(t, e); len(left) > 0 {
		t.Errorf("helpers are left: %v", left)
	}
	for _, dir := range []string{"layers", "images", "names", "leases"} {
		for _, n := range storeFiles(t, e, dir) {
			if dir == "leases" || strings.HasPrefix(n, ".") {
				t.Errorf("%s/%s is left", dir, n)
			}
		}
	}
}

// watchHelpers counts the helper VMs that are made while f runs.
func watchHelpers(t *testing.T, e *testlab.Env, f func()) int {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	seen := map[string]bool{}
	for {
		dirs, _ := filepath.Glob(filepath.Join(e.Datastore(), "vic-helper-*"))
		for _, d := range dirs {
			seen[d] = true
		}
		select {
		case <-done:
			return len(seen)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// On a datastore that takes no uploads, one helper VM writes all layers of a
// pull; containers run from them; what is in use stays, and what is not goes.
func TestApply(t *testing.T) {
	long(t)
	e := testlab.Start(t, testlab.Options{Lab: native})
	ctx := t.Context()
	name := e.Busybox(t)
	var img *imagestore.Image
	var err error
	n := watchHelpers(t, e, func() { img, err = e.Engine.Pull(ctx, name, nil) })
	if err != nil {
		t.Fatal(err)
	}
	if n != 1 {
		t.Errorf("%d helpers for one pull", n)
	}
	clean(t, e)
	checkChain(t, e, img.Root().Path)

	// Further layers of one pull share a helper, and an image that is there takes
	// none.
	s, m := e.Engine.Images(), newMemory()
	m.tagImage("a", nil, "one", "two", "three")
	var a *imagestore.Image
	if n := watchHelpers(t, e, func() { a = pull(t, s, m, "a") }); n != 1 {
		t.Errorf("%d helpers for three layers", n)
	}
	if n := watchHelpers(t, e, func() { a = pull(t, s, m, "a") }); n != 0 {
		t.Errorf("%d helpers for none", n)
	}
	clean(t, e)
	checkChain(t, e, a.Root().Path)

	// A container boots from what was written, and reads and writes it.
	_, exit, err := e.Engine.Run(ctx, engine.RunSpec{
		Image: name, Remove: true, Container: containervm.Spec{Name: "reader", Args: []string{"sh", "-c", "echo x >/new && sync && ls /bin | wc -l && exit 7"}},
	})
	if err != nil || exit.Code != 7 {
		t.Errorf("run: %+v, %v", exit, err)
	}
	// A container's changes become a layer.
	vm, exit, err := e.Engine.Run(ctx, engine.RunSpec{
		Image: name, Container: containervm.Spec{Name: "maker", Args: []string{"sh", "-c", "echo made >/made; rm /bin/ls"}},
	})
	if err != nil || exit.Code != 0 {
		t.Fatalf("run: %+v, %v", exit, err)
	}
	made, err := e.Engine.Commit(ctx, vm, "made:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	checkChain(t, e, made.Root().Path)
	clean(t, e)
	// What a container stands on cannot be deleted.
	if _, err := s.Delete(ctx, img.Name(), nil); !errors.Is(err, vic.ErrInUse) {
		t.Errorf("delete what is in use: %v", err)
	}
	// Files of a container that is off are read, and not written.
	err = e.Engine.CopyIn(ctx, "maker", "/", strings.NewReader(""), nil)
	if !errors.Is(err, vic.ErrUnsupported) || !strings.Contains(err.Error(), "vmfsSparseSupported") {
		t.Errorf("copy in: %v", err)
	}
	if err := vm.Delete(ctx, false); err != nil {
		t.Fatal(err)
	}
	checkChain(t, e, img.Root().Path)
	d, err := s.Delete(ctx, a.Name(), nil)
	if err != nil || len(d.Layers) != 3 {
		t.Errorf("delete: %+v, %v", d, err)
	}
	if _, err := s.Prune(ctx, &imagestore.PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if left := storeFiles(t, e, "layers"); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
	clean(t, e)
	// Each was deleted as a disk: two containers', five layers' and the base.
	if n := e.Lab.Counters().Tasks["deleteVirtualDisk"]; n != 8 {
		t.Errorf("%d disks were deleted as disks", n)
	}
}

// A disk that has had children, and says so, is deleted as a disk all the same.
func TestDeleteDisk(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true, Lab: native})
	d, err := e.Client.Session().Datastore(t.Context(), "datastore1", func(d vsphere.Datastore) bool { return d.Name == "datastore1" })
	if err != nil {
		t.Fatal(err)
	}
	files := e.Client.Session().Files(d.Ref, d.Name)
	if err := files.CreateThinDisk(t.Context(), "x.vmdk", 1<<20); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(e.Datastore(), "x.vmdk")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(b, "ddb.deletable = \"false\"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := files.DeleteDisk(t.Context(), "x.vmdk"); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(e.Datastore(), "x*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if err := files.DeleteDisk(t.Context(), "x.vmdk"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("delete what is gone: %v", err)
	}
}

// The options decide, where the datastore does not, and say what is missing.
func TestPublish(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true, Lab: func(o *lab.Options) {
		o.Datastores, o.NativeDatastores = []string{"datastore1", "native1"}, []string{"native1"}
	}})
	whole := engine.Helper(e.Client, e.Engine.VCH().Owner())
	without := func(f func(h *imagestore.HelperSpec)) *imagestore.HelperSpec {
		h := *whole
		f(&h)
		return &h
	}
	for _, c := range []struct {
		name, place string
		o           imagestore.Options
		kind        error
		want        string
	}{
		{"upload where it is taken", "datastore1", imagestore.Options{}, nil, ""},
		{"upload is asked for", "datastore1", imagestore.Options{Publish: imagestore.PublishUpload}, nil, ""},
		{"apply is asked for", "datastore1", imagestore.Options{Publish: imagestore.PublishApply, Helper: whole}, nil, ""},
		{"apply where nothing else is taken", "native1", imagestore.Options{Helper: whole}, nil, ""},
		{"nothing is known", "native1", imagestore.Options{Publish: "copy"}, vic.ErrInvalid, "Publish"},
		{"upload where it is not taken", "native1", imagestore.Options{Publish: imagestore.PublishUpload}, vic.ErrUnsupported, "vmfsSparseSupported"},
		{"no helper", "native1", imagestore.Options{}, vic.ErrInvalid, "Helper: missing"},
		{"no helper, apply asked for", "datastore1", imagestore.Options{Publish: imagestore.PublishApply}, vic.ErrInvalid, "Helper: missing"},
		{"no ISO", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.BootISO = "" })}, vic.ErrInvalid, "Helper.BootISO"},
		{"no pool", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.Pool = vic.Ref{} })}, vic.ErrInvalid, "Helper.Pool"},
		{"no folder", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.Folder = vic.Ref{} })}, vic.ErrInvalid, "Helper.Folder"},
		{"no network", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.NIC = vic.NIC{} })}, vic.ErrInvalid, "Helper.NIC"},
		{"no guest", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.Guest = nil })}, vic.ErrInvalid, "Helper.Guest"},
		{"odd memory", "native1", imagestore.Options{Helper: without(func(h *imagestore.HelperSpec) { h.MemoryMB = 255 })}, vic.ErrInvalid, "4 MB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := imagestore.OpenNamed(t.Context(), e.Client, c.place, &c.o)
			if c.kind == nil && err != nil || c.kind != nil && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

// A store may be opened with the other way: chains go on across it.
func TestPublishBothWays(t *testing.T) {
	e := testlab.Start(t, testlab.Options{Images: &imagestore.Options{Bytes: small}})
	m := newMemory()
	m.tagImage("low", nil, "one")
	m.tagImage("mid", nil, "one", "two")
	m.tagImage("top", nil, "one", "two", "three")
	up := e.Engine.Images()
	o := imagestore.Options{Bytes: small, Publish: imagestore.PublishApply, Helper: engine.Helper(e.Client, e.Engine.VCH().Owner())}
	ap, err := imagestore.Open(t.Context(), e.Client, e.Engine.VCH().Images(), &o)
	if err != nil {
		t.Fatal(err)
	}
	pull(t, up, m, "low")
	pull(t, ap, m, "mid")
	img := pull(t, up, m, "top")
	checkChain(t, e, img.Root().Path)
	clean(t, e)
	if _, err := ap.Prune(t.Context(), &imagestore.PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if left := storeFiles(t, e, "layers"); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
}

// writing waits until a layer's disk has some megabytes.
func writing(t *testing.T, e *testlab.Env, least int64, end <-chan struct{}) bool {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		fs, _ := filepath.Glob(filepath.Join(e.Datastore(), "vic/images/layers/.new-*/layer-sesparse.vmdk"))
		for _, f := range fs {
			if st, err := os.Stat(f); err == nil && st.Size() >= least {
				return true
			}
		}
		select {
		case <-end:
			return false
		case <-deadline:
			t.Fatal("no layer is written")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A pull that is cancelled, whatever its helper is at, leaves nothing.
func TestApplyCancelled(t *testing.T) {
	e := testlab.Start(t, testlab.Options{Lab: native, Images: &imagestore.Options{Bytes: small}})
	m := newMemory()
	m.tagImage("a", nil, noise(1, 8<<20), noise(2, 4<<20))
	for _, c := range []struct {
		name string
		when func(end <-chan struct{})
	}{
		{"the helper boots", func(end <-chan struct{}) {
			for len(helpers(t, e)) == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}},
		{"the helper writes", func(end <-chan struct{}) { writing(t, e, 3<<20, end) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			end := make(chan struct{})
			var err error
			go func() {
				defer close(end)
				_, err = e.Engine.Images().Pull(ctx, m, repo+"a", nil)
			}()
			c.when(end)
			cancel()
			<-end
			if !errors.Is(err, context.Canceled) {
				t.Errorf("pull: %v", err)
			}
			clean(t, e)
		})
	}
	img := pull(t, e.Engine.Images(), m, "a")
	checkChain(t, e, img.Root().Path)
	clean(t, e)
}

// applyOrder is what a process is told that pulls until it is killed.
type applyOrder struct {
	URL, User, Password, Proxy string
	CA, Authority              []byte
	LeaseMS                    int
}

const applyEnv = "VIC_TEST_APPLY_ORDER"

func applyImages() *memory {
	m := newMemory()
	m.tagImage("a", nil, noise(1, 8<<20), noise(2, 4<<20))
	return m
}

// TestApplyWorker is the process that is killed.
func TestApplyWorker(t *testing.T) {
	if os.Getenv(applyEnv) == "" {
		t.Skip("runs in a process of its own")
	}
	var o applyOrder
	if err := json.Unmarshal([]byte(os.Getenv(applyEnv)), &o); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(o.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	cfg := vic.Config{URL: o.URL, User: o.User, Password: o.Password, CA: o.CA}
	if cfg.DialGuest, err = vic.ProxyDialer(u); err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(o.Authority)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Authority = key.(crypto.Signer)
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), c, "test", &engine.Options{
		Images: imagestore.WithLeaseTime(imagestore.Options{Bytes: small}, time.Duration(o.LeaseMS)*time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Images().Pull(t.Context(), applyImages(), repo+"a", nil); err != nil {
		t.Fatal(err)
	}
}

// guestProxy lets other processes into the guests' networks.
func guestProxy(t *testing.T, e *testlab.Env) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guest, err := e.Lab.DialGuest(r.Context(), "tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer guest.Close()
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(guest, c)
			_ = guest.Close()
		}()
		_, _ = io.Copy(c, guest)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return "http://" + l.Addr().String()
}

// A process that is killed while its helper boots, or writes, leaves nothing
// that the next sweep does not find.
func TestApplyKilled(t *testing.T) {
	long(t)
	e := testlab.Start(t, testlab.Options{Lab: native, Images: &imagestore.Options{Bytes: small}})
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cfg.Authority)
	if err != nil {
		t.Fatal(err)
	}
	const lease = 5 * time.Second
	b, err := json.Marshal(applyOrder{URL: cfg.URL, User: cfg.User, Password: cfg.Password, CA: cfg.CA, Authority: key,
		Proxy: guestProxy(t, e), LeaseMS: int(lease.Milliseconds())})
	if err != nil {
		t.Fatal(err)
	}
	eng := e.Open(t, e.Client, imagestore.WithLeaseTime(imagestore.Options{Bytes: small}, lease))
	for _, c := range []struct {
		name  string
		when  func(end <-chan struct{}) bool
		clear func() error
	}{
		{"while the helper boots", func(end <-chan struct{}) bool {
			for len(helpers(t, e)) < 2 { // its VM and its directory
				select {
				case <-end:
					return false
				case <-time.After(5 * time.Millisecond):
				}
			}
			return true
		}, func() error { return eng.Images().Sweep(t.Context()) }},
		{"while it writes", func(end <-chan struct{}) bool { return writing(t, e, 3<<20, end) },
			func() error { return eng.Images().Sweep(t.Context()) }},
		{"while it writes, before a gc", func(end <-chan struct{}) bool { return writing(t, e, 2<<20, end) },
			func() error { _, err := eng.Images().GC(t.Context()); return err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestApplyWorker$", "-test.timeout=5m")
			cmd.Env = append(os.Environ(), applyEnv+"="+string(b))
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			end := make(chan struct{})
			go func() {
				_ = cmd.Wait()
				close(end)
			}()
			there := c.when(end)
			_ = cmd.Process.Signal(syscall.SIGKILL)
			<-end
			if !there {
				t.Fatalf("the process ended before it was killed:\n%s", &out)
			}
			before := helpers(t, e)
			if len(before) == 0 {
				t.Fatal("nothing was left to be swept")
			}
			// It counts as alive for the time of its lease.
			if err := eng.Images().Sweep(t.Context()); err != nil {
				t.Errorf("sweep at once: %v", err)
			}
			if d := cmp.Diff(before, helpers(t, e)); d != "" {
				t.Errorf("the helper of one that may live was touched: %s", d)
			}
			time.Sleep(lease + 500*time.Millisecond)
			if err := c.clear(); err != nil {
				t.Fatal(err)
			}
			if left := helpers(t, e); len(left) > 0 {
				t.Errorf("helpers are left: %v", left)
			}
			// The right to make a layer goes with the next pull or gc.
			if _, err := eng.Images().GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			clean(t, e)
		})
	}
	img := pull(t, eng.Images(), applyImages(), "a")
	checkChain(t, e, img.Root().Path)
	clean(t, e)
}
