package lab

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// serveFolder gives access to files of a datastore, as vCenter does:
// /folder/PATH?dcPath=DATACENTER&dsName=DATASTORE with GET (with ranges), HEAD,
// PUT and DELETE.
func (l *Lab) serveFolder(w http.ResponseWriter, r *http.Request) {
	l.count.add(func(c *Counters) { c.Files[r.Method]++ })
	if !l.authenticated(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "log in first: session cookie or basic authentication", http.StatusUnauthorized)
		return
	}
	q := r.URL.Query()
	if dc := strings.Trim(q.Get("dcPath"), "/"); dc != "" && dc != datacenterName {
		http.Error(w, "there is no such datacenter", http.StatusNotFound)
		return
	}
	s := l.stores[q.Get("dsName")]
	if s == nil {
		http.Error(w, "there is no such datastore", http.StatusNotFound)
		return
	}
	raw, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/folder/"))
	if err == nil {
		raw, err = cleanPath(raw)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p := location{s, raw}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		serveFile(w, r, p)
	case http.MethodPut:
		l.putFile(w, r, p)
	case http.MethodDelete:
		l.removeFile(w, p)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
		http.Error(w, "GET, HEAD, PUT and DELETE only", http.StatusMethodNotAllowed)
	}
}

func serveFile(w http.ResponseWriter, r *http.Request, p location) {
	f, err := p.root.Open(p.rel)
	if err != nil {
		httpError(w, err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		httpError(w, err)
		return
	}
	if !st.Mode().IsRegular() {
		http.Error(w, "not a file: directories are listed by the datastore browser", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", st.ModTime(), f)
}

// putFile takes an upload to a hidden name and shows it when it is whole.
func (l *Lab) putFile(w http.ResponseWriter, r *http.Request, p location) {
	if r.Header.Get("Content-Range") != "" {
		http.Error(w, "Content-Range: only whole files can be put", http.StatusBadRequest)
		return
	}
	if st, err := p.root.Stat(p.parent().rel); err != nil || !st.IsDir() {
		http.Error(w, "the parent directory does not exist", http.StatusNotFound)
		return
	}
	body := bufio.NewReader(r.Body)
	if head, _ := body.Peek(32); p.native && vmdk.Kind(head) == vmdk.TypeVMFSSparse {
		http.Error(w, "this datastore takes no vmfsSparse extents", http.StatusForbidden)
		return
	}
	tmp := location{p.store, path.Join(hidden, "put-"+randomText())}
	err := tmp.create(func(f *os.File) error {
		n, err := io.Copy(f, body)
		if err == nil && r.ContentLength >= 0 && n != r.ContentLength {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	if err != nil {
		httpError(w, err)
		return
	}
	defer func() { _ = tmp.root.Remove(tmp.rel) }()
	l.files.Lock()
	defer l.files.Unlock()
	status := http.StatusCreated
	if st, err := p.root.Lstat(p.rel); err == nil {
		status = http.StatusOK
		if st.IsDir() {
			http.Error(w, "a directory is there", http.StatusConflict)
			return
		}
	}
	if by := l.locks.holder(p); by != "" {
		http.Error(w, "the file is locked by the running VM "+by, http.StatusLocked)
		return
	}
	if err := p.root.Rename(tmp.rel, p.rel); err != nil {
		httpError(w, err)
		return
	}
	w.WriteHeader(status)
}

func (l *Lab) removeFile(w http.ResponseWriter, p location) {
	if st, err := p.root.Lstat(p.rel); err == nil && st.IsDir() {
		http.Error(w, "directories are deleted by FileManager", http.StatusForbidden)
		return
	}
	switch f := l.deleteFile(p.String()).(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case *types.FileNotFound:
		http.Error(w, words(f), http.StatusNotFound)
	case *types.FileLocked:
		http.Error(w, words(f), http.StatusLocked)
	default:
		http.Error(w, words(f), http.StatusInternalServerError)
	}
}

func httpError(w http.ResponseWriter, err error) {
	code, text := http.StatusInternalServerError, "the datastore failed"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code, text = http.StatusNotFound, "there is no such file"
	case errors.Is(err, syscall.ENOTDIR):
		code, text = http.StatusNotFound, "the path goes through a file"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code, text = http.StatusInsufficientStorage, "no space left on the datastore"
	case errors.Is(err, io.ErrUnexpectedEOF):
		code, text = http.StatusBadRequest, "the upload was cut off"
	}
	http.Error(w, text, code)
}
