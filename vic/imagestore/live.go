package imagestore

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A LiveEntry is a file of a container that runs, as its guest tells it.
type LiveEntry struct {
	// Path from the container's root, without a leading slash.
	Path     string
	Mode     fs.FileMode
	UID, GID uint32
	Inode    uint64
	// Changed is when the inode was changed last.
	Changed time.Time
	// Mount tells that something else is mounted there.
	Mount bool
}

// maxLiveChanges bounds what a guest can make us remember.
const maxLiveChanges = 1 << 20

// LiveChanges lists what a container that runs changed in its image's file tree, as
// FS.Changes does for one that is off. parents are the disks below its own, from the
// top; the first that is an image's is compared with. list calls each with the
// container's files, a directory before what is in it and names in the order of their
// bytes. A container's disk begins as its image's, inode by inode, so a file
// is unchanged where inode and time of change are the image's. What is mounted is
// left out, and so are directories that were made to mount something in them.
//
// A directory in which something was made and is gone again, and that is else as it
// was, is not listed.
func (s *Store) LiveChanges(ctx context.Context, parents []vic.Disk, list func(each func(LiveEntry) error) error) ([]Change, error) {
	_, own := s.files.Datastore()
	for _, d := range parents {
		ds, file, err := vsphere.SplitPath(d.Path)
		if err != nil || ds != own || !strings.HasPrefix(file, s.path("layers")+"/") {
			continue
		}
		f, err := s.OpenFS(ctx, d)
		if err != nil {
			return nil, err
		}
		l := &live{image: f.r}
		l.open("", true)
		err = list(l.entry)
		if err == nil {
			err = l.closeUntil("")
		}
		if err == nil {
			err = l.close()
		}
		return l.out, f.wrap("compare with the image", errors.Join(err, f.Close()))
	}
	return nil, fault.Of(vic.ErrInvalid, "the container's disk is on no image of %s", s.files.Path(s.dir))
}

// live compares an image's tree with a list of a container's files.
type live struct {
	image *ext4.Reader
	stack []*liveDir
	out   []Change
}

// liveDir is a directory whose entries are being listed.
type liveDir struct {
	path   string   // empty or with a slash at its end
	names  []string // of the image, still to come
	at     int      // where the directory itself stands in out
	listed bool     // it stands there whatever is in it
	added  bool
	mounts bool // it has entries, and nothing but mounts
	other  bool // it has others
	err    error
}

func (l *live) open(path string, inImage bool) *liveDir {
	d := &liveDir{path: path}
	if inImage {
		var es []ext4.DirEntry
		es, d.err = l.image.ReadDir("/" + path)
		for _, e := range es {
			d.names = append(d.names, e.Name)
		}
	}
	l.stack = append(l.stack, d)
	return d
}

func (l *live) top() *liveDir { return l.stack[len(l.stack)-1] }

func (l *live) add(kind, name string) error {
	if len(l.out) >= maxLiveChanges {
		return fault.Of(vic.ErrUnsupported, "more than %d changes", maxLiveChanges)
	}
	l.out = append(l.out, Change{Kind: kind, Path: "/" + name})
	return nil
}

// close ends the directory on top: what the image has beside what was listed is
// gone, and the directory is changed if something in it is.
func (l *live) close() error {
	d := l.top()
	l.stack = l.stack[:len(l.stack)-1]
	if d.err != nil {
		return d.err
	}
	for _, n := range d.names {
		if err := l.add("D", d.path+n); err != nil {
			return err
		}
	}
	if d.added && d.mounts && !d.other || !d.listed && len(l.stack) > 0 && len(l.out) == d.at+1 {
		l.out = l.out[:d.at]
	}
	return nil
}

// closeUntil ends directories until the one of a path is on top.
func (l *live) closeUntil(dir string) error {
	for l.top().path != dir {
		if len(l.stack) == 1 {
			return fault.Of(vic.ErrInvalid, "the guest lists what is in %.200q before that itself", dir)
		}
		if err := l.close(); err != nil {
			return err
		}
	}
	return nil
}

func (l *live) entry(e LiveEntry) error {
	dir, name := path.Split(e.Path)
	if err := l.closeUntil(dir); err != nil {
		return err
	}
	d := l.top()
	if d.err != nil {
		return d.err
	}
	if name == "" || name == "." || name == ".." {
		return fault.Of(vic.ErrInvalid, "the guest lists %.200q", e.Path)
	}
	// What the image has before this name is gone.
	for len(d.names) > 0 && d.names[0] < name {
		if err := l.add("D", d.path+d.names[0]); err != nil {
			return err
		}
		d.names = d.names[1:]
	}
	inImage := len(d.names) > 0 && d.names[0] == name
	if inImage {
		d.names = d.names[1:]
	}
	if e.Mount {
		d.mounts = true
		return nil
	}
	d.other = true
	at, kind, wasDir := len(l.out), "A", false
	if inImage {
		old, err := l.image.Lstat("/" + e.Path)
		if err != nil {
			return err
		}
		kind, wasDir = l.compare(old, e), old.Mode.IsDir()
	}
	listed := kind != ""
	if e.Mode.IsDir() && !listed {
		kind = "C" // until it turns out that nothing in it is
	}
	if kind != "" {
		if err := l.add(kind, e.Path); err != nil {
			return err
		}
	}
	if e.Mode.IsDir() {
		if len(l.stack) > maxTreeDepth {
			return fault.Of(vic.ErrInvalid, "directories lie more than %d deep", maxTreeDepth)
		}
		n := l.open(e.Path+"/", wasDir)
		n.at, n.listed, n.added = at, listed, !inImage
	}
	return nil
}

// maxTreeDepth is more than a path of 4096 bytes can have.
const maxTreeDepth = 2048

// compare tells "C" where a file is not as it was. A directory's time of change also
// tells of what was made in it, which is listed by itself.
func (l *live) compare(old ext4.Info, e LiveEntry) string {
	same := old.Mode == e.Mode && old.UID == e.UID && old.GID == e.GID && uint64(old.Ino) == e.Inode
	if same && !e.Mode.IsDir() {
		same = old.Ctime.Equal(e.Changed)
	}
	if same {
		return ""
	}
	return "C"
}
