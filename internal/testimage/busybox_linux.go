package testimage

import (
	"archive/tar"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Busybox returns the OCI layout of an image of one layer: Debian's static
// busybox with a name for each of its applets, and the few files that a
// shell wants. It has the tag "latest" and runs "sh". The layout lies in the
// cache directory dir, or if that is empty in [CacheDir]'s "images"; it is
// shared and must not be changed.
//
// Building it needs a Debian machine, but not root.
func Busybox(ctx context.Context, dir string) (layoutPath string, err error) {
	return cached(ctx, dir, recipe{name: "busybox", code: []string{"busybox_linux.go"}}, func(ctx context.Context, work, out string) error {
		l, err := busyboxLayer(ctx, work)
		if err != nil {
			return err
		}
		im := Image{
			Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}},
			Steps:  []Step{{l, "busybox and its links"}},
		}
		_, err = im.Write(ctx, out, nil)
		return err
	})
}

// busyboxLayer returns a root directory with busybox in it.
func busyboxLayer(ctx context.Context, work string) (*Layer, error) {
	l := NewLayer()
	l.AddDir(".", nil)
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/log"} {
		l.AddDir(d, nil)
	}
	l.AddDir("root", &Meta{Mode: 0o700})
	l.AddDir("tmp", &Meta{Mode: 0o1777})
	l.AddFile("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"), nil)
	l.AddFile("etc/group", []byte("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"), nil)
	const program = "bin/busybox"
	deb, err := fetchDeb(ctx, work, "busybox-static")
	if err != nil {
		return nil, err
	}
	err = addDeb(ctx, l, deb, func(h *tar.Header) bool {
		return path.Clean(h.Name) == program
	})
	if err != nil {
		return nil, err
	}
	if _, ok := l.byName[program]; !ok {
		return nil, fmt.Errorf("package busybox-static has no %s", program)
	}
	// busybox itself knows the places of its applets. dpkg-deb writes the
	// program, as one that this process wrote could still be open for
	// writing in a child that another goroutine has just started.
	root := filepath.Join(work, "busybox")
	if _, err := command(ctx, "", "dpkg-deb", "-x", deb, root); err != nil {
		return nil, err
	}
	applets, err := command(ctx, "", filepath.Join(root, program), "--list-full")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(applets)) {
		if _, ok := l.byName[name]; ok {
			continue
		}
		// Both kinds of links, as images in the wild have them.
		if strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "usr/bin/") {
			l.AddHardlink(name, program, nil)
		} else {
			l.AddSymlink(name, "/"+program, nil)
		}
	}
	return l, nil
}
