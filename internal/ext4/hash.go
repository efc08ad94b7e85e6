package ext4

import "math/bits"

const (
	hashVersion  = 1 // half MD4; the superblock says that name bytes are unsigned
	flagUnsigned = 2 // s_flags
)

// hashName is the directory hash of a name: MD4 with half its rounds over 32-byte pieces,
// starting from the filesystem's hash seed ("Directory Hash", half_md4, unsigned).
func hashName(name string) uint32 {
	var s [4]uint32
	for i := range s {
		s[i] = le.Uint32(fixedUUID[4*i:])
	}
	for {
		var x [8]uint32
		hashWords(name, &x)
		halfMD4(&s, &x)
		if len(name) <= 32 {
			break
		}
		name = name[32:]
	}
	h := s[1] &^ 1
	if h == 0xfffffffe { // reserved for "end of directory"
		h = 0xfffffffc
	}
	return h
}

// hashWords packs up to 32 bytes big-endian into words, padded with the remaining length.
func hashWords(name string, x *[8]uint32) {
	pad := uint32(len(name))
	pad |= pad << 8
	pad |= pad << 16
	for i := range x {
		v := pad
		for j := 4 * i; j < min(4*i+4, len(name)); j++ {
			v = v<<8 + uint32(name[j])
		}
		x[i] = v
	}
}

func halfMD4(s *[4]uint32, x *[8]uint32) {
	a, b, c, d := s[0], s[1], s[2], s[3]
	step := func(f, k uint32, i, r int) {
		a, b, c, d = d, bits.RotateLeft32(a+f+x[i]+k, r), b, c
	}
	for i, r := range [...]int{3, 7, 11, 19, 3, 7, 11, 19} {
		step(d^(b&(c^d)), 0, i, r)
	}
	for i, r := range [...]int{3, 5, 9, 13, 3, 5, 9, 13} {
		step((b&c)+((b^c)&d), 0x5a827999, [...]int{1, 3, 5, 7, 0, 2, 4, 6}[i], r)
	}
	for i, r := range [...]int{3, 9, 11, 15, 3, 9, 11, 15} {
		step(b^c^d, 0x6ed9eba1, [...]int{3, 7, 2, 6, 1, 5, 0, 4}[i], r)
	}
	s[0] += a
	s[1] += b
	s[2] += c
	s[3] += d
}
