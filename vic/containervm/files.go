package containervm

import (
	"context"
	"io"

	"github.com/vicsdk/vic-go/vic/tether"
)

// LstatFile describes a file of a running container; a symlink itself, unless the
// path ends in "/.". What does not exist is vic.ErrNotFound; a container that does
// not run is vic.ErrState, and its files are read from its RestingDisk.
func (v *VM) LstatFile(ctx context.Context, path string) (i tether.FileInfo, err error) {
	err = v.ask(ctx, "stat file of container", func(t *tether.Client) error {
		i, err = t.LstatFile(ctx, path)
		return err
	})
	return i, err
}

// TarOut writes a file or directory of a running container as a tar (see
// tether.Client.TarOut).
func (v *VM) TarOut(ctx context.Context, path string, w io.Writer, started func(tether.FileInfo) error) error {
	return v.ask(ctx, "read files of container", func(t *tether.Client) error { return t.TarOut(ctx, path, w, started) })
}

// TarIn unpacks a tar into a directory of a running container (see
// tether.Client.TarIn): what was unpacked before an error stays.
func (v *VM) TarIn(ctx context.Context, dir string, r io.Reader, o tether.TarInOptions) error {
	return v.ask(ctx, "write files of container", func(t *tether.Client) error { return t.TarIn(ctx, dir, r, o) })
}
