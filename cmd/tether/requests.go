//go:build linux && amd64

package main

import (
	"context"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// requestEvery is how often a guest looks whether a controller asks for something
// that has no other way to it.
const requestEvery = 2 * time.Second

// watchRequests takes the requests of controllers that do not get the serial line.
// Nothing tells a guest of a change of its guestinfo, so it looks; guests that have
// no such line need not.
func (m *machine) watchRequests(ctx context.Context) {
	t := time.NewTicker(requestEvery)
	defer t.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		doc, err := m.info.Get(ctx, tether.RequestKey)
		if err != nil || doc == "" || doc == last {
			continue
		}
		last = doc
		taken, err := m.server.Take(doc)
		if err != nil {
			// Of a former boot, or what a process in the container has written.
			m.log.Warn("a request is not taken", "reason", err)
		}
		if taken {
			m.log.Info("a request by guestinfo is taken")
			m.tell()
		}
	}
}
