package imagestore

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A HistoryEntry is a step of an image's making.
type HistoryEntry struct {
	// Created is zero where it is not known.
	Created   time.Time
	CreatedBy string
	Author    string
	Comment   string
	// DiffID is the step's layer's; empty for a step that made none.
	DiffID digest.Digest
	// Bytes is the layer's size as a tar, or -1 where a release that did not
	// note it pulled the layer. Packed is its size as the manifest has it.
	Bytes, Packed int64
}

// History tells how an image was made, the latest step first, as its
// configuration says (OCI image specification, config.md, "history"). Layers
// that the configuration says nothing of have entries without a text.
func (s *Store) History(ctx context.Context, i *Image) ([]HistoryEntry, error) {
	tars, err := s.layersOf(ctx, &i.doc)
	if err != nil {
		return nil, fault.Wrap("read history of", vic.Ref{Kind: "image", Name: i.name}, err)
	}
	var out []HistoryEntry
	n := 0
	layer := func(e HistoryEntry) HistoryEntry {
		e.DiffID, e.Bytes, e.Packed = tars[n].DiffID, tars[n].Tar, i.doc.Layers[n].Size
		if tars[n].Record == 0 {
			e.Bytes = -1
		}
		n++
		return e
	}
	for _, h := range i.doc.Config.History {
		e := HistoryEntry{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer && n < len(tars) {
			e = layer(e)
		}
		out = append(out, e)
	}
	for n < len(tars) {
		out = append(out, layer(HistoryEntry{}))
	}
	slices.Reverse(out)
	return out, nil
}
