package ext4

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"time"
)

// TarOptions are the details of [Reader.TarOut] and [DiffTar]; nil means none.
type TarOptions struct {
	// Name is what the first entry is called, and what the names of those below it start with:
	// "" for the last element of the path, "." for the names below it alone. Of no meaning for
	// DiffTar.
	Name string
	// Skip, if set, leaves out a path and all below it. Paths are from the Reader's root, without
	// a leading slash.
	Skip func(name string) bool
	// Sparse writes files with at least 1 MiB of holes in GNU's sparse format 1.0, which keeps
	// their holes. Without it holes are written as zeroes.
	Sparse bool
}

// TarOut writes name, and everything below it if it is a directory, as a tar in PAX format,
// as "docker cp" and "docker export" do: a symlink at the end of name is not followed, entries
// are sorted by name, the names of a file with several are hard links to the first, sockets are
// left out. Owners are numbers, times have nanoseconds, extended attributes are records
// SCHILY.xattr.NAME. The same tree gives the same bytes.
//
// The first entry of a path is the path itself; that of the root is "./".
func (r *Reader) TarOut(w io.Writer, name string, o *TarOptions) error {
	if o == nil {
		o = &TarOptions{}
	}
	in, real, err := r.resolvePath(name, false)
	if err != nil {
		return &fs.PathError{Op: "tar", Path: name, Err: err}
	}
	if in.mode()&modeType == modeSocket {
		return &fs.PathError{Op: "tar", Path: name, Err: errSocket}
	}
	base := o.Name
	if base == "" {
		base = path.Base(real)
	}
	if base = path.Clean(base); base == "/" {
		base = "."
	}
	t := newTarWriter(r.v, w, o.Sparse)
	err = r.walk(real, func(p string, in *rawInode, info Info) error {
		if p != "" && o.Skip != nil && o.Skip(p) {
			return fs.SkipDir
		}
		below := strings.TrimPrefix(strings.TrimPrefix("/"+p, real), "/")
		return t.add(path.Join(base, below), in, info)
	})
	if err != nil {
		return err
	}
	return t.tw.Close()
}

var errSocket = errors.New("a socket cannot be in a tar")

// tarWriter makes entries of files.
type tarWriter struct {
	v      *volume
	w      io.Writer
	tw     *tar.Writer
	sparse bool
	first  map[uint32]string // the entry of a file with several names
}

func newTarWriter(v *volume, w io.Writer, sparse bool) *tarWriter {
	return &tarWriter{v: v, w: w, tw: tar.NewWriter(w), sparse: sparse, first: map[uint32]string{}}
}

// add writes one file under a name; sockets are left out.
func (t *tarWriter) add(name string, in *rawInode, info Info) error {
	typ := in.mode() & modeType
	if typ == modeSocket {
		return nil
	}
	h := &tar.Header{Name: name, Mode: int64(in.mode() &^ modeType), Uid: int(info.UID), Gid: int(info.GID),
		ModTime: info.Mtime, Format: tar.FormatPAX, PAXRecords: xattrRecords(info.Xattrs)}
	fail := func(err error) error { return fmt.Errorf("ext4: tar: %s: %w", quote(name), err) }
	if first, ok := t.first[in.ino]; ok && typ != modeDir {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		if err := t.tw.WriteHeader(h); err != nil {
			return fail(err)
		}
		return nil
	}
	if info.Nlink > 1 && typ != modeDir {
		t.first[in.ino] = name
	}
	switch typ {
	case modeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case modeRegular:
		h.Typeflag, h.Size = tar.TypeReg, info.Size
	case modeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, info.Link
	case modeChar, modeBlock:
		h.Typeflag = tar.TypeChar
		if typ == modeBlock {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(info.Major), int64(info.Minor)
	case modeFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return fail(fmt.Errorf("inode %d has mode %#o, of no type", in.ino, in.mode()))
	}
	if typ != modeRegular || info.Size == 0 {
		if err := t.tw.WriteHeader(h); err != nil {
			return fail(err)
		}
		return nil
	}
	f := &File{info: info, m: newExtentMap(t.v, in)}
	if t.sparse {
		if pieces, err := f.data(); err != nil {
			return fail(err)
		} else if worthSparse(pieces, info.Size) {
			if err := t.addSparse(h, f, pieces); err != nil {
				return fail(err)
			}
			return nil
		}
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return fail(err)
	}
	if _, err := io.Copy(t.tw, f); err != nil {
		return fail(err)
	}
	return nil
}

// whiteout writes the entry that deletes a name.
func (t *tarWriter) whiteout(name string) error {
	dir, base := path.Split(name)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("ext4: tar: %s: %w", quote(h.Name), err)
	}
	return nil
}

// xattrRecords are the PAX records of extended attributes. A record's key cannot hold "=":
// such a name takes libarchive's form.
func xattrRecords(xs map[string][]byte) map[string]string {
	if len(xs) == 0 {
		return nil
	}
	out := make(map[string]string, len(xs))
	for name, value := range xs {
		if strings.Contains(name, "=") {
			out[paxXattrLibarch+strings.ReplaceAll(url.PathEscape(name), "=", "%3D")] = base64.StdEncoding.EncodeToString(value)
			continue
		}
		out[paxXattr+name] = string(value)
	}
	return out
}
