package testimage

import (
	"archive/tar"
	"context"
	"maps"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Demo returns the OCI layout of an image of six layers that holds every
// oddity a layer can carry: hard links within and across layers, devices,
// extended attributes, names of 255 bytes that are no UTF-8, times before
// 1970 and after 2106, whiteouts, opaque directories, files that turn into
// directories and back, a layer without entries, and steps of the history
// without a layer. It boots, and its default command prints who and where it
// is.
//
// The tags differ in their configuration only:
//
//	latest   Entrypoint /entry.sh and Cmd, root, working directory /work
//	user     the same as the user "demo" (uid 1000) of its group and "extra"
//	numeric  the same as 1234:5678, which no file knows
//	shell    Cmd in the shell's form and no Entrypoint
//	exit     ends with the code 7 on its own
//
// The layout lies in the cache directory dir, or if that is empty in
// [CacheDir]'s "images"; it is shared and must not be changed. Building it
// needs a Debian machine, but not root.
func Demo(ctx context.Context, dir string) (layoutPath string, err error) {
	r := recipe{name: "demo", code: []string{"busybox_linux.go", "zoo.go", "demo_linux.go"}}
	return cached(ctx, dir, r, func(ctx context.Context, work, out string) error {
		images, err := demoImages(ctx, work)
		if err != nil {
			return err
		}
		for _, tag := range slices.Sorted(maps.Keys(images)) {
			if _, err := images[tag].Write(ctx, out, &Options{Tag: tag}); err != nil {
				return err
			}
		}
		return nil
	})
}

// DemoImage returns the image that [Demo] tags "latest", for writing it in
// another form. It fetches packages into the directory work, which must stay
// until the image has been written.
func DemoImage(ctx context.Context, work string) (*Image, error) {
	images, err := demoImages(ctx, work)
	if err != nil {
		return nil, err
	}
	return images["latest"], nil
}

func demoImages(ctx context.Context, work string) (map[string]*Image, error) {
	busybox, err := busyboxLayer(ctx, work)
	if err != nil {
		return nil, err
	}
	content, err := bashLayer(ctx, work)
	if err != nil {
		return nil, err
	}
	addZoo(content)
	changes := NewLayer()
	addChanges(changes)
	moved := NewLayer()
	moveDirectory(moved)
	steps := []Step{
		{busybox, "busybox and its links"},
		{nil, `ENV DEMO=yes`},
		{content, "bash-static and the zoo"},
		{changes, "deletions and replacements"},
		{NewLayer(), "a layer without entries"},
		{moved, "a directory deleted and made again"},
		{demoLayer(), "COPY entry.sh /"},
		{nil, `ENTRYPOINT ["/entry.sh"]`},
	}
	config := ocispec.ImageConfig{
		Env:          []string{searchPath, "DEMO=yes", "SPACES=a b  c", "EMPTY=", "EQUALS=a=b"},
		Entrypoint:   []string{"/entry.sh"},
		Cmd:          []string{"default", "two words"},
		WorkingDir:   "/work",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
		Volumes:      map[string]struct{}{"/data": {}},
		Labels:       map[string]string{"org.example.demo": "yes"},
		StopSignal:   "SIGTERM",
	}
	variant := func(change func(*ocispec.ImageConfig)) *Image {
		c := config
		change(&c)
		return &Image{Config: c, Steps: steps}
	}
	return map[string]*Image{
		"latest":  variant(func(*ocispec.ImageConfig) {}),
		"user":    variant(func(c *ocispec.ImageConfig) { c.User = "demo" }),
		"numeric": variant(func(c *ocispec.ImageConfig) { c.User = "1234:5678" }),
		"shell": variant(func(c *ocispec.ImageConfig) {
			c.Entrypoint, c.Cmd = nil, []string{"/bin/sh", "-c", `echo "$DEMO $SPACES"`}
		}),
		"exit": variant(func(c *ocispec.ImageConfig) {
			c.Entrypoint, c.Cmd, c.WorkingDir = []string{"/bin/sh", "-c"}, []string{"exit 7"}, ""
		}),
	}, nil
}

// bashLayer returns the content of one real package, documentation
// included, with an entry for each of its directories but those that exist.
func bashLayer(ctx context.Context, work string) (*Layer, error) {
	deb, err := fetchDeb(ctx, work, "bash-static")
	if err != nil {
		return nil, err
	}
	l := NewLayer()
	err = addDeb(ctx, l, deb, func(h *tar.Header) bool {
		name := strings.Trim(h.Name, "./")
		return name != "" && name != "bin" && name != "usr"
	})
	return l, err
}

// moveDirectory takes a directory away that a layer brought and another
// changed, and puts a smaller one of that name there.
func moveDirectory(l *Layer) {
	l.Whiteout("zoo/elsewhere")
	l.AddDir("zoo/elsewhere", &Meta{Mode: 0o700})
	l.AddFile("zoo/elsewhere/new", []byte("moved in\n"), nil)
	l.Opaque("zoo/change/opaque-later")
	l.AddHardlink("zoo/change/link-of-link", "zoo/change/link-to-earlier-layer", nil)
}

// demoLayer returns the demonstration's own program and users.
func demoLayer() *Layer {
	l := NewLayer()
	l.AddFile("entry.sh", []byte(`#!/bin/sh
# Prints what a container can know about itself, one fact a line.
echo "args: $*"
echo "count: $#"
echo "id: $(id)"
echo "cwd: $(pwd)"
echo "demo: $DEMO"
echo "spaces: $SPACES"
echo "hostname: $(hostname)"
echo "to stderr" >&2
exit 0
`), &Meta{Mode: 0o755})
	l.AddDir("work", &Meta{Mode: 0o755, UID: 1000, GID: 1000})
	l.AddDir("data", nil)
	l.AddFile("data/from-image", []byte("seed of a volume\n"), nil)
	l.AddDir("home/demo", &Meta{Mode: 0o750, UID: 1000, GID: 1000})
	l.AddFile("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"+
		"nobody:x:65534:65534:nobody:/:/bin/false\n"+
		"demo:x:1000:1000:demo:/home/demo:/bin/sh\n"), nil)
	l.AddFile("etc/group", []byte("root:x:0:\ntty:x:5:\nextra:x:2000:demo\ndemo:x:1000:\nnogroup:x:65534:\n"), nil)
	return l
}
