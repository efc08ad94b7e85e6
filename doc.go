// Module vic runs any OCI image as its own virtual machine on vSphere.
//
// Package vic/engine is the shortest way: it makes a virtual container host
// (VCH), pulls an image into it, and runs a container, each in one call. The
// packages below it are for programs that want the pieces:
//
//	vic              connect to a vCenter; values and errors that all share
//	vic/vch          VCHs: a resource pool, a folder and a record
//	vic/imagestore   images as chains of virtual disks on a datastore
//	vic/registry     where images come from
//	vic/network      port groups
//	vic/containervm  container VMs: create, start, attach, stop, delete
//	vic/tether       the protocol into the guest, both sides
//	vic/lab          a vSphere for one machine, which boots VMs in QEMU
//	bootiso          the ISO that container VMs boot
//
// All state lives in vSphere: a program may be killed at any instruction, and
// another goes on where it was. The examples directory has one runnable program
// for each idea.
package vic
