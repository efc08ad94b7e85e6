package tether_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic/tether"
)

// mounts is a Mounter that notes what it is asked for.
type mounts struct {
	asked []string
	err   error
	size  tether.VolumeSize
}

func (m *mounts) Mount(_ context.Context, x tether.Mount) error {
	m.asked = append(m.asked, "mount "+x.Target)
	return m.err
}

func (m *mounts) Unmount(_ context.Context, target string) error {
	m.asked = append(m.asked, "unmount "+target)
	return m.err
}

func (m *mounts) Grow(_ context.Context, unit int) (tether.VolumeSize, error) {
	m.asked = append(m.asked, fmt.Sprint("grow ", unit))
	return m.size, m.err
}

func TestMountsOverTheProtocol(t *testing.T) {
	m := &mounts{size: tether.VolumeSize{Disk: 1 << 30, Filesystem: 1 << 29}}
	g := newGuestWith(t, func(c *tether.Config) { c.Root.Unit = 3 }, func(c *tether.ServerConfig) { c.Mounter = m })
	ctx := testContext(t)
	c := g.dial(ctx)
	disk := func(target string, unit int) tether.Mount {
		return tether.Mount{Target: target, Volume: &tether.Volume{Name: "v", Unit: unit}}
	}
	for name, test := range map[string]struct {
		do   func() error
		want string // in the error
	}{
		"no target":              {func() error { return c.Mount(ctx, disk("", 1)) }, "mount.target"},
		"a relative target":      {func() error { return c.Mount(ctx, disk("x", 1)) }, "mount.target"},
		"a target that climbs":   {func() error { return c.Mount(ctx, disk("/x/../../etc", 1)) }, "mount.target"},
		"the root":               {func() error { return c.Mount(ctx, disk("/", 1)) }, "mount.target"},
		"the kernel's":           {func() error { return c.Mount(ctx, disk("/proc/self", 1)) }, "mount.target"},
		"a NUL":                  {func() error { return c.Mount(ctx, disk("/x\x00", 1)) }, "mount.target"},
		"no unit":                {func() error { return c.Mount(ctx, disk("/x", 0)) }, "mount.volume.unit"},
		"a negative unit":        {func() error { return c.Mount(ctx, disk("/x", -1)) }, "mount.volume.unit"},
		"the controller's unit":  {func() error { return c.Mount(ctx, disk("/x", 7)) }, "mount.volume.unit"},
		"a unit beyond the last": {func() error { return c.Mount(ctx, disk("/x", 16)) }, "mount.volume.unit"},
		"the root's unit":        {func() error { return c.Mount(ctx, disk("/x", 3)) }, "mount.volume.unit: 3 is the root's"},
		"nothing to mount":       {func() error { return c.Mount(ctx, tether.Mount{Target: "/x"}) }, "mount.volume"},
		"a bad server": {func() error {
			return c.Mount(ctx, tether.Mount{Target: "/x", Volume: &tether.Volume{NFS: &tether.NFS{Server: "a,b", Path: "/"}}})
		}, "mount.volume.nfs.server"},
		"a subpath that climbs": {func() error {
			x := disk("/x", 1)
			x.Volume.Subpath = "../state"
			return c.Mount(ctx, x)
		}, "mount.volume.subpath"},
		"an unmount of the root":     {func() error { return c.Unmount(ctx, "/") }, "target"},
		"an unmount that climbs":     {func() error { return c.Unmount(ctx, "/x/..") }, "target"},
		"growth of the controller's": {func() error { _, err := c.GrowVolume(ctx, 7); return err }, "unit"},
		"growth beyond the last":     {func() error { _, err := c.GrowVolume(ctx, 1<<40); return err }, "unit"},
		"growth of the root":         {func() error { _, err := c.GrowVolume(ctx, 0); return err }, "unit"},
	} {
		if err := test.do(); !errors.Is(err, tether.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if len(m.asked) > 0 {
		t.Errorf("what is invalid came through: %v", m.asked)
	}
	if err := c.Mount(ctx, disk("/x", 1)); err != nil {
		t.Error(err)
	}
	if err := c.Mount(ctx, tether.Mount{Target: "/t", Tmpfs: &tether.Tmpfs{Bytes: 1}}); err != nil {
		t.Error(err)
	}
	if s, err := c.GrowVolume(ctx, 15); err != nil || s != m.size {
		t.Errorf("%+v, %v", s, err)
	}
	m.size.Filesystem = m.size.Disk + 1
	if _, err := c.GrowVolume(ctx, 1); err == nil {
		t.Error("a filesystem that is larger than its disk is believed")
	}
	m.err = fmt.Errorf("%w by process 5", tether.ErrBusy)
	if err := c.Unmount(ctx, "/x"); !errors.Is(err, tether.ErrBusy) || !strings.Contains(err.Error(), "process 5") {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"mount /x", "mount /t", "grow 15", "grow 1", "unmount /x"}, m.asked); d != "" {
		t.Error(d)
	}
}

func TestMountsOfAGuestThatCannot(t *testing.T) {
	ctx := testContext(t)
	c := newGuest(t, nil).dial(ctx)
	for name, err := range map[string]error{
		"mount":   c.Mount(ctx, tether.Mount{Target: "/t", Tmpfs: &tether.Tmpfs{}}),
		"unmount": c.Unmount(ctx, "/t"),
	} {
		if !errors.Is(err, tether.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
