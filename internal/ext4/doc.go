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
// [Open] reads any ext4 filesystem, whether this package or a kernel wrote it, cleanly
// unmounted or cut off by a power failure: what the journal holds is laid over the image in
// memory. Nothing is ever written.
//
// On-disk structures follow the kernel's documentation, "ext4 Data Structures and Algorithms"
// (Documentation/filesystems/ext4), and its jbd2 chapter.
package ext4
