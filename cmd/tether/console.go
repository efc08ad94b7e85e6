//go:build linux && amd64

package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// newConsole logs short lines for people who look at the VM's serial console.
func newConsole(w io.Writer) *slog.Logger {
	return slog.New(lateHandler{sync.OnceValue(func() slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{
			Level: slog.LevelInfo,
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}).WithAttrs([]slog.Attr{slog.String("from", "tether")})
	})})
}

// A lateHandler is made when there is something to say: most starts have
// nothing to.
type lateHandler struct{ make func() slog.Handler }

// Enabled implements slog.Handler.
func (lateHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h lateHandler) Handle(ctx context.Context, r slog.Record) error { return h.make().Handle(ctx, r) }

// WithAttrs implements slog.Handler.
func (h lateHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return lateHandler{sync.OnceValue(func() slog.Handler { return h.make().WithAttrs(a) })}
}

// WithGroup implements slog.Handler.
func (h lateHandler) WithGroup(name string) slog.Handler {
	return lateHandler{sync.OnceValue(func() slog.Handler { return h.make().WithGroup(name) })}
}
