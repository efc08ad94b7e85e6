package main

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/vicsdk/vic-go/vic"
)

// progress shows events: as bars on a terminal, elsewhere as a line for each
// thing that is done.
type progress struct {
	mu    sync.Mutex
	w     *os.File
	bars  *mpb.Progress
	known map[string]*bar
}

type bar struct {
	b     *mpb.Bar
	phase string
}

func newProgress(w *os.File) *progress {
	p := &progress{w: w, known: map[string]*bar{}}
	if term.IsTerminal(int(w.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(60))
	}
	return p
}

func (p *progress) event(e vic.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := strings.TrimPrefix(e.ID, "sha256:")
	id = id[:min(12, len(id))]
	if p.bars == nil {
		if final(e) {
			fmt.Fprintf(p.w, "%s %s: %s\n", e.Op, id, e.Phase)
		}
		return
	}
	b := p.known[e.ID]
	if b == nil {
		b = &bar{}
		b.b = p.bars.AddBar(0,
			mpb.PrependDecorators(decor.Name(id+" "), decor.Any(func(decor.Statistics) string { return fmt.Sprintf("%-9s", b.phase) })),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
		p.known[e.ID] = b
	}
	b.phase = e.Phase
	if e.Total > 0 {
		b.b.SetTotal(e.Total, false)
		b.b.SetCurrent(e.Done)
	}
	if final(e) {
		b.b.SetTotal(-1, true)
	}
}

// final says of an event that nothing follows about its thing.
func final(e vic.Event) bool { return e.Phase == "done" || e.Phase == "exists" || e.Phase == "mounted" }

// close ends the display; events after it show nothing.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		return
	}
	for _, b := range p.known {
		b.b.Abort(false)
	}
	p.bars.Wait()
	p.bars, p.known = nil, map[string]*bar{}
	p.w, _ = os.Open(os.DevNull)
}
