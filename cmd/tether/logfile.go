//go:build linux && amd64

package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
)

// A logFile is the log on the disk. It is made when the first output is
// written: to make a file takes much of the filesystem's code, and the output
// has gone to those who are attached by then.
type logFile struct {
	name string
	mu   sync.Mutex
	file *os.File // nil as long as there is none
}

// openLogFile opens the log of former boots, where there is one.
func openLogFile(name string) (*logFile, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return &logFile{name: name}, nil
	}
	if err != nil {
		return nil, err
	}
	return &logFile{name: name, file: f}, nil
}

func (l *logFile) open(create bool) (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil && create {
		f, err := os.OpenFile(l.name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		l.file = f
	}
	return l.file, nil
}

// Write implements tether.LogFile.
func (l *logFile) Write(p []byte) (int, error) {
	f, err := l.open(true)
	if err != nil {
		return 0, err
	}
	return f.Write(p)
}

// ReadAt implements tether.LogFile.
func (l *logFile) ReadAt(p []byte, off int64) (int, error) {
	f, _ := l.open(false)
	if f == nil {
		return 0, io.EOF
	}
	return f.ReadAt(p, off)
}

// Sync implements tether.LogFile.
func (l *logFile) Sync() error {
	f, _ := l.open(false)
	if f == nil {
		return nil
	}
	return f.Sync()
}

// Truncate implements tether.LogFile.
func (l *logFile) Truncate(size int64) error {
	f, _ := l.open(false)
	if f == nil {
		return nil
	}
	return f.Truncate(size)
}

// Close closes the file, where there is one.
func (l *logFile) Close() error {
	f, _ := l.open(false)
	if f == nil {
		return nil
	}
	return f.Close()
}
