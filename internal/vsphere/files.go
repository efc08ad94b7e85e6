package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// Files is one datastore's content, reached by vCenter's /folder and its file
// manager. Paths are slash paths from the datastore's root.
type Files struct {
	s          *Session
	datacenter types.ManagedObjectReference
	dcPath     string
	name       string
	datastore  types.ManagedObjectReference

	mu     sync.Mutex
	browse *object.HostDatastoreBrowser // once it was asked for; it stays the same
}

// NewFiles gives access to a datastore of a datacenter, whose inventory path
// (such as "/dc1") dcPath is.
func NewFiles(s *Session, dc types.ManagedObjectReference, dcPath string, ds types.ManagedObjectReference, name string) *Files {
	return &Files{s: s, datacenter: dc, dcPath: dcPath, datastore: ds, name: name}
}

// Datastore returns the managed object and its name.
func (f *Files) Datastore() (types.ManagedObjectReference, string) { return f.datastore, f.name }

// Path returns the datastore path "[name] p".
func (f *Files) Path(p string) string {
	return (&object.DatastorePath{Datastore: f.name, Path: p}).String()
}

// SplitPath cuts a datastore path into datastore name and slash path.
func SplitPath(p string) (datastore, file string, err error) {
	var d object.DatastorePath
	if !d.FromString(p) || d.Datastore == "" {
		return "", "", fault.Of(fault.ErrInvalid, "%q is no datastore path: want \"[datastore] path\"", p)
	}
	return d.Datastore, d.Path, nil
}

func (f *Files) url(p string) *url.URL {
	return object.NewDatastoreURL(*f.s.Vim.URL(), f.dcPath, f.name, p)
}

func (f *Files) do(ctx context.Context, method, p string, h http.Header) (*http.Response, error) {
	hdr := map[string]string{}
	for k := range h {
		hdr[k] = h.Get(k)
	}
	get := func() (*http.Response, error) {
		return f.s.Vim.DownloadRequest(ctx, f.url(p), &soap.Download{Method: method, Headers: hdr})
	}
	n := f.s.renewal.epoch()
	res, err := get()
	if err == nil && res.StatusCode == http.StatusUnauthorized && f.s.renewal != nil {
		res.Body.Close()
		if err = f.s.renewal.renew(ctx, n); err == nil {
			res, err = get()
		}
	}
	if err != nil {
		return nil, Judge(err)
	}
	if res.StatusCode/100 != 2 {
		_, _ = io.CopyN(io.Discard, res.Body, 4096)
		res.Body.Close()
		return nil, judgeHTTP(res.StatusCode, fmt.Sprintf("%s %s: %s", method, f.Path(p), res.Status))
	}
	return res, nil
}

