package ext4

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// xattr is an extended attribute as ext4 keeps it: the namespace is a number, and access
// control lists have a form of their own ("Extended Attributes").
type xattr struct {
	index byte
	name  string // without the namespace's prefix
	value string
}

const (
	xattrMagic     = 0xea020000
	xattrInode     = 128 + 32 // where attributes start in the inode: after i_extra_isize
	xattrInodeRoom = inodeSize - xattrInode - 4 - 4
	xattrBlockHead = 32
	xattrBlockRoom = BlockSize - xattrBlockHead - 4

	indexUser       = 1
	indexACL        = 2
	indexACLDefault = 3
	indexSecurity   = 6
)

var namespaces = []struct {
	prefix string
	index  byte
}{
	{"user.", indexUser}, {"system.posix_acl_access", indexACL}, {"system.posix_acl_default", indexACLDefault},
	{"trusted.", 4}, {"security.", indexSecurity},
}

var (
	errXattrSpace = errors.New("extended attributes do not fit: ext4 has 88 bytes in the inode and one block of 4 KiB for them")
	// errXattrNamespace is for names that no Linux filesystem stores, such as com.apple.*.
	errXattrNamespace = errors.New("ext4 has no such namespace of extended attributes")
)

// validCapability reports whether setxattr(2) would take a value of security.capability:
// capabilities(7), "File capability extended attribute versioning". With another one the kernel
// refuses to run the file.
func validCapability(v string) bool {
	if len(v) < 4 {
		return false
	}
	switch le.Uint32([]byte(v[:4])) >> 24 {
	case 2:
		return len(v) == 20
	case 3:
		return len(v) == 24
	}
	return false
}

// newXattr converts an attribute from the form of setxattr(2).
func newXattr(name, value string) (xattr, error) {
	for _, ns := range namespaces {
		rest, ok := strings.CutPrefix(name, ns.prefix)
		if !ok {
			continue
		}
		acl := ns.index == indexACL || ns.index == indexACLDefault
		switch {
		case acl && rest != "":
			return xattr{}, errXattrNamespace
		case !acl && rest == "":
			return xattr{}, fmt.Errorf("extended attribute %q has no name", name)
		case len(rest) > 255 || strings.Contains(rest, "\x00"):
			return xattr{}, fmt.Errorf("extended attribute name %.40q is longer than 255 bytes or contains a NUL", name)
		}
		if acl {
			var err error
			if value, err = aclToDisk(value); err != nil {
				return xattr{}, fmt.Errorf("%s: %w", name, err)
			}
		}
		if ns.index == indexSecurity && rest == "capability" && !validCapability(value) {
			return xattr{}, fmt.Errorf("%s of %d bytes is no set of capabilities of version 2 or 3", name, len(value))
		}
		return xattr{ns.index, rest, value}, nil
	}
	return xattr{}, errXattrNamespace
}

// fullName is the attribute's name for getxattr(2), or "" for a namespace unknown here.
func (x xattr) fullName() string {
	for _, ns := range namespaces {
		if ns.index == x.index {
			return ns.prefix + x.name
		}
	}
	return ""
}

