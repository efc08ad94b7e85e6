// Package ext4 writes and reads ext4 filesystems without mounting them.
//
// The writer keeps a filesystem as a model in memory ([FS]): inodes, extents, directory
// blocks and bitmaps, but no file contents. Every metadata block can be regenerated from the
// model, so a change needs no read of what was there before. A filesystem grows in steps:
//
//	fs, err := ext4.New(ext4.Geometry{Bytes: 8 << 30}) // the empty filesystem
//	write(fs.Dirty(), fs.Block)                        // its metadata
//	fs.Commit()
//	layer, err := ext4.ReadLayer(tar, spool, nil)      // file contents go to the spool
//	bound, err := fs.Apply(layer)                      // where the spool's blocks belong
//	write(fs.Dirty(), fs.Block)                        // only the metadata that changed
//	fs.Commit()
//
// [ReadLayer] knows nothing of the filesystem: any number of layers can be read at the same
// time, and the addresses of their data are bound later, by [FS.Apply], one layer after the other.
// The same layers in the same order give the same bytes, on every machine.
//
// The image's tree lies below /rootfs. /log and /state beside it belong to whoever runs the
// image and are never touched by a layer.
//
// A file that a layer adds again with the contents it has, by a change of owner, keeps its blocks
// if [FS.ApplyWith] can compare them.
//
// [Open] reads any ext4 filesystem, whether this package or a kernel wrote it, cleanly
// unmounted or cut off by a power failure: what the journal holds is laid over the image in
// memory. Nothing is ever written. Of what is read a tar can be made ([Reader.TarOut]), and of two
// states of one filesystem their difference ([Diff]) and the layer that makes it ([DiffTar]).
//
// [Adopt] makes a model of a filesystem that this package made and a kernel wrote to since, so
// that files can be put into it while no kernel runs ([ReadArchive], [FS.ApplyWith]).
//
// Tars are those of pax(1) and of GNU tar's manual ("Basic Tar Format", "Storing Sparse Files"),
// layers those of the OCI image specification. On-disk structures follow the kernel's
// documentation, "ext4 Data Structures and Algorithms" (Documentation/filesystems/ext4), and its
// jbd2 chapter.
package ext4
