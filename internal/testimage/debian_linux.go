package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Debian returns the OCI layout of a Debian image with the packages given
// and what they depend on, made by mmdebstrap from the mirror that the
// machine's apt is set up with. It has three layers: the essential packages,
// the others, and a small one that deletes and changes files. With python3
// it has more than 10,000 files. It has the tag "latest" and runs
// "/bin/bash".
//
// The layout lies in the cache directory dir, or if that is empty in
// [CacheDir]'s "images"; it is shared and must not be changed. The cache does
// not look whether the mirror has newer packages. Building takes about a
// minute, and root.
func Debian(ctx context.Context, dir string, packages ...string) (layoutPath string, err error) {
	packages = slices.Compact(slices.Sorted(slices.Values(packages)))
	for _, p := range packages {
		if err := checkPackageName(p); err != nil {
			return "", err
		}
	}
	r := recipe{name: "debian", code: []string{"debian_linux.go"}, args: packages}
	return cached(ctx, dir, r, func(ctx context.Context, work, out string) error {
		return buildDebian(ctx, work, out, packages)
	})
}

// checkPackageName refuses what apt would take for something else than a
// name: Debian policy, section 5.6.7 "Package".
func checkPackageName(name string) error {
	ok := len(name) >= 2
	for i, c := range name {
		lower := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		ok = ok && (lower || i > 0 && strings.ContainsRune("+-.", c))
	}
	if !ok {
		return fmt.Errorf("package name %q: want lower-case letters, digits and +-. as in \"python3-minimal\"", name)
	}
	return nil
}

func buildDebian(ctx context.Context, work, out string, packages []string) error {
	sources, err := aptSources(ctx)
	if err != nil {
		return err
	}
	list := filepath.Join(work, "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return err
	}
	proxies, err := aptProxies(ctx)
	if err != nil {
		return err
	}
	base, full := filepath.Join(work, "base.tar"), filepath.Join(work, "full.tar")
	args := []string{"--quiet", "--variant=minbase", "--format=tar",
		// The hook keeps the tree as it is before the other packages come.
		"--essential-hook=tar --create --numeric-owner --xattrs --xattrs-include='*' --sort=name" +
			" --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime" +
			` --mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime --one-file-system` +
			" --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/apt/*' --exclude='./dev/*' --exclude='./tmp/*'" +
			` --directory="$1" --file="` + base + `" .`,
	}
	for _, p := range proxies {
		args = append(args, "--aptopt="+p)
	}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	args = append(args, debianRelease, full, list)
	if _, err := command(ctx, work, "mmdebstrap", args...); err != nil {
		return err
	}
	diff := filepath.Join(work, "diff.tar")
	if err := diffTars(ctx, base, full, diff); err != nil {
		return err
	}
	im := Image{
		Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"/bin/bash"}},
		Steps: []Step{
			{RawLayer(opener(base)), "essential packages"},
			{nil, "ENV " + searchPath},
			{RawLayer(opener(diff)), strings.TrimSpace("apt-get install " + strings.Join(packages, " "))},
			{tidyLayer(), "tidy up"},
		},
	}
	_, err = im.Write(ctx, out, nil)
	return err
}

func opener(name string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return os.Open(name) }
}

// tidyLayer does what the last step of many images does.
func tidyLayer() *Layer {
	l := NewLayer()
	l.Whiteout("usr/share/doc/dpkg")
	l.Opaque("usr/share/man/man8")
	l.AddFile("etc/hostname", []byte("debian\n"), nil)
	l.AddFile("etc/motd", []byte("A Debian system in a container VM.\n"), nil)
	return l
}

// diffTars writes to out the layer that turns the tree of the tar base into
// that of the tar full.
func diffTars(ctx context.Context, base, full, out string) (err error) {
	old, err := readTree(ctx, base)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	seen, written := map[string]bool{}, map[string]bool{}
	err = eachEntry(ctx, full, func(h *tar.Header, r io.Reader) error {
		name := path.Clean(h.Name)
		seen[name] = true
		was, ok := old[name]
		// A link must follow a file that is replaced.
		if ok && sameFile(&was.header, h) && !(h.Typeflag == tar.TypeLink && written[path.Clean(h.Linkname)]) {
			if h.Typeflag != tar.TypeReg {
				return nil
			}
			var content bytes.Buffer
			sum, err := hashInto(&content, r)
			if err != nil || sum == was.sum {
				return err
			}
			r = &content
		}
		written[name] = true
		return writeEntry(tw, h, r)
	})
	if err != nil {
		return err
	}
	gone := NewLayer()
	for name := range old {
		if parent := path.Dir(name); !seen[name] && (seen[parent] || parent == ".") {
			gone.Whiteout(name)
		}
	}
	slices.SortFunc(gone.entries, func(a, b entry) int { return strings.Compare(a.header.Name, b.header.Name) })
	for i := range gone.entries {
		if err := writeEntry(tw, &gone.entries[i].header, nil); err != nil {
			return err
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, h *tar.Header, r io.Reader) error {
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	if r == nil || h.Size == 0 {
		return nil
	}
	if _, err := io.Copy(tw, r); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	return nil
}

// known is a file of the older tree.
type known struct {
	header tar.Header
	sum    [sha256.Size]byte // of the content
}

func readTree(ctx context.Context, name string) (map[string]known, error) {
	tree := map[string]known{}
	err := eachEntry(ctx, name, func(h *tar.Header, r io.Reader) error {
		sum, err := hashInto(io.Discard, r)
		tree[path.Clean(h.Name)] = known{*h, sum}
		return err
	})
	return tree, err
}

func hashInto(w io.Writer, r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(h, w), r)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// eachEntry calls do for each entry of a tar, with a header that holds only
// what makes the file.
func eachEntry(ctx context.Context, name string, do func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	tr := tar.NewReader(withContext(ctx, f))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		plain := plainHeader(h)
		if err := do(&plain, tr); err != nil {
			return err
		}
	}
}
