// Package testimage builds the OCI images that tests and demonstrations run.
//
// Three images are ready made from Debian's packages: [Busybox] is the
// smallest that boots a shell, [Demo] holds every oddity that a layer can
// carry, and [Debian] is a large and ordinary one. They are built once and
// kept in a cache directory, which several processes may share.
//
// A test that wants its own image makes each [Layer] in Go and writes them
// as an [Image] into an OCI layout:
//
//	base := testimage.NewLayer()
//	base.AddDir("etc", nil)
//	base.AddFile("etc/motd", []byte("hello\n"), nil)
//	change := testimage.NewLayer()
//	change.Whiteout("etc/motd")
//	im := testimage.Image{Steps: []testimage.Step{{Layer: base}, {Layer: change}}}
//	_, err := im.Write(ctx, dir, nil)
//
// Formats: OCI image spec 1.1 (image-layout.md, layer.md, config.md) and
// Docker image manifest version 2, schema 2.
package testimage
