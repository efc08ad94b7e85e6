package testimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
)

// maxTar bounds what AddTar keeps in memory.
const maxTar = 256 << 20

// AddTar adds the entries of an uncompressed tar, for which keep is nil or
// true; keep may change the header's name. Contents are kept in memory, at
// most 256 MiB in all.
func (l *Layer) AddTar(r io.Reader, keep func(*tar.Header) bool) error {
	tr := tar.NewReader(r)
	total := int64(0)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if keep != nil && !keep(h) {
			continue
		}
		if total += h.Size; total > maxTar {
			return fmt.Errorf("entry %q: the tar holds more than %d bytes", h.Name, int64(maxTar))
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		clean := plainHeader(h)
		clean.Size = int64(len(content)) // A sparse file becomes a full one.
		l.addHeader(clean, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	}
}

// plainHeader is h without what depends on the program that wrote it. The
// records of times and names are made anew by the writer.
func plainHeader(h *tar.Header) tar.Header {
	c := tar.Header{
		Typeflag: h.Typeflag, Name: strings.TrimPrefix(h.Name, "./"), Linkname: h.Linkname, Size: h.Size,
		Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	if c.Name == "" {
		c.Name = "./"
	}
	if h.Typeflag == tar.TypeLink {
		c.Linkname = path.Clean(h.Linkname)
	}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			if c.PAXRecords == nil {
				c.PAXRecords = map[string]string{}
			}
			c.PAXRecords[key] = value
		}
	}
	return c
}

// sameFile reports whether two entries make the same file, contents aside.
func sameFile(a, b *tar.Header) bool {
	return a.Typeflag == b.Typeflag && a.Linkname == b.Linkname && a.Size == b.Size && a.Mode == b.Mode &&
		a.Uid == b.Uid && a.Gid == b.Gid && a.ModTime.Equal(b.ModTime) &&
		a.Devmajor == b.Devmajor && a.Devminor == b.Devminor && maps.Equal(a.PAXRecords, b.PAXRecords)
}
