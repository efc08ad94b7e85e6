package testimage

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Real is an image of programs that people run.
type Real struct {
	Name string
	// Bytes is a size of filesystem that holds it, with room to work.
	Bytes int64
	// Entries is how many files, directories and links it has at least.
	Entries int
	// Build returns its OCI layout, as [Debian] does.
	Build func(ctx context.Context, dir string) (layout string, err error)
}

// Reals returns ten images of Debian's packages: the smallest, one of 40
// layers, one of more than 100,000 files, and those of large programs.
func Reals() []Real {
	const mb = 1 << 20
	debian := func(packages ...string) func(context.Context, string) (string, error) {
		return func(ctx context.Context, dir string) (string, error) { return Debian(ctx, dir, packages...) }
	}
	return []Real{
		{"busybox", 128 * mb, 250, Busybox},
		{"tall", 128 * mb, 250, Tall},
		{"python", 512 * mb, 10000, debian("python3", "python3-pip")},
		{"perl", 512 * mb, 8000, debian("perl")},
		{"nginx", 512 * mb, 8000, debian("nginx")},
		{"redis", 512 * mb, 8000, debian("redis-server")},
		{"node", 512 * mb, 9000, debian("nodejs")},
		{"postgresql", 1024 * mb, 13000, debian("postgresql")},
		{"gcc", 1024 * mb, 12000, debian("build-essential")},
		{"icons", 2304 * mb, 100000, debian("papirus-icon-theme")},
	}
}

// TallLayers is how many layers [Tall] has.
const TallLayers = 40

// Tall returns the OCI layout of busybox with as many layers as [TallLayers],
// none of them empty: each adds a file, replaces one, and deletes what the layer
// two below it added. Files live in a cache as those of [Busybox] do.
func Tall(ctx context.Context, dir string) (layoutPath string, err error) {
	r := recipe{name: "tall", code: []string{"busybox_linux.go", "real_linux.go"}}
	return cached(ctx, dir, r, func(ctx context.Context, work, out string) error {
		l, err := busyboxLayer(ctx, work)
		if err != nil {
			return err
		}
		im := Image{
			Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}},
			Steps:  []Step{{l, "busybox and its links"}},
		}
		for i := 1; i < TallLayers; i++ {
			l := NewLayer()
			l.AddDir(".", nil)
			l.AddDir("tall", nil)
			l.AddFile(fmt.Sprintf("tall/%02d", i), []byte(fmt.Sprintln("added by layer", i)), nil)
			l.AddFile("tall/top", []byte(fmt.Sprintln(i)), nil)
			if i > 2 {
				l.Whiteout(fmt.Sprintf("tall/%02d", i-2))
			}
			im.Steps = append(im.Steps, Step{l, fmt.Sprint("layer ", i)})
		}
		_, err = im.Write(ctx, out, nil)
		return err
	})
}
