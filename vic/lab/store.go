package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// hidden is the directory at a datastore's top that the API does not show:
// uploads lie there until they are whole.
const hidden = ".lab"

// A store is a datastore: a directory that is only ever reached through root,
// so that no path and no symbolic link leads out of it.
type store struct {
	name string
	dir  string
	root *os.Root
	ref  types.ManagedObjectReference
	// native: its child disks are made by the API only.
	native bool
}

func openStore(dir, name string) (*store, error) {
	d := filepath.Join(dir, "datastores", name)
	if err := os.MkdirAll(d, 0o700); err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(d)
	if err != nil {
		return nil, err
	}
	s := &store{name: name, dir: d, root: r}
	// What an upload left that was cut off by the end of an earlier lab.
	err = r.RemoveAll(hidden)
	if err == nil {
		err = r.Mkdir(hidden, 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return s, nil
}

// A location is a file or directory on a datastore. rel is a clean slash path
// below the datastore's top, "." for the top itself.
type location struct {
	*store
	rel string
}

func (p location) String() string {
	rel := p.rel
	if rel == "." {
		rel = ""
	}
	return (&object.DatastorePath{Datastore: p.name, Path: rel}).String()
}

// file is the path on this machine, for QEMU.
func (p location) file() string { return filepath.Join(p.dir, filepath.FromSlash(p.rel)) }

func (p location) parent() location { return location{p.store, path.Dir(p.rel)} }

// join returns the location of a relative path seen from directory p. The
// result may not leave the datastore.
func (p location) join(rel string) (location, error) {
	c, err := cleanPath(path.Join(p.rel, rel))
	return location{p.store, c}, err
}

func (p location) stat() (fs.FileInfo, error) { return p.root.Stat(p.rel) }

func (p location) exists() bool {
	_, err := p.root.Lstat(p.rel)
	return err == nil
}

// read returns a small file's content; a file above max bytes is an error.
func (p location) read(max int64) ([]byte, error) {
	f, err := p.root.Open(p.rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s has more than %d bytes", p, max)
	}
	return b, err
}

// create writes a file that must not exist yet.
func (p location) create(fill func(*os.File) error) error {
	f, err := p.root.OpenFile(p.rel, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Close())
	if err != nil {
		_ = p.root.Remove(p.rel)
	}
	return err
}

var errPath = errors.New("a path may not leave its datastore or have control characters")

// cleanPath checks a path that a client gave and returns it clean.
func cleanPath(p string) (string, error) {
	for _, r := range p {
		if r < ' ' || r == 0x7f {
			return "", errPath
		}
	}
	for _, seg := range strings.Split(p, "/") {
		if seg == ".." || len(seg) > 255 {
			return "", errPath
		}
	}
	p = path.Clean("/" + p)[1:]
	if p == "" {
		return ".", nil
	}
	if len(p) > 2048 || p == hidden || strings.HasPrefix(p, hidden+"/") {
		return "", errPath
	}
	return p, nil
}

// resolve turns a datastore path, "[datastore1] dir/file", into a location.
func (l *Lab) resolve(p string) (location, types.BaseMethodFault) {
	var d object.DatastorePath
	if !d.FromString(p) {
		return location{}, say(&types.InvalidDatastorePath{DatastorePath: p}, "%q is not a datastore path like \"[datastore1] dir/file\"", p)
	}
	s := l.stores[d.Datastore]
	if s == nil {
		return location{}, say(&types.InvalidDatastore{Name: d.Datastore}, "there is no datastore %q", d.Datastore)
	}
	rel, err := cleanPath(d.Path)
	if err != nil {
		return location{}, say(&types.InvalidDatastorePath{DatastorePath: p}, "%q: %v", p, err)
	}
	return location{s, rel}, nil
}

// space returns the capacity and free space of the filesystem below s in bytes.
func (s *store) space() (capacity, free int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
