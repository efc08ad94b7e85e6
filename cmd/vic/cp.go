package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

func cpCommand() *cli.Command {
	return &cli.Command{
		Name: "cp", Usage: "copy files between a container and this machine, as docker cp; - is a tar on standard input or output",
		ArgsUsage: "CONTAINER:PATH PATH|- | PATH|- CONTAINER:PATH",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			from, to := c.Args().Get(0), c.Args().Get(1)
			fromC, fromPath, out := remotePath(from)
			toC, toPath, in := remotePath(to)
			if in == out {
				return usageError("cp: one of %q and %q must be CONTAINER:PATH", from, to)
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				switch {
				case out && to == "-":
					return e.CopyOut(ctx, fromC, fromPath, os.Stdout, nil)
				case out:
					return copyOut(ctx, e, fromC, fromPath, to)
				case from == "-":
					return e.CopyIn(ctx, toC, toPath, os.Stdin, nil)
				}
				return copyIn(ctx, e, from, toC, toPath)
			})
		},
	}
}

func diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "list what a stopped container changed in its image's files: A added, C changed, D deleted", ArgsUsage: "CONTAINER",
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				all, err := e.Changes(ctx, c.Args().First())
				for _, x := range all {
					fmt.Println(x.Kind, x.Path)
				}
				return err
			})
		},
	}
}

// remotePath cuts CONTAINER:PATH. What begins with a slash or a dot is a path of
// this machine.
func remotePath(s string) (container, p string, ok bool) {
	if s == "" || s[0] == '/' || s[0] == '.' {
		return "", "", false
	}
	container, p, ok = strings.Cut(s, ":")
	return container, p, ok && container != "" && p != ""
}

// contentsOnly tells whether a path asks for what is in a directory, and not for
// the directory.
func contentsOnly(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

// isDir tells whether a path of a container leads to a directory.
func isDir(ctx context.Context, e *engine.Engine, container, p string) (bool, error) {
	_, err := e.StatPath(ctx, container, p+"/.")
	if err == nil {
		return true, nil
	}
	if errors.Is(err, vic.ErrNotFound) {
		return false, nil
	}
	if _, e2 := e.StatPath(ctx, container, p); e2 == nil {
		return false, nil // a file: nothing is below it
	}
	return false, err
}

// copyOut copies out of a container.
func copyOut(ctx context.Context, e *engine.Engine, container, from, to string) error {
	st, err := os.Stat(to)
	into := err == nil && st.IsDir()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, name := to, ""
	if !into {
		dir, name = filepath.Dir(filepath.Clean(to)), filepath.Base(filepath.Clean(to))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	started := false
	err = e.CopyOut(ctx, container, from, pw, func(i imagestore.FileInfo) error {
		switch {
		case i.Mode.IsDir() && !into && st != nil:
			return usageError("cp: %s is no directory", to)
		case !i.Mode.IsDir() && !into && strings.HasSuffix(to, "/"):
			return usageError("cp: there is no directory %s", to)
		case i.Mode.IsDir() && into && contentsOnly(from):
			name = "."
		}
		started = true
		go func() {
			err := unpackTar(root, name, pr)
			if err == nil {
				_, err = io.Copy(io.Discard, pr)
			}
			pr.CloseWithError(err)
			done <- err
		}()
		return nil
	})
	if !started {
		return err
	}
	pw.CloseWithError(err)
	if e := <-done; err == nil {
		err = e
	}
	return err
}

// unpackTar unpacks a tar of one file or directory into a directory of this
// machine. Where name is not empty, the file or directory gets it.
func unpackTar(root *os.Root, name string, r io.Reader) error {
	type times struct {
		name string
		h    *tar.Header
	}
	var dirs []times
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		to := renamed(h.Name, name)
		mode := h.FileInfo().Mode()
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			dirs = append(dirs, times{to, h})
			continue
		case tar.TypeReg:
			if err := writeLocal(root, to, mode, tr); err != nil {
				return err
			}
			if err := root.Chtimes(to, h.ModTime, h.ModTime); err != nil {
				return err
			}
		case tar.TypeSymlink:
			_ = root.Remove(to)
			if err := root.Symlink(h.Linkname, to); err != nil {
				return err
			}
		case tar.TypeLink:
			_ = root.Remove(to)
			if err := root.Link(renamed(h.Linkname, name), to); err != nil {
				return err
			}
		default:
			fmt.Fprintf(os.Stderr, "vic: %s is a device or a FIFO and was not copied\n", h.Name)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if dirs[i].name == "." {
			continue
		}
		if err := root.Chmod(dirs[i].name, dirs[i].h.FileInfo().Mode().Perm()); err != nil {
			return err
		}
		if err := root.Chtimes(dirs[i].name, dirs[i].h.ModTime, dirs[i].h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// renamed gives the first element of a name another name.
func renamed(name, first string) string {
	name = path.Clean(name)
	if first == "" {
		return name
	}
	_, rest, _ := strings.Cut(name, "/")
	return path.Join(first, rest)
}

func writeLocal(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	if st, err := root.Lstat(name); err == nil && !st.Mode().IsRegular() {
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode.Perm()), f.Close())
}

// copyIn copies into a container. Owners are root, as docker cp has them.
func copyIn(ctx context.Context, e *engine.Engine, from, container, to string) error {
	st, err := os.Lstat(from)
	if err == nil && (strings.HasSuffix(from, "/") || contentsOnly(from)) {
		st, err = os.Stat(from)
	}
	if err != nil {
		return err
	}
	into, err := isDir(ctx, e, container, to)
	if err != nil {
		return err
	}
	dir, name := to, filepath.Base(absolute(from))
	if into {
		if st.IsDir() && contentsOnly(from) {
			name = "."
		}
	} else {
		_, err := e.StatPath(ctx, container, to)
		switch {
		case err != nil && !errors.Is(err, vic.ErrNotFound):
			return err
		case err == nil && st.IsDir():
			return usageError("cp: %s of the container is no directory", to)
		case err != nil && !st.IsDir() && strings.HasSuffix(to, "/"):
			return usageError("cp: the container has no directory %s", to)
		}
		dir, name = path.Split(path.Clean("/" + to))
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(packTar(pw, from, name)) }()
	err = e.CopyIn(ctx, container, dir, pr, &imagestore.TarInOptions{KeepTypes: true})
	pr.CloseWithError(errors.New("the copy has ended"))
	return err
}

func absolute(p string) string {
	if a, err := filepath.Abs(p); err == nil {
		return a
	}
	return p
}

// packTar writes a file or directory of this machine as a tar under a name.
func packTar(w io.Writer, from, name string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if p == from && (strings.HasSuffix(from, "/") || contentsOnly(from)) {
			st, err = os.Stat(from)
		}
		if err != nil {
			return err
		}
		if st.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice) != 0 {
			fmt.Fprintf(os.Stderr, "vic: %s is no file, directory or symlink and was not copied\n", p)
			return nil
		}
		link := ""
		if st.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(st, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if h.Name = path.Join(name, filepath.ToSlash(rel)); h.Name == "." {
			return nil // the directory itself stays as it is
		}
		if st.IsDir() {
			h.Name += "/"
		}
		h.Format, h.Uid, h.Gid, h.Uname, h.Gname = tar.FormatPAX, 0, 0, "", ""
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if err := tw.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return errors.Join(err, f.Close())
	})
	return errors.Join(err, tw.Close())
}
