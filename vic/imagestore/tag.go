package imagestore

import (
	"context"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Tag gives an image a further name. A name that is taken is moved. newName must
// end in a tag.
func (s *Store) Tag(ctx context.Context, name, newName string) error {
	const op = "tag"
	ref := vic.Ref{Kind: "image", Name: name}
	if err := checkTagged(newName); err != nil {
		return fault.Wrap(op, ref, err)
	}
	img, err := s.Image(ctx, name)
	if err != nil {
		return fault.Wrap(op, ref, err)
	}
	_, err = s.name(ctx, newName, &img.doc)
	return fault.Wrap(op, ref, err)
}

// checkTagged refuses names that do not end in a tag: what we make has a digest
// that nobody knows beforehand.
func checkTagged(name string) error {
	ref, err := reference(name)
	if err != nil {
		return err
	}
	if strings.Contains(name, "@") || ref == "" || repositoryOf(name) == "" {
		return fault.Of(vic.ErrInvalid, "name %q must be REPOSITORY:TAG", name)
	}
	return nil
}
