package lab

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// fileHandler answers the methods of FileManager.
type fileHandler struct{ base }

// withFiles runs f while nothing else changes files: what f checks stays so
// until it has acted on it.
func (l *Lab) withFiles(f func() types.BaseMethodFault) types.BaseMethodFault {
	l.files.Lock()
	defer l.files.Unlock()
	return f()
}

func isTrue(b *bool) bool { return b != nil && *b }

func (h *fileHandler) MakeDirectory(_ *simulator.Context, req *types.MakeDirectory) soap.HasFault {
	body := new(methods.MakeDirectoryBody)
	p, fault := h.lab.resolve(req.Name)
	if fault == nil {
		if isTrue(req.CreateParentDirectories) {
			// MkdirAll is content with what exists; vSphere is not.
			err := p.root.MkdirAll(p.parent().rel, 0o700)
			if err != nil {
				fault = fileFault(req.Name, err)
			}
		}
		if fault == nil {
			if err := p.root.Mkdir(p.rel, 0o700); err != nil {
				fault = fileFault(req.Name, err)
			}
		}
	}
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.MakeDirectoryResponse)
	return body
}

func (h *fileHandler) DeleteDatastoreFileTask(ctx *simulator.Context, req *types.DeleteDatastoreFile_Task) soap.HasFault {
	body := new(methods.DeleteDatastoreFile_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "deleteDatastoreFile"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		return nil, h.lab.deleteFile(req.Name)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.DeleteDatastoreFile_TaskResponse{Returnval: ref}
	return body
}

// deleteFile removes a file or a directory with all it has. A directory first
// gets a hidden name, so that readers see all of it or nothing.
func (l *Lab) deleteFile(name string) types.BaseMethodFault {
	p, fault := l.resolve(name)
	if fault != nil {
		return fault
	}
	if p.rel == "." {
		return invalidArgument("name", "%s is a whole datastore", p)
	}
	if !p.exists() {
		return fileNotFound(name)
	}
	l.files.Lock()
	defer l.files.Unlock()
	if by := l.locks.holder(p); by != "" {
		return fileLocked(name, by)
	}
	gone := path.Join(hidden, "deleted-"+randomText())
	if err := p.root.Rename(p.rel, gone); err != nil {
		return fileFault(name, err)
	}
	if err := p.root.RemoveAll(gone); err != nil {
		return fileFault(name, err)
	}
	return nil
}

func (h *fileHandler) MoveDatastoreFileTask(ctx *simulator.Context, req *types.MoveDatastoreFile_Task) soap.HasFault {
	body := new(methods.MoveDatastoreFile_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "moveDatastoreFile", cancelable: true}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		return nil, h.lab.moveFile(wctx, req.SourceName, req.DestinationName, isTrue(req.Force), t.progress)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.MoveDatastoreFile_TaskResponse{Returnval: ref}
	return body
}

// moveFile renames within a datastore, which is atomic for directories too, and
// copies between datastores.
func (l *Lab) moveFile(ctx context.Context, from, to string, force bool, progress func(int32)) types.BaseMethodFault {
	src, dst, fault := l.ends(from, to)
	if fault != nil {
		return fault
	}
	if src.store != dst.store {
		if fault := l.copyFile(ctx, from, to, force, progress); fault != nil {
			return fault
		}
		return l.deleteFile(from)
	}
	l.files.Lock()
	defer l.files.Unlock()
	if by := l.locks.holder(src); by != "" {
		return fileLocked(from, by)
	}
	if fault := l.clear(dst, force); fault != nil {
		return fault
	}
	if err := src.root.Rename(src.rel, dst.rel); err != nil {
		if !dst.parent().exists() {
			return fileNotFound(dst.parent().String())
		}
		return fileFault(from, err)
	}
	return nil
}

// ends resolves the two ends of a copy or move and sees that the source exists.
func (l *Lab) ends(from, to string) (src, dst location, fault types.BaseMethodFault) {
	if src, fault = l.resolve(from); fault != nil {
		return
	}
	if dst, fault = l.resolve(to); fault != nil {
		return
	}
	if src.rel == "." || dst.rel == "." {
		fault = invalidArgument("name", "a whole datastore cannot be moved, copied or replaced")
	} else if !src.exists() {
		fault = fileNotFound(from)
	}
	return
}

// clear makes way for a file at p: what is there goes if force allows it.
// l.files is held.
func (l *Lab) clear(p location, force bool) types.BaseMethodFault {
	if !p.exists() {
		return nil
	}
	if !force {
		return fileExists(p.String())
	}
	if by := l.locks.holder(p); by != "" {
		return fileLocked(p.String(), by)
	}
	if err := p.root.RemoveAll(p.rel); err != nil {
		return fileFault(p.String(), err)
	}
	return nil
}

func (h *fileHandler) CopyDatastoreFileTask(ctx *simulator.Context, req *types.CopyDatastoreFile_Task) soap.HasFault {
	body := new(methods.CopyDatastoreFile_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "copyDatastoreFile", cancelable: true}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		return nil, h.lab.copyFile(wctx, req.SourceName, req.DestinationName, isTrue(req.Force), t.progress)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CopyDatastoreFile_TaskResponse{Returnval: ref}
	return body
}

// copyFile copies a file or directory. The copy appears whole, by one rename.
func (l *Lab) copyFile(ctx context.Context, from, to string, force bool, progress func(int32)) types.BaseMethodFault {
	src, dst, fault := l.ends(from, to)
	if fault != nil {
		return fault
	}
	if by := l.locks.writer(src); by != "" {
		return fileLocked(from, by)
	}
	if dst.exists() && !force {
		return fileExists(to)
	}
	tmp := location{dst.store, path.Join(hidden, "copy-"+randomText())}
	defer func() { _ = tmp.root.RemoveAll(tmp.rel) }()
	if err := copyTree(ctx, src, tmp, progress); err != nil {
		if ctx.Err() != nil {
			return canceled()
		}
		return fileFault(from, err)
	}
	l.files.Lock()
	defer l.files.Unlock()
	if fault := l.clear(dst, force); fault != nil {
		return fault
	}
	if err := dst.root.Rename(tmp.rel, dst.rel); err != nil {
		return fileFault(to, err)
	}
	return nil
}

// copyTree copies a file, with its holes, or a directory.
func copyTree(ctx context.Context, src, dst location, progress func(int32)) error {
	st, err := src.root.Lstat(src.rel)
	if err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular():
		return copyRegular(ctx, src, dst, progress)
	case !st.IsDir():
		return fs.ErrInvalid
	}
	if err := dst.root.Mkdir(dst.rel, 0o700); err != nil {
		return err
	}
	d, err := src.root.Open(src.rel)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, n := range names {
		if err := copyTree(ctx, location{src.store, path.Join(src.rel, n)}, location{dst.store, path.Join(dst.rel, n)}, nil); err != nil {
			return err
		}
	}
	return nil
}

