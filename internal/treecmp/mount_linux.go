package treecmp

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"time"
)

// Mount mounts the raw image of an ext4 filesystem read-only at the existing
// directory dir, without replaying its journal, by "mount -o
// loop,ro,noload". It needs root. The caller must call unmount before it
// removes dir; unmount may be called again, which does nothing.
func Mount(ctx context.Context, raw, dir string) (unmount func() error, err error) {
	if err := run(ctx, "mount", "-t", "ext4", "-o", "loop,ro,noload", "--", raw, dir); err != nil {
		return nil, err
	}
	done := false
	return func() error {
		if done {
			return nil
		}
		// The caller's context has often ended by the time it cleans up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := run(ctx, "umount", "--", dir); err != nil {
			return err
		}
		done = true
		return nil
	}, nil
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
