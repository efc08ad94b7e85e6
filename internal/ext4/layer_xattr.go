package ext4

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// fits reports whether Linux lets a file of the type have the attribute: xattr(7), "User extended
// attributes"; acl(5).
func (x xattr) fits(typ byte) bool {
	switch typ {
	case tar.TypeDir, tar.TypeLink: // what a link names may have any; the attributes are not used
		return true
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return x.index != indexACLDefault
	case tar.TypeSymlink:
		return x.index != indexUser && x.index != indexACL && x.index != indexACLDefault
	}
	return x.index != indexUser && x.index != indexACLDefault
}

// xattrs reads the extended attributes of an entry: SCHILY.xattr.NAME holds the value as it is,
// LIBARCHIVE.xattr.NAME has the name URL-encoded and the value in base64. Where both name one
// attribute, the first form counts.
func (lr *layerReader) xattrs(h *tar.Header) ([]xattr, error) {
	found := map[string]string{}
	total := 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			enc, lib := strings.CutPrefix(k, paxXattrLibarch)
			if !lib {
				continue
			}
			var err error
			if name, err = url.PathUnescape(enc); err != nil {
				return nil, fmt.Errorf("extended attribute %s: name is not URL-encoded", quote(enc))
			}
			if _, both := h.PAXRecords[paxXattr+name]; both {
				continue
			}
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
			if err != nil {
				return nil, fmt.Errorf("extended attribute %s: value is not base64", quote(name))
			}
			v = string(raw)
		}
		if total += len(name) + len(v); total > lr.lim.MaxXattrBytes {
			return nil, fmt.Errorf("extended attributes exceed %d bytes (Limits.MaxXattrBytes)", lr.lim.MaxXattrBytes)
		}
		found[name] = v
	}
	if len(found) == 0 {
		return nil, nil
	}
	lr.meta += int64(total)
	var out []xattr
	var dropped []string
	for name, v := range found {
		x, err := newXattr(name, v)
		if errors.Is(err, errNoACL) {
			continue
		}
		if errors.Is(err, errXattrNamespace) || err == nil && !x.fits(h.Typeflag) {
			dropped = append(dropped, h.Name+": "+name)
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	slices.Sort(dropped)
	for _, d := range dropped {
		if len(lr.layer.Dropped) < 100 {
			lr.layer.Dropped = append(lr.layer.Dropped, d)
		}
	}
	sortXattrs(out)
	if _, _, err := splitXattrs(out); err != nil {
		return nil, err
	}
	return out, nil
}
