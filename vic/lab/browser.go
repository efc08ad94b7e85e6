package lab

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// browserHandler answers the methods of HostDatastoreBrowser.
type browserHandler struct{ base }

func (h *browserHandler) SearchDatastoreTask(ctx *simulator.Context, req *types.SearchDatastore_Task) soap.HasFault {
	body := new(methods.SearchDatastore_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "searchDatastore", cancelable: true}, func(wctx context.Context, _ *task) (types.AnyType, types.BaseMethodFault) {
		r, fault := h.lab.search(wctx, req.DatastorePath, req.SearchSpec, false)
		if fault != nil {
			return nil, fault
		}
		return r[0], nil
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.SearchDatastore_TaskResponse{Returnval: ref}
	return body
}

func (h *browserHandler) SearchDatastoreSubFoldersTask(ctx *simulator.Context, req *types.SearchDatastoreSubFolders_Task) soap.HasFault {
	body := new(methods.SearchDatastoreSubFolders_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "searchDatastoreSubFolders", cancelable: true}, func(wctx context.Context, _ *task) (types.AnyType, types.BaseMethodFault) {
		r, fault := h.lab.search(wctx, req.DatastorePath, req.SearchSpec, true)
		if fault != nil {
			return nil, fault
		}
		return types.ArrayOfHostDatastoreBrowserSearchResults{HostDatastoreBrowserSearchResults: r}, nil
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.SearchDatastoreSubFolders_TaskResponse{Returnval: ref}
	return body
}

// search lists a directory and, where deep is set, those below it. Extents of
// disks are listed as vSphere lists them: not at all in a search for disks.
func (l *Lab) search(ctx context.Context, name string, spec *types.HostDatastoreBrowserSearchSpec, deep bool) ([]types.HostDatastoreBrowserSearchResults, types.BaseMethodFault) {
	p, fault := l.resolve(name)
	if fault != nil {
		return nil, fault
	}
	if spec == nil {
		spec = new(types.HostDatastoreBrowserSearchSpec)
	}
	for _, m := range spec.MatchPattern {
		if _, err := path.Match(m, ""); err != nil {
			return nil, invalidArgument("matchPattern", "%q is not a pattern", m)
		}
	}
	var out []types.HostDatastoreBrowserSearchResults
	todo := []location{p}
	for len(todo) > 0 {
		if ctx.Err() != nil {
			return nil, canceled()
		}
		dir := todo[0]
		todo = todo[1:]
		ents, err := fs.ReadDir(dir.root.FS(), dir.rel)
		if err != nil {
			if dir != p && errors.Is(err, fs.ErrNotExist) {
				continue // gone since its parent was listed
			}
			return nil, fileFault(dir.String(), err)
		}
		ref := dir.ref
		r := types.HostDatastoreBrowserSearchResults{Datastore: &ref, FolderPath: dir.String()}
		if dir.rel != "." {
			r.FolderPath += "/"
		}
		for _, e := range ents {
			if dir.rel == "." && e.Name() == hidden {
				continue
			}
			info, err := e.Info()
			if err != nil {
				continue
			}
			if wanted(info, spec) {
				r.File = append(r.File, fileInfo(info, spec))
			}
			if deep && e.IsDir() {
				todo = append(todo, location{dir.store, path.Join(dir.rel, e.Name())})
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func wanted(f fs.FileInfo, spec *types.HostDatastoreBrowserSearchSpec) bool {
	name := f.Name()
	if len(spec.MatchPattern) > 0 && !slices.ContainsFunc(spec.MatchPattern, func(m string) bool {
		ok, _ := path.Match(m, name)
		return ok
	}) {
		return false
	}
	if len(spec.Query) == 0 {
		return true
	}
	return slices.ContainsFunc(spec.Query, func(q types.BaseFileQuery) bool {
		ext := path.Ext(name)
		switch q.(type) {
		case *types.FileQuery:
			return true
		case *types.FolderFileQuery:
			return f.IsDir()
		case *types.VmDiskFileQuery:
			return ext == ".vmdk" && !isExtent(name)
		case *types.IsoImageFileQuery:
			return ext == ".iso"
		case *types.FloppyImageFileQuery:
			return ext == ".flp"
		case *types.VmConfigFileQuery:
			return ext == ".vmx"
		case *types.VmLogFileQuery:
			return ext == ".log"
		case *types.VmNvramFileQuery:
			return ext == ".nvram"
		}
		return false
	})
}

func isExtent(name string) bool {
	return strings.HasSuffix(name, "-flat.vmdk") || strings.HasSuffix(name, "-delta.vmdk")
}

func fileInfo(f fs.FileInfo, spec *types.HostDatastoreBrowserSearchSpec) types.BaseFileInfo {
	details := spec.Details
	if details == nil {
		details = new(types.FileQueryFlags)
	}
	info := types.FileInfo{Path: f.Name()}
	if details.FileSize {
		info.FileSize = f.Size()
	}
	if details.Modification {
		t := f.ModTime()
		info.Modification = &t
	}
	if details.FileOwner {
		info.Owner = "root"
	}
	if f.IsDir() {
		return &types.FolderFileInfo{FileInfo: info}
	}
	if !details.FileType {
		return &info
	}
	switch path.Ext(f.Name()) {
	case ".iso":
		return &types.IsoImageFileInfo{FileInfo: info}
	case ".flp":
		return &types.FloppyImageFileInfo{FileInfo: info}
	case ".log":
		return &types.VmLogFileInfo{FileInfo: info}
	case ".nvram":
		return &types.VmNvramFileInfo{FileInfo: info}
	case ".vmdk":
		if !isExtent(f.Name()) {
			return &types.VmDiskFileInfo{FileInfo: info}
		}
	case ".vmx":
		return &types.VmConfigFileInfo{FileInfo: info}
	}
	return &info
}
