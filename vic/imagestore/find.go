package imagestore

import (
	"context"
	"errors"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// minShortID is how many digits of a digest are taken for it.
const minShortID = 4

// Find opens an image by its whole name, by the digest of its manifest
// ("sha256:…", or "repository@sha256:…" where it has a name of that
// repository), or by four or more of the digest's first hexadecimal digits. An
// image that has no name is found by its digest, and has an empty Name. Digits
// that several images begin with are vic.ErrInvalid; nothing found is
// vic.ErrNotFound.
func (s *Store) Find(ctx context.Context, name string) (*Image, error) {
	const op = "find image"
	ref := vic.Ref{Kind: "image", Name: name}
	img, err := s.Image(ctx, name)
	if err == nil || !errors.Is(err, vic.ErrNotFound) {
		return img, err
	}
	ids, e := s.digests(ctx)
	if e != nil {
		return nil, fault.Wrap(op, ref, e)
	}
	id, repo, e := match(name, ids)
	if e != nil {
		return nil, fault.Wrap(op, ref, e)
	}
	if id == "" {
		return nil, err
	}
	all, e := s.List(ctx)
	if e != nil {
		return nil, e
	}
	var names []string
	for _, i := range all {
		if i.doc.Manifest == id {
			names = append(names, i.name)
			img = i
		}
	}
	if repo != "" && !inRepository(names, repo) {
		return nil, err
	}
	if img != nil {
		return img, nil
	}
	img, e = s.dangling(ctx, id)
	return img, fault.Wrap(op, ref, e)
}

// dangling opens an image by its own record.
func (s *Store) dangling(ctx context.Context, id digest.Digest) (*Image, error) {
	var doc imageDoc
	if err := s.readJSON(ctx, &doc, "images", imageFile(id)); err != nil {
		return nil, err
	}
	return s.open(ctx, nameDoc{Version: 2, Manifest: id, Image: &doc})
}

// digests lists the digests of all images that have a record.
func (s *Store) digests(ctx context.Context) ([]digest.Digest, error) {
	es, err := s.files.List(ctx, s.path("images"))
	if errors.Is(err, vic.ErrNotFound) {
		return nil, nil
	}
	var out []digest.Digest
	for _, e := range es {
		d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(e.Name, ".json"))
		if !e.Dir && strings.HasSuffix(e.Name, ".json") && d.Validate() == nil {
			out = append(out, d)
		}
	}
	return out, err
}

// match finds the digest that a name means: none, if it is not of that form or
// there is no such image. repo is not empty where the name asks for a repository.
func match(name string, ids []digest.Digest) (id digest.Digest, repo string, err error) {
	if r, d, ok := strings.Cut(name, "@"); ok {
		repo, name = r, d
	}
	hex, whole := strings.CutPrefix(name, "sha256:")
	if repo != "" && !whole || len(hex) < minShortID || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", "", nil
	}
	for _, d := range ids {
		if !strings.HasPrefix(d.Encoded(), hex) || d.Algorithm() != digest.SHA256 {
			continue
		}
		if id != "" {
			return "", "", fault.Of(vic.ErrInvalid, "several images begin with %s", hex)
		}
		id = d
	}
	return id, repo, nil
}

// inRepository tells whether one of the names is of a repository.
func inRepository(names []string, repo string) bool {
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, repo); ok && (strings.HasPrefix(rest, "@") || strings.HasPrefix(rest, ":") && !strings.Contains(rest, "/")) {
			return true
		}
	}
	return false
}

// Dangling returns the images that no name stands for, the newest first: those
// whose name a later pull gave to another image, and those that were forced to
// give it up.
func (s *Store) Dangling(ctx context.Context) ([]*Image, error) {
	const op = "list images"
	// Names after images: one that a pull writes meanwhile is found.
	ids, err := s.digests(ctx)
	if err != nil {
		return nil, fault.Wrap(op, s.ref(), err)
	}
	named, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	has := map[digest.Digest]bool{}
	for _, i := range named {
		has[i.doc.Manifest] = true
	}
	var out []*Image
	for _, id := range ids {
		if has[id] {
			continue
		}
		img, err := s.dangling(ctx, id)
		if errors.Is(err, vic.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fault.Wrap(op, s.ref(), err)
		}
		out = append(out, img)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].doc.Pulled.After(out[j].doc.Pulled) })
	return out, nil
}
