package imagestore

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
)

// ImageUsage is the room that an image takes on the datastore. All sizes are in
// bytes, as the layers' records give them.
type ImageUsage struct {
	Digest digest.Digest `json:"digest"`
	// Names is empty for a dangling image.
	Names []string `json:"names,omitempty"`
	// Unique is what only this image needs, Shared what others need too.
	Unique int64 `json:"unique"`
	Shared int64 `json:"shared"`
	// Containers are the names of the VMs that were made from it.
	Containers []string `json:"containers,omitempty"`
}

// Bytes is all that the image needs.
func (u *ImageUsage) Bytes() int64 { return u.Unique + u.Shared }

// Usage is the room that a store takes.
type Usage struct {
	// Images by their first name, dangling ones last.
	Images []ImageUsage `json:"images"`
	// Layers counts the layers' disks, and Bytes is their size.
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
	// Reclaimable is what would be freed if all images were deleted that no
	// container was made from, and Unreferenced the part of it that no image
	// needs, which GC frees.
	Reclaimable  int64 `json:"reclaimable"`
	Unreferenced int64 `json:"unreferenced"`
}

// Usage tells what the images of the store take.
func (s *Store) Usage(ctx context.Context) (*Usage, error) {
	u, err := s.usage(ctx)
	return u, fault.Wrap("measure image store", s.ref(), err)
}

func (s *Store) usage(ctx context.Context) (*Usage, error) {
	st := &state{s: s}
	if err := s.loadRecords(ctx, st); err != nil {
		return nil, err
	}
	if err := s.loadLayers(ctx, st); err != nil {
		return nil, err
	}
	var err error
	if st.vms, err = s.vmUse(ctx); err != nil {
		return nil, err
	}
	u := &Usage{Images: []ImageUsage{}}
	users := map[string]int{}
	held := map[string]bool{}
	for d := range st.vms.dirs {
		st.reach(held, d)
	}
	needs := map[digest.Digest]map[string]bool{}
	for id, doc := range st.images {
		set := map[string]bool{}
		st.reach(set, st.ofImage(doc)...)
		needs[id] = set
		for d := range set {
			users[d]++
		}
		if len(st.containers(id)) > 0 {
			st.reach(held, st.ofImage(doc)...)
		}
	}
	for d, l := range st.layers {
		if l == nil || l.Dir != d {
			continue
		}
		n := l.bytes(d)
		u.Layers++
		u.Bytes += n
		if !held[d] {
			u.Reclaimable += n
			if users[d] == 0 {
				u.Unreferenced += n
			}
		}
	}
	for id, set := range needs {
		i := ImageUsage{Digest: id, Names: st.namesOf(id), Containers: slices.Clone(st.containers(id))}
		for d := range set {
			l := st.layers[d]
			if l == nil {
				continue
			}
			if users[d] == 1 {
				i.Unique += l.bytes(d)
			} else {
				i.Shared += l.bytes(d)
			}
		}
		slices.Sort(i.Containers)
		u.Images = append(u.Images, i)
	}
	slices.SortFunc(u.Images, func(a, b ImageUsage) int {
		if (len(a.Names) == 0) != (len(b.Names) == 0) {
			return len(b.Names) - len(a.Names)
		}
		if len(a.Names) > 0 {
			return strings.Compare(a.Names[0], b.Names[0])
		}
		return strings.Compare(a.Digest.String(), b.Digest.String())
	})
	return u, nil
}