// Get opens a file for reading from its start; the caller closes it.
func (f *Files) Get(ctx context.Context, p string) (io.ReadCloser, error) {
	res, err := f.do(ctx, http.MethodGet, p, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// ReadFile reads a whole file of at most limit bytes.
func (f *Files) ReadFile(ctx context.Context, p string, limit int64) ([]byte, error) {
	r, err := f.Get(ctx, p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fault.As(fault.ErrUnavailable, fmt.Errorf("read %s: %w", f.Path(p), err))
	}
	if int64(len(b)) > limit {
		return nil, fault.Of(fault.ErrInvalid, "%s is above %d bytes", f.Path(p), limit)
	}
	return b, nil
}

// Put writes a file of size bytes whole. It is not atomic on vSphere: write
// under a name that nobody reads and rename.
func (f *Files) Put(ctx context.Context, p string, r io.Reader, size int64) error {
	err := f.s.Vim.Upload(ctx, r, f.url(p), &soap.Upload{Type: "application/octet-stream", Method: http.MethodPut, ContentLength: size})
	if err != nil {
		return fault.As(uploadKind(err), fmt.Errorf("write %s: %w", f.Path(p), Judge(err)))
	}
	return nil
}

func uploadKind(err error) error {
	// soap.Client gives the status line as the error's text.
	for status, kind := range map[int]error{
		http.StatusNotFound: fault.ErrNotFound, http.StatusUnauthorized: fault.ErrDenied,
		http.StatusForbidden: fault.ErrDenied, http.StatusInsufficientStorage: fault.ErrNoSpace,
	} {
		if strings.HasPrefix(err.Error(), fmt.Sprint(status)) {
			return kind
		}
	}
	return fault.ErrUnavailable
}

// WriteFile writes a small document so that readers see the old or the new one
// whole: it is put beside its place and moved there.
func (f *Files) WriteFile(ctx context.Context, p string, b []byte) error {
	tmp := path.Join(path.Dir(p), ".new-"+path.Base(p)+"-"+Nonce())
	if err := f.Put(ctx, tmp, bytes.NewReader(b), int64(len(b))); err != nil {
		return err
	}
	err := f.Move(ctx, tmp, p, true)
	if err != nil {
		dctx, cancel := Detached(ctx)
		defer cancel()
		_ = f.Delete(dctx, tmp)
	}
	return err
}

// Move renames a file or a directory. Without force, an existing destination
// is fault.ErrConflict.
func (f *Files) Move(ctx context.Context, from, to string, force bool) error {
	return f.task(ctx, "move "+f.Path(from)+" to "+f.Path(to), func(ctx context.Context) (*object.Task, error) {
		return object.NewFileManager(f.s.Vim).MoveDatastoreFile(ctx, f.Path(from), f.dc(), f.Path(to), f.dc(), force)
	})
}

// Delete removes a file, or a directory with all in it. What is not there is
// no error.
func (f *Files) Delete(ctx context.Context, p string) error {
	err := f.task(ctx, "delete "+f.Path(p), func(ctx context.Context) (*object.Task, error) {
		return object.NewFileManager(f.s.Vim).DeleteDatastoreFile(ctx, f.Path(p), f.dc())
	})
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

// MkdirAll makes a directory and its parents. One that exists is no error.
func (f *Files) MkdirAll(ctx context.Context, p string) error {
	err := Judge(object.NewFileManager(f.s.Vim).MakeDirectory(ctx, f.Path(p), f.dc(), true))
	if err == nil || errors.Is(err, fault.ErrConflict) {
		return nil
	}
	return fmt.Errorf("make directory %s: %w", f.Path(p), err)
}

// Mkdir makes a directory whose parent exists. One that exists is
// fault.ErrConflict, so that of two callers one wins.
func (f *Files) Mkdir(ctx context.Context, p string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	octx, cancel := Outlive(ctx)
	defer cancel()
	err := Judge(object.NewFileManager(f.s.Vim).MakeDirectory(octx, f.Path(p), f.dc(), false))
	if err != nil {
		return fmt.Errorf("make directory %s: %w", f.Path(p), err)
	}
	return nil
}

// CreateThinDisk makes an empty thin disk of the given size in bytes.
func (f *Files) CreateThinDisk(ctx context.Context, p string, size int64) error {
	return f.task(ctx, "create disk "+f.Path(p), func(ctx context.Context) (*object.Task, error) {
		return object.NewVirtualDiskManager(f.s.Vim).CreateVirtualDisk(ctx, f.Path(p), f.dc(), &types.FileBackedVirtualDiskSpec{
			VirtualDiskSpec: types.VirtualDiskSpec{DiskType: string(types.VirtualDiskTypeThin), AdapterType: string(types.VirtualDiskAdapterTypeLsiLogic)},
			CapacityKb:      size / 1024,
		})
	})
}

// ExtendDisk makes a thin disk larger, to the given size in bytes.
func (f *Files) ExtendDisk(ctx context.Context, p string, size int64) error {
	return f.task(ctx, "extend disk "+f.Path(p), func(ctx context.Context) (*object.Task, error) {
		return object.NewVirtualDiskManager(f.s.Vim).ExtendVirtualDisk(ctx, f.Path(p), f.dc(), size/1024, types.NewBool(false))
	})
}

// DeleteDisk deletes a disk as such, whatever its data is, and not its parents.
// A descriptor says "not deletable" of a disk that has had children, and then
// vSphere refuses; that is taken back first.
func (f *Files) DeleteDisk(ctx context.Context, p string) error {
	b, err := f.ReadFile(ctx, p, 64<<10)
	if err != nil {
		return err
	}
	var kept []byte
	for line := range bytes.Lines(b) {
		if !bytes.HasPrefix(line, []byte("ddb.deletable")) {
			kept = append(kept, line...)
		}
	}
	if len(kept) != len(b) {
		if err := f.Put(ctx, p, bytes.NewReader(kept), int64(len(kept))); err != nil {
			return err
		}
	}
	return f.task(ctx, "delete disk "+f.Path(p), func(ctx context.Context) (*object.Task, error) {
		return object.NewVirtualDiskManager(f.s.Vim).DeleteVirtualDisk(ctx, f.Path(p), f.dc())
	})
}

// An Entry is a file or directory of a datastore.
type Entry struct {
	Name string
	Size int64
	Dir  bool
	// Modified is when it was written last, by the clock of the datastore (a
	// directory: when an entry of it was made, renamed or deleted last).
	Modified time.Time
}

// List lists a directory. One that does not exist is fault.ErrNotFound.
func (f *Files) List(ctx context.Context, p string) ([]Entry, error) {
	b, err := f.browser(ctx)
	if err != nil {
		return nil, Judge(err)
	}
	t, err := b.SearchDatastore(ctx, f.Path(p), searchSpec())
	if err != nil {
		return nil, Judge(err)
	}
	r, err := WaitResult(ctx, f.s, t.Reference())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.Path(p), err)
	}
	res, ok := r.(types.HostDatastoreBrowserSearchResults)
	if !ok {
		return nil, fmt.Errorf("list %s: the search gave a %T", f.Path(p), r)
	}
	return entries(res.File), nil
}

func (f *Files) browser(ctx context.Context) (*object.HostDatastoreBrowser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.browse == nil {
		b, err := object.NewDatastore(f.s.Vim, f.datastore).Browser(ctx)
		if err != nil {
			return nil, err
		}
		f.browse = b
	}
	return f.browse, nil
}

// Tree lists a directory and all below it in one task, by the paths of the
// directories from p: "" is p itself. One that does not exist is
// fault.ErrNotFound.
func (f *Files) Tree(ctx context.Context, p string) (map[string][]Entry, error) {
	b, err := f.browser(ctx)
	if err != nil {
		return nil, Judge(err)
	}
	t, err := b.SearchDatastoreSubFolders(ctx, f.Path(p), searchSpec())
	if err != nil {
		return nil, Judge(err)
	}
	r, err := WaitResult(ctx, f.s, t.Reference())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.Path(p), err)
	}
	res, ok := r.(types.ArrayOfHostDatastoreBrowserSearchResults)
	if !ok {
		return nil, fmt.Errorf("list %s: the search gave a %T", f.Path(p), r)
	}
	dirs := make([]string, len(res.HostDatastoreBrowserSearchResults))
	root := ""
	for i, d := range res.HostDatastoreBrowserSearchResults {
		_, dir, err := SplitPath(d.FolderPath)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", f.Path(p), err)
		}
		// Some datastores give a directory another name than it was asked by.
		if dirs[i] = path.Clean(dir); i == 0 || len(dirs[i]) < len(root) {
			root = dirs[i]
		}
	}
	out := map[string][]Entry{}
	for i, d := range res.HostDatastoreBrowserSearchResults {
		out[strings.TrimPrefix(strings.TrimPrefix(dirs[i], root), "/")] = entries(d.File)
	}
	return out, nil
}

func searchSpec() *types.HostDatastoreBrowserSearchSpec {
	return &types.HostDatastoreBrowserSearchSpec{
		MatchPattern: []string{"*"},
		Details:      &types.FileQueryFlags{FileType: true, FileSize: true, Modification: true},
	}
}

func entries(files []types.BaseFileInfo) []Entry {
	var out []Entry
	for _, e := range files {
		i := e.GetFileInfo()
		_, dir := e.(*types.FolderFileInfo)
		n := Entry{Name: path.Base(i.Path), Size: i.FileSize, Dir: dir}
		if i.Modification != nil {
			n.Modified = *i.Modification
		}
		out = append(out, n)
	}
	return out
}

// Stat tells a file's size in bytes. One that does not exist is
// fault.ErrNotFound.
func (f *Files) Stat(ctx context.Context, p string) (int64, error) {
	res, err := f.do(ctx, http.MethodHead, p, nil)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.ContentLength, nil
}

func (f *Files) dc() *object.Datacenter { return object.NewDatacenter(f.s.Vim, f.datacenter) }

func (f *Files) task(ctx context.Context, what string, request func(context.Context) (*object.Task, error)) error {
	if err := Do(ctx, f.s, request); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
