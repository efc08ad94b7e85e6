//go:build linux && amd64

package main

import (
	"io"
	"log/slog"
)

// newConsole logs short lines for people who look at the VM's serial console.
func newConsole(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})).With("from", "tether")
}
