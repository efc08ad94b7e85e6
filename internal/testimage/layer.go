package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
	"time"
)

// Epoch is the time that stands for "now" in every image made here:
// 2024-01-01T00:00:00Z.
func Epoch() time.Time { return time.Unix(1704067200, 0).UTC() }

// Meta is what a file is beside its name and content.
type Meta struct {
	// Mode holds the permission bits with setuid (04000), setgid (02000)
	// and sticky (01000), as they are: 0 means no permission at all.
	Mode     int64
	UID, GID int
	// ModTime is [Epoch] if zero. Nanoseconds are kept, and so are times
	// before 1970.
	ModTime time.Time
	// Xattrs are extended attributes by full name.
	Xattrs map[string]string
}

// Layer is the change that one image layer makes, as a list of tar entries
// in the order in which they were added. Names are written as they are
// given, so a layer can be as hostile as a test wants it. Mistakes in making
// it, such as a name that tar cannot carry, are reported by [Layer.WriteTar].
//
// A nil *Meta in any method means root's, with the mode 0644 for files and
// devices, 0755 for directories and 0777 for symlinks.
//
// A Layer is not safe for concurrent use while it is being made; afterwards
// it may be written by several goroutines at once.
type Layer struct {
	entries []entry
	byName  map[string]int
	raw     func() (io.ReadCloser, error)
	err     error
}

type entry struct {
	header tar.Header
	open   func() (io.ReadCloser, error) // nil for no content
}

// NewLayer returns a layer without entries, which is a valid one.
func NewLayer() *Layer { return &Layer{byName: map[string]int{}} }

// RawLayer returns a layer whose uncompressed bytes are what open returns,
// which is called for each writing; they need not be a tar. Nothing can be
// added to it.
func RawLayer(open func() (io.ReadCloser, error)) *Layer { return &Layer{raw: open} }

// Len returns the number of entries.
func (l *Layer) Len() int { return len(l.entries) }

func (l *Layer) add(h tar.Header, m *Meta, mode int64, open func() (io.ReadCloser, error)) {
	if m == nil {
		m = &Meta{Mode: mode}
	}
	h.Mode, h.Uid, h.Gid, h.ModTime = m.Mode, m.UID, m.GID, m.ModTime
	if h.ModTime.IsZero() {
		h.ModTime = Epoch()
	}
	for name, value := range m.Xattrs {
		setXattr(&h, name, value)
	}
	l.addHeader(h, open)
}

func (l *Layer) addHeader(h tar.Header, open func() (io.ReadCloser, error)) {
	if l.raw != nil {
		l.fail(fmt.Errorf("add %q: a raw layer takes no entries", h.Name))
		return
	}
	l.byName[path.Clean(h.Name)] = len(l.entries)
	l.entries = append(l.entries, entry{header: h, open: open})
}

func (l *Layer) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

// setXattr uses the records that GNU tar, Docker and umoci use for extended
// attributes; they are no part of POSIX.
func setXattr(h *tar.Header, name, value string) {
	records := maps.Clone(h.PAXRecords)
	if records == nil {
		records = map[string]string{}
	}
	records["SCHILY.xattr."+name] = value
	h.PAXRecords = records
}

// AddFile adds a regular file. The content is kept, not copied.
func (l *Layer) AddFile(name string, content []byte, m *Meta) {
	l.AddReader(name, int64(len(content)), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, m)
}

// AddReader adds a regular file of size bytes, which open returns anew for
// each writing of the layer.
func (l *Layer) AddReader(name string, size int64, open func() (io.ReadCloser, error), m *Meta) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}, m, 0o644, open)
}

// AddDir adds a directory. "." is the root of the image.
func (l *Layer) AddDir(name string, m *Meta) {
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/"}, m, 0o755, nil)
}

// AddSymlink adds a symlink that holds target as it is.
func (l *Layer) AddSymlink(name, target string, m *Meta) {
	l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, m, 0o777, nil)
}

// AddHardlink adds another name for target, which is a path from the
// image's root and may be in an earlier layer. Some unpackers apply a link's
// header to the file, so m should say what the file already is; nil takes
// that from this layer's entry for target, if it has one.
func (l *Layer) AddHardlink(name, target string, m *Meta) {
	h := tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
	if at, ok := l.byName[path.Clean(target)]; ok && m == nil {
		t := &l.entries[at].header
		m = &Meta{Mode: t.Mode, UID: t.Uid, GID: t.Gid, ModTime: t.ModTime}
		h.PAXRecords = t.PAXRecords
	}
	l.add(h, m, 0o644, nil)
}

// AddDevice adds a device, character ('c') or block ('b'), or a FIFO ('p'),
// which has no number.
func (l *Layer) AddDevice(name string, kind byte, major, minor int64, m *Meta) {
	h := tar.Header{Name: name, Devmajor: major, Devminor: minor}
	switch kind {
	case 'c':
		h.Typeflag = tar.TypeChar
	case 'b':
		h.Typeflag = tar.TypeBlock
	case 'p':
		h.Typeflag = tar.TypeFifo
	default:
		l.fail(fmt.Errorf("add device %q: kind %q is none of 'c', 'b' and 'p'", name, kind))
		return
	}
	l.add(h, m, 0o644, nil)
}

// AddXattr gives an extended attribute to the entry that was last added
// under that name.
func (l *Layer) AddXattr(name, attr, value string) {
	at, ok := l.byName[path.Clean(name)]
	if !ok {
		l.fail(fmt.Errorf("add xattr %s: the layer has no %q", attr, name))
		return
	}
	setXattr(&l.entries[at].header, attr, value)
}

// AddRaw adds an entry as it is, for layers that a builder would not write.
func (l *Layer) AddRaw(h tar.Header, content []byte) {
	l.addHeader(h, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
}

// Names of whiteouts: OCI image spec, layer.md, section "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Whiteout removes what the earlier layers have under name.
func (l *Layer) Whiteout(name string) {
	dir, base := path.Split(path.Clean(name))
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base}, &Meta{}, 0, nil)
}

// Opaque removes what the earlier layers have in the directory dir, and
// leaves what this layer puts there, before or after.
func (l *Layer) Opaque(dir string) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, whiteoutOpaque)}, &Meta{}, 0, nil)
}

// WriteTar writes the layer, uncompressed. It returns the first mistake made
// in building it, a source's error, or ctx's.
func (l *Layer) WriteTar(ctx context.Context, w io.Writer) error {
	if l.err != nil {
		return l.err
	}
	if l.raw != nil {
		return copyFrom(ctx, w, l.raw)
	}
	tw := tar.NewWriter(w)
	for i := range l.entries {
		e := &l.entries[i]
		h := e.header // The writer changes its argument.
		if h.ModTime.Nanosecond() != 0 || h.ModTime.Unix() < 0 {
			h.Format = tar.FormatPAX // The others round the time.
		}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if e.open != nil && h.Size > 0 {
			if err := copyFrom(ctx, tw, e.open); err != nil {
				return fmt.Errorf("entry %q: %w", h.Name, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return tw.Close()
}

func copyFrom(ctx context.Context, w io.Writer, open func() (io.ReadCloser, error)) (err error) {
	r, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.Copy(w, withContext(ctx, r))
	return err
}

// readerFunc is a reader made of its only method.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// withContext returns r until ctx ends, and then ctx's error.
func withContext(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}