func copyRegular(ctx context.Context, src, dst location, progress func(int32)) error {
	in, err := src.root.Open(src.rel)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	return dst.create(func(out *os.File) error {
		if err := out.Truncate(st.Size()); err != nil {
			return err
		}
		buf := make([]byte, 1<<20)
		var done int64
		shown := int32(0)
		return eachExtent(in, st.Size(), func(off, n int64) error {
			for n > 0 {
				if err := ctx.Err(); err != nil {
					return err
				}
				k, err := in.ReadAt(buf[:min(int64(len(buf)), n)], off)
				if err != nil && !(errors.Is(err, io.EOF) && k > 0) {
					return err
				}
				if _, err := out.WriteAt(buf[:k], off); err != nil {
					return err
				}
				off, n, done = off+int64(k), n-int64(k), done+int64(k)
				if p := int32(done * 100 / max(st.Size(), 1)); progress != nil && p > shown {
					shown = p
					progress(p)
				}
			}
			return nil
		})
	})
}

// eachExtent calls f for each run of a file that is no hole.
func eachExtent(f *os.File, size int64, fn func(off, n int64) error) error {
	const seekData, seekHole = 3, 4
	for off := int64(0); off < size; {
		start, err := f.Seek(off, seekData)
		if err != nil { // ENXIO: only a hole is left
			return nil
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if err := fn(start, end-start); err != nil {
			return err
		}
		off = end
	}
	return nil
}
