package treecmp

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Reference unpacks an image of an OCI layout with umoci, a program that
// shares no code with this project, into dir/rootfs; dir must not exist.
// The layout is "path" (of the tag "latest") or "path:tag".
//
// Root keeps owners, devices and extended attributes. umoci 0.4.7 reads
// gzip and plain layers with OCI media types only; a zstd or a Docker schema
// 2 image is an error, so the caller gives the same image in another form.
// Times before 1678 and after 2262 come out wrong.
//
// Where the image specification leaves a choice, umoci keeps a directory's
// modification time when a later layer changes only what is in it, and
// follows a parent that is a symlink, inside the root.
func Reference(ctx context.Context, layout, dir string) error {
	image := layout
	if _, err := os.Stat(layout); err == nil {
		image += ":latest"
	} else if at := strings.LastIndexByte(layout, ':'); at < 0 {
		return fmt.Errorf("layout: %w", err)
	} else if _, err := os.Stat(layout[:at]); err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("unpack to %s: %w", dir, os.ErrExist)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return run(ctx, "umoci", "unpack", "--image", image, dir)
}
