package vsphere

import (
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

func ref(kind, id string) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: kind, Value: id}
}

// Hasten shortens a session's times, for tests of failures.
func Hasten(s *Session) {
	t := &s.Watcher.timing
	t.poll, t.slack = time.Second, 200*time.Millisecond
	t.rest, t.linger, t.grace = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	t.nudge, t.retry, t.tries = 200*time.Millisecond, time.Millisecond, 5
}

// Relax undoes Hasten.
func Relax(s *Session) { s.Watcher.timing = defaultTiming() }

// Entities are an inventory for tests of Choose.
type Entities = entities

// NewEntity makes an entity of a parent.
func NewEntity(name string, e Entities, kind, id, parent string) {
	p := ref("Folder", parent)
	if parent == "" {
		p.Type = ""
	}
	e[ref(kind, id)] = &entity{name: name, parent: p}
}

// Choose finds a datacenter and gives its inventory path.
func Choose(e Entities, name string) (string, error) {
	_, p, err := e.choose(name)
	return p, err
}

// NewRemoteFile makes a file of what read gives.
func NewRemoteFile(size int64, read func(off, n int64) ([]byte, error)) *RemoteFile {
	return &RemoteFile{read: read, size: size, max: maxChunks, chunks: map[int64][]byte{}, runs: map[int64]int64{}}
}
