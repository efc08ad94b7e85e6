package imagestore

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

const (
	// maxMembers bounds the members of an archive, maxMemberName their names
	// and targets, maxDocuments the bytes of manifests and configurations.
	maxMembers    = 50000
	maxMemberName = 1024
	maxDocuments  = 64 << 20
	// maxLinks bounds the symlinks that are followed from one to the next.
	maxLinks = 16
)

// archive is a tar that lies in a file without a name: members by name, their
// contents by offset. No member ever becomes a file of its own, so no name can
// lead anywhere.
type archive struct {
	f         *os.File
	members   map[string]*member
	documents int64 // bytes that were read of them
}

// member is a file of an archive, or a link to one.
type member struct {
	off, size int64
	sha256    digest.Digest
	magic     []byte // its first bytes
	link      string // clean; empty for a file
}

func (a *archive) close() { a.f.Close() }

// readArchive spools an archive of at most limit bytes, unpacked if it is packed
// with gzip or zstd.
func (s *Store) readArchive(ctx context.Context, r io.Reader, limit int64, tell func(done int64)) (*archive, error) {
	f, err := tempFile(s.tempDir, "archive")
	if err != nil {
		return nil, err
	}
	a := &archive{f: f, members: map[string]*member{}}
	if err := a.fill(ctx, r, s.bytes, limit, tell); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archive) fill(ctx context.Context, r io.Reader, bound, limit int64, tell func(int64)) error {
	in, closeIn, err := decompress(r, bound)
	if err != nil {
		return err
	}
	defer closeIn()
	ahead := readAhead(in)
	defer ahead.close()
	tr := tar.NewReader(bufio.NewReaderSize(ahead, 256<<10))
	out := &whileContext{ctx, a.f}
	var off int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF && n > 0 {
			// What follows is padding; whoever writes it wants to be read, and
			// a packed archive's checksum is at its end.
			if _, err := io.Copy(io.Discard, io.LimitReader(ahead, limit)); err != nil {
				return content(fmt.Errorf("the archive: %w", err))
			}
			return nil
		}
		if err == io.EOF {
			return fault.Of(vic.ErrInvalid, "the archive is empty")
		}
		if err != nil {
			return content(fmt.Errorf("the archive: %w", ahead.cause(err)))
		}
		if n >= maxMembers {
			return fault.Of(vic.ErrInvalid, "the archive has more than %d members", maxMembers)
		}
		bad := func(format string, args ...any) error {
			return fault.Of(vic.ErrInvalid, "the archive's member %.200q %s", h.Name, fmt.Sprintf(format, args...))
		}
		name, ok := cleanMember(h.Name)
		if !ok {
			return bad("has a name that leads out of the archive, or is too long")
		}
		m := &member{}
		switch h.Typeflag {
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		case tar.TypeReg:
			m.off, m.size = off, h.Size
			if h.Size > limit-off {
				return bad("makes the archive larger than the %d bytes that are taken", limit)
			}
			d := digest.SHA256.Digester()
			w := &meter{w: out, d: d}
			head := &head{}
			if _, err := io.Copy(io.MultiWriter(w, head), tr); err != nil {
				return content(fmt.Errorf("the archive's member %.200q: %w", h.Name, ahead.cause(err)))
			}
			off += w.n
			m.sha256, m.magic = d.Digest(), head.b
			tell(off)
		case tar.TypeSymlink, tar.TypeLink:
			target := h.Linkname
			if h.Typeflag == tar.TypeSymlink && !path.IsAbs(target) {
				target = path.Join(path.Dir(name), target)
			}
			if m.link, ok = cleanMember(target); !ok {
				return bad("is a link to %.200q, which leads out of the archive", h.Linkname)
			}
		default:
			return bad("is neither a file, a directory nor a link")
		}
		if before, ok := a.members[name]; ok && (before.sha256 != m.sha256 || before.link != m.link) {
			return bad("is in it twice, with different contents")
		}
		a.members[name] = m
	}
}

// head keeps the first bytes that are written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), 4-len(h.b))]...)
	return len(p), nil
}

// cleanMember makes a name relative to the archive.
func cleanMember(name string) (string, bool) {
	if name == "" || len(name) > maxMemberName || path.IsAbs(name) || strings.ContainsAny(name, "\x00\\") {
		return "", false
	}
	c := path.Clean(name)
	return c, c != ".." && !strings.HasPrefix(c, "../")
}

// find follows links to a file. A member that is not there is vic.ErrInvalid:
// the archive is to blame.
func (a *archive) find(name string) (*member, error) {
	c, ok := cleanMember(name)
	if !ok {
		return nil, fault.Of(vic.ErrInvalid, "the archive refers to %.200q, which leads out of it", name)
	}
	for range maxLinks {
		m := a.members[c]
		if m == nil {
			if c != path.Clean(name) {
				return nil, fault.Of(vic.ErrInvalid, "the archive has no %.200q, which its %.200q is a link to", c, name)
			}
			return nil, fault.Of(vic.ErrInvalid, "the archive has no %.200q", c)
		}
		if m.link == "" {
			return m, nil
		}
		c = m.link
	}
	return nil, fault.Of(vic.ErrInvalid, "the archive's %.200q is a link that leads to no file: more than %d links follow one another", name, maxLinks)
}

func (a *archive) has(name string) bool { return a.members[name] != nil }

func (a *archive) open(m *member) *io.SectionReader { return io.NewSectionReader(a.f, m.off, m.size) }

// read reads a document.
func (a *archive) read(name string, limit int64) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if m.size > limit {
		return nil, fault.Of(vic.ErrInvalid, "the archive's %.200q has %d bytes; at most %d are taken", name, m.size, limit)
	}
	if err := a.count(m.size); err != nil {
		return nil, err
	}
	return io.ReadAll(a.open(m))
}

// count bounds what documents take of memory, which all are in at once.
func (a *archive) count(n int64) error {
	if a.documents += n; a.documents > maxDocuments {
		return fault.Of(vic.ErrInvalid, "the archive's manifests and configurations have more than %d bytes", maxDocuments)
	}
	return nil
}

func (a *archive) readJSON(name string, limit int64, v any) ([]byte, error) {
	b, err := a.read(name, limit)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fault.As(vic.ErrInvalid, fmt.Errorf("the archive's %.200q: %w", name, err))
	}
	return b, nil
}
