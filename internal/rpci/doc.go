// Package rpci carries VMware's guest RPC (RPCI) requests, the text commands
// "info-get KEY" and "info-set KEY VALUE", over a byte stream.
//
// On vSphere a guest speaks RPCI through the hypervisor's backdoor port. Where
// there is no such port, the lab offers the same requests on a serial line.
// A serial line can lose its far end and get another one in the middle of a
// message, unseen by the guest, so messages travel in frames that a reader can
// find again:
//
//	offset  size  field
//	0       2     0xF5 0x1C
//	2       4     sequence number, little-endian
//	6       4     length of the payload in bytes, little-endian, at most MaxPayload
//	10      n     payload
//	10+n    4     CRC-32C of bytes 2 to 10+n, little-endian
//
// A guest sends a request and the host answers with a frame of the same
// sequence number. An answer starts with "1 " on success and "0 " on failure,
// as RPCI's own answers do. Requests are idempotent, so a guest repeats one
// whose answer does not come.
package rpci
