package lab

import (
	"strings"
	"sync"
)

// locks are the files that running VMs use, which are known by their references,
// and told by their names. A file has one writer or any number of readers.
type locks struct {
	mu    sync.Mutex
	files map[string]*lockState // by location.String()
	names map[string]string     // of VMs, by reference
}

type lockState struct {
	writer  string         // the VM that writes the file
	readers map[string]int // the VMs that read it
}

// acquire locks files for a VM, all or none. It returns the file and the name of
// the holder that stand in the way.
func (l *locks) acquire(vm, name string, write, read []location) (file, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range write {
		if s := l.files[p.String()]; s != nil {
			return p.String(), l.names[s.anyone()]
		}
	}
	for _, p := range read {
		if s := l.files[p.String()]; s != nil && s.writer != "" {
			return p.String(), l.names[s.writer]
		}
	}
	if l.files == nil {
		l.files, l.names = map[string]*lockState{}, map[string]string{}
	}
	l.names[vm] = name
	for _, p := range write {
		l.files[p.String()] = &lockState{writer: vm}
	}
	for _, p := range read {
		s := l.files[p.String()]
		if s == nil {
			s = &lockState{readers: map[string]int{}}
			l.files[p.String()] = s
		}
		if s.readers == nil { // a chain that names one file as child and as parent
			s.readers = map[string]int{}
		}
		s.readers[vm]++
	}
	return "", ""
}

// release undoes an acquire with the same arguments.
func (l *locks) release(vm string, write, read []location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range write {
		if s := l.files[p.String()]; s != nil && s.writer == vm {
			delete(l.files, p.String())
		}
	}
	for _, p := range read {
		s := l.files[p.String()]
		if s == nil || s.readers[vm] == 0 {
			continue
		}
		if s.readers[vm]--; s.readers[vm] == 0 {
			delete(s.readers, vm)
		}
		if len(s.readers) == 0 && s.writer == "" {
			delete(l.files, p.String())
		}
	}
}

// rename notes a VM's new name.
func (l *locks) rename(vm, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names[vm] != "" {
		l.names[vm] = name
	}
}

// forget drops the name of a VM that is gone.
func (l *locks) forget(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.names, vm)
}

func (s *lockState) anyone() string {
	if s.writer != "" {
		return s.writer
	}
	for vm := range s.readers {
		return vm
	}
	return ""
}

// writer names the VM that writes p, if any.
func (l *locks) writer(p location) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.files[p.String()]; s != nil {
		return l.names[s.writer]
	}
	return ""
}

// other names a VM that uses the file p and is not the one of a reference.
func (l *locks) other(p location, vm string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.files[p.String()]; s != nil && (s.writer != vm || len(s.readers) > 0) {
		return l.names[s.anyone()]
	}
	return ""
}

// holder names a VM that uses p or, where p is a directory, a file below it.
func (l *locks) holder(p location) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	self := p.String()
	if s := l.files[self]; s != nil {
		return l.names[s.anyone()]
	}
	below := self + "/"
	if p.rel == "." {
		below = "[" + p.name + "] "
	}
	for f, s := range l.files {
		if strings.HasPrefix(f, below) {
			return l.names[s.anyone()]
		}
	}
	return ""
}
