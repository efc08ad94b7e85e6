package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "send an image of the VCH's store to a registry", ArgsUsage: "IMAGE",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "as", Usage: "`NAME` that it gets there (default: its own)"},
			&cli.StringFlag{Name: "compression", Usage: "`HOW` layers are packed that the registry cannot be given as they were: gzip, zstd or none (default: gzip)"},
			&cli.BoolFlag{Name: "repack", Usage: "pack all layers with --compression"},
			&cli.BoolFlag{Name: "copy", Usage: "take what is missing from the registry that IMAGE names, as it is, with what refers to the image, such as signatures; with --as"},
		}, registryFlags()...),
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			if c.Bool("copy") && (c.String("as") == "" || c.Bool("repack") || c.String("compression") != "") {
				return usageError("push: --copy needs --as and excludes --repack and --compression")
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				name := c.Args().First()
				push := func() (fmt.Stringer, error) {
					d, err := e.Push(ctx, name, &imagestore.PushOptions{
						Name: c.String("as"), Compression: imagestore.Compression(c.String("compression")), Repack: c.Bool("repack"), Progress: p.event,
					})
					return d.Digest, err
				}
				if c.Bool("copy") {
					push = func() (fmt.Stringer, error) {
						d, err := e.Copy(ctx, name, c.String("as"), p.event)
						return d.Digest, err
					}
				}
				digest, err := push()
				if err != nil {
					return err
				}
				p.close()
				if as := c.String("as"); as != "" {
					name = as
				}
				fmt.Printf("%s %s\n", name, digest)
				return nil
			})
		},
	}
}

func changeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "change", Aliases: []string{"c"}, Usage: "`INSTRUCTION` of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR"},
		&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "`TEXT` for the image's history"},
		&cli.StringFlag{Name: "author", Aliases: []string{"a"}, Usage: "`WHO` made the image"},
	}
}

func configOptions(c *cli.Context) imagestore.ConfigOptions {
	return imagestore.ConfigOptions{Instructions: c.StringSlice("change"), Comment: c.String("message"), Author: c.String("author")}
}

func commitCommand() *cli.Command {
	return &cli.Command{
		Name: "commit", Usage: "make an image of a container that does not run", ArgsUsage: "CONTAINER IMAGE", Flags: changeFlags(),
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withFirst(c, func(ctx context.Context, e *engine.Engine, vm *containervm.VM) error {
				img, err := e.Commit(ctx, vm, c.Args().Get(1), &imagestore.CommitOptions{ConfigOptions: configOptions(c), Progress: p.event})
				if err != nil {
					return err
				}
				p.close()
				fmt.Printf("%s %s\n", img.Name(), img.Digest())
				return nil
			})
		},
	}
}

func saveCommand() *cli.Command {
	return &cli.Command{
		Name: "save", Usage: "write images to an archive", ArgsUsage: "IMAGE…",
		Flags: []cli.Flag{
			outputFlag(),
			&cli.StringFlag{Name: "format", Usage: "`FORMAT`: docker-archive or oci-archive", Value: string(imagestore.DockerArchive)},
			&cli.StringFlag{Name: "compression", Usage: "`HOW` an oci-archive's layers are packed: gzip, zstd or none (default: none)"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, -1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return output(c, func(w io.Writer) error {
					return e.Save(ctx, w, c.Args().Slice(), &imagestore.SaveOptions{
						Format: imagestore.Format(c.String("format")), Compression: imagestore.Compression(c.String("compression")),
					})
				})
			})
		},
	}
}

func loadCommand() *cli.Command {
	return &cli.Command{
		Name: "load", Usage: "bring the images of an archive into the VCH's store",
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "input", Aliases: []string{"i"}, Usage: "`FILE` to read (default: standard input)"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` for an image that the archive gives none"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				r, err := input(c.Path("input"))
				if err != nil {
					return err
				}
				defer r.Close()
				images, err := e.Load(ctx, r, &imagestore.LoadOptions{Name: c.String("name"), Progress: p.event})
				if err != nil {
					return err
				}
				p.close()
				for _, i := range images {
					fmt.Printf("%s %s\n", i.Name(), i.Digest())
				}
				return nil
			})
		},
	}
}

func exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write the files of a container that does not run, or of an image, as a tar", ArgsUsage: "CONTAINER",
		Flags: []cli.Flag{outputFlag(), &cli.BoolFlag{Name: "image", Usage: "the argument is an image"}},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				name := c.Args().First()
				if c.Bool("image") {
					img, err := e.Image(ctx, name)
					if err != nil {
						return err
					}
					return output(c, func(w io.Writer) error { return e.Images().Export(ctx, img.Root(), w, nil) })
				}
				vm, _, err := e.Find(ctx, name)
				if err != nil {
					return err
				}
				return output(c, func(w io.Writer) error { return e.Export(ctx, vm, w, nil) })
			})
		},
	}
}

func importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "make an image of a tar's files", ArgsUsage: "FILE|- IMAGE", Flags: changeFlags(),
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			defer p.close()
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				r, err := input(c.Args().First())
				if err != nil {
					return err
				}
				defer r.Close()
				img, err := e.Import(ctx, r, c.Args().Get(1), &imagestore.ImportOptions{ConfigOptions: configOptions(c), Progress: p.event})
				if err != nil {
					return err
				}
				p.close()
				fmt.Printf("%s %s\n", img.Name(), img.Digest())
				return nil
			})
		},
	}
}

func historyCommand() *cli.Command {
	return &cli.Command{
		Name: "history", Usage: "tell how an image was made, the latest step first", ArgsUsage: "IMAGE",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "no-trunc", Usage: "whole texts"}},
		Action: func(c *cli.Context) error {
			if err := args(c, 1, 1); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				steps, err := e.History(ctx, c.Args().First())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "LAYER\tCREATED\tCREATED BY\tSIZE\tCOMMENT")
				for _, s := range steps {
					layer, size, by := "", "", s.CreatedBy
					if s.DiffID != "" {
						layer, size = s.DiffID.Encoded(), "?"
						if s.Bytes >= 0 {
							size = bytesText(s.Bytes)
						}
					}
					if !c.Bool("no-trunc") {
						layer, by = layer[:min(12, len(layer))], fmt.Sprintf("%.45s", by)
					}
					fmt.Fprintf(w, "%s\t%s\t%q\t%s\t%s\n", layer, ago(s.Created), by, size, s.Comment)
				}
				return w.Flush()
			})
		},
	}
}

func tagCommand() *cli.Command {
	return &cli.Command{
		Name: "tag", Usage: "give an image of the VCH's store a further name", ArgsUsage: "IMAGE NAME",
		Action: func(c *cli.Context) error {
			if err := args(c, 2, 2); err != nil {
				return err
			}
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				return e.Tag(ctx, c.Args().First(), c.Args().Get(1))
			})
		},
	}
}

func outputFlag() cli.Flag {
	return &cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write (default: standard output)"}
}

// output gives f the file of the flag --output, which appears when it is whole,
// or standard output, where that is no terminal.
func output(c *cli.Context, f func(io.Writer) error) error {
	name := c.Path("output")
	if name == "" || name == "-" {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return usageError("%s: an archive is nothing for a terminal: use --output, or redirect standard output", c.Command.FullName())
		}
		return f(os.Stdout)
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		w, err := os.OpenFile(name, os.O_WRONLY, 0) // a pipe or a device
		if err != nil {
			return err
		}
		return errors.Join(f(w), w.Close())
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".vic-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = f(tmp)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// input opens a file to read; empty and "-" are standard input.
func input(name string) (io.ReadCloser, error) {
	if name == "" || name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	return os.Open(name)
}
