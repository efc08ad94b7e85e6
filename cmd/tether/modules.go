//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/vicsdk/vic-go/bootiso/modlist"
	"golang.org/x/sys/unix"
)

// readModules reads the list of the initial RAM disk. A kernel with everything
// built in has none.
func readModules() ([]modlist.Module, error) {
	f, err := os.Open(modlist.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return modlist.Parse(f)
}

// loadModules loads the early or the late modules, each as soon as those that
// it needs are there.
func loadModules(list []modlist.Module, late bool, load func(modlist.Module) error) error {
	done := make(map[string]chan struct{}, len(list))
	for _, m := range list {
		if m.Late == late {
			done[m.File] = make(chan struct{})
		}
	}
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		all error
	)
	for _, m := range list {
		if m.Late != late {
			continue
		}
		wg.Go(func() {
			defer close(done[m.File])
			for _, need := range m.Needs {
				if c := done[need]; c != nil {
					<-c
				}
			}
			if err := load(m); err != nil {
				mu.Lock()
				all = errors.Join(all, fmt.Errorf("module %s: %w", filepath.Base(m.File), err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// loadModule puts a module into the kernel; one that is in it already is fine.
func loadModule(m modlist.Module) error {
	f, err := os.Open(filepath.Join(filepath.Dir(modlist.Path), m.File))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), m.Parameters, 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
