package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// readLogs is Logs for as long as one connection lasts; see brokenLog.
func (v *VM) readLogs(ctx context.Context, o tether.LogOptions, f func(tether.LogEntry) error) error {
	const op = "read logs of container"
	info, err := v.Inspect(ctx)
	if err != nil {
		return err
	}
	if !info.On() {
		if info.State == Created {
			return nil
		}
		return fault.Wrap(op, v.Ref(), v.diskLogs(ctx, o, f))
	}
	t, err := v.dial(ctx, info)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	defer t.Close()
	r, err := t.Logs(ctx, o)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	defer r.Close()
	var told error
	err = each(r, func(e tether.LogEntry) error {
		told = f(e)
		return told
	})
	if err != nil && told == nil {
		err = &brokenLog{err}
	}
	return fault.Wrap(op, v.Ref(), err)
}

func each(r *tether.LogReader, f func(tether.LogEntry) error) error {
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(e)
		}
		if err != nil {
			return err
		}
	}
}

// diskLogs reads the log of a container that is off.
func (v *VM) diskLogs(ctx context.Context, o tether.LogOptions, f func(tether.LogEntry) error) error {
	d, err := v.openDisk(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	root, err := ext4.Open(d, d.Size())
	if err != nil {
		return fmt.Errorf("the container's filesystem: %w", err)
	}
	dir := path.Dir(tether.LogPath)
	entries, err := root.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("%s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	var files []*io.SectionReader
	for _, name := range tether.LogNames(names) {
		l, err := root.OpenFile(path.Join(dir, name))
		if err != nil {
			return fmt.Errorf("%s/%s: %w", dir, name, err)
		}
		files = append(files, io.NewSectionReader(l, 0, l.Info().Size))
	}
	o.Follow = false
	log, size := tether.JoinLog(files)
	r, err := tether.SelectLog(log, size, o)
	if err != nil {
		return err
	}
	defer r.Close()
	return each(r, f)
}

// openDisk opens the root disk's chain for reading.
func (v *VM) openDisk(ctx context.Context) (*chain.Disk, error) {
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"config.hardware.device"}, &m); err != nil {
		return nil, err
	}
	root, err := rootDisk(&m)
	if err != nil {
		return nil, err
	}
	ds, p, err := vsphere.SplitPath(root.Path)
	if err != nil {
		return nil, err
	}
	// Parents may be on other datastores, where they are named by their whole path.
	return chain.Open(ctx, volumes+ds+"/"+p, func(ctx context.Context, p string) (chain.File, error) {
		rest, ok := strings.CutPrefix(p, volumes)
		ds, rel, _ := strings.Cut(rest, "/")
		if !ok {
			return nil, fault.Of(vic.ErrInvalid, "%q is on no datastore", p)
		}
		files, err := v.filesOn(ctx, ds)
		if err != nil {
			return nil, err
		}
		return files.OpenFile(ctx, rel)
	})
}

// volumes is where ESXi has its datastores.
const volumes = "/vmfs/volumes/"
