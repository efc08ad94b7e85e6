// Package vmdk reads and writes the parts of VMware's virtual disk format that images,
// containers and the lab are made of. It does no I/O of its own: callers give it readers and
// writers, and find, name and close the files.
//
// A virtual disk is a text descriptor and an extent. The extents written here:
//
//   - flat ("vmfs"): the disk's bytes as they are, in a sparse file of the host;
//   - vmfsSparse, also called COWD after its magic number: a child disk that holds only what
//     differs from its parent. [LayerWriter] makes one for reading, with a grain of one sector as
//     ESXi uses; [WriteChild] makes an empty one to be written to.
//
// Those and monolithicSparse (KDMV, the descriptor embedded) can be read.
//
// The source is VMware's "Virtual Disk Format 5.0" technical note, chapters "The Text Descriptor",
// "Hosted Sparse Extents" and "ESX Server Sparse Extents". Offsets and sizes are in bytes unless a name says
// sectors (512 bytes).
package vmdk