// sortXattrs brings attributes into disk order: namespace, length of the name, name.
func sortXattrs(xs []xattr) {
	slices.SortFunc(xs, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
}

func pad4(n int) int { return (n + 3) &^ 3 }

func (x xattr) cost() int { return 16 + pad4(len(x.name)) + pad4(len(x.value)) }

// splitXattrs says which attributes lie in the inode and which in a block of their own.
func splitXattrs(xs []xattr) (inner, outer []xattr, err error) {
	in, out := 0, 0
	for _, x := range xs {
		switch c := x.cost(); {
		case in+c <= xattrInodeRoom:
			in += c
			inner = append(inner, x)
		case out+c <= xattrBlockRoom:
			out += c
			outer = append(outer, x)
		default:
			return nil, nil, errXattrSpace
		}
	}
	return inner, outer, nil
}

// putXattrs writes entries from b[at:] on and their values from the end of b backwards.
// Offsets of values count from b[origin].
func putXattrs(b []byte, at, origin int, xs []xattr, hashed bool) (blockHash uint32) {
	end := len(b)
	for _, x := range xs {
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			end -= pad4(len(x.value))
			copy(b[end:], x.value)
			le.PutUint16(e[2:], uint16(end-origin))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		copy(e[16:], x.name)
		if hashed {
			h := xattrHash(x)
			le.PutUint32(e[12:], h)
			blockHash = blockHash<<16 ^ blockHash>>16 ^ h
		}
		at += 16 + pad4(len(x.name))
	}
	return blockHash
}

// xattrHash is the hash of one attribute, of which the block's hash is made.
func xattrHash(x xattr) (h uint32) {
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	for v := x.value; len(v) > 0; v = v[min(4, len(v)):] {
		var w [4]byte
		copy(w[:], v)
		h = h<<16 ^ h>>16 ^ le.Uint32(w[:])
	}
	return h
}

func encodeInodeXattrs(in *inode, b []byte) {
	inner, _, _ := splitXattrs(in.xattrs)
	if len(inner) > 0 {
		le.PutUint32(b[xattrInode:], xattrMagic)
		putXattrs(b[:inodeSize], xattrInode+4, xattrInode+4, inner, false)
	}
}

func (fs *FS) encodeXattrBlock(in *inode, b []byte) {
	_, outer, _ := splitXattrs(in.xattrs)
	le.PutUint32(b, xattrMagic)
	le.PutUint32(b[4:], 1) // users
	le.PutUint32(b[8:], 1) // blocks
	le.PutUint32(b[12:], putXattrs(b, xattrBlockHead, 0, outer, true))
	var n [8]byte
	le.PutUint64(n[:], in.xblock)
	le.PutUint32(b[16:], crc(crc(fs.seed, n[:]), b))
}

const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// errNoACL is for an access control list without entries, which setxattr(2) takes to mean that
// there is to be none.
var errNoACL = errors.New("access control list without entries")

// aclToDisk converts an access control list: setxattr(2) has version 2 and 8 bytes for every
// entry, the disk has version 1 and leaves out IDs where the tag has none. The entries must be
// such as setxattr(2) takes (acl(5), "ACL entries" and "Valid ACLs"): in the order of their tags,
// and with a mask if there are named users or groups.
func aclToDisk(v string) (string, error) {
	if len(v) < 4 || (len(v)-4)%8 != 0 || le.Uint32([]byte(v[:4])) != 2 {
		return "", fmt.Errorf("not an access control list of version 2 (%d bytes)", len(v))
	}
	if len(v) == 4 {
		return "", errNoACL
	}
	out := []byte{1, 0, 0, 0}
	var seen, last uint16
	for e := []byte(v[4:]); len(e) > 0; e = e[8:] {
		tag := le.Uint16(e)
		named := tag == aclUser || tag == aclGroup
		switch tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			out = append(out, e[:4]...)
		case aclUser, aclGroup:
			out = append(out, e[:8]...)
		default:
			return "", fmt.Errorf("access control list has an entry with unknown tag %#x", tag)
		}
		switch {
		case tag < last || tag == last && !named:
			return "", fmt.Errorf("access control list: tag %#x follows %#x", tag, last)
		case le.Uint16(e[2:]) > 7:
			return "", fmt.Errorf("access control list: permissions %#o", le.Uint16(e[2:]))
		case named && le.Uint32(e[4:]) == 1<<32-1:
			return "", fmt.Errorf("access control list: tag %#x without an ID", tag)
		}
		seen |= tag
		last = tag
	}
	need := uint16(aclUserObj | aclGroupObj | aclOther)
	if seen&(aclUser|aclGroup) != 0 {
		need |= aclMask
	}
	if seen&need != need {
		return "", fmt.Errorf("access control list lacks entries: it has tags %#x, not %#x", seen, need)
	}
	return string(out), nil
}

// aclFromDisk is the reverse of aclToDisk.
func aclFromDisk(v string) (string, error) {
	if len(v) < 4 || le.Uint32([]byte(v[:4])) != 1 {
		return "", errors.New("access control list is not of version 1")
	}
	out := []byte{2, 0, 0, 0}
	for e := []byte(v[4:]); len(e) > 0; {
		if len(e) < 4 {
			return "", errors.New("access control list is cut off")
		}
		switch tag := le.Uint16(e); tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			out = append(append(out, e[:4]...), 0xff, 0xff, 0xff, 0xff)
			e = e[4:]
		case aclUser, aclGroup:
			if len(e) < 8 {
				return "", errors.New("access control list is cut off")
			}
			out = append(out, e[:8]...)
			e = e[8:]
		default:
			return "", fmt.Errorf("access control list has an entry with unknown tag %#x", tag)
		}
	}
	return string(out), nil
}
