// Package treecmp compares directory trees as the kernel shows them.
//
// It is the independent witness of what the project writes by itself: an
// image that was unpacked by another program ([Reference]) is listed
// ([List]), so is the filesystem that we wrote, mounted by the kernel
// ([Mount]) or seen from inside a guest (the program cmd/treelist), and
// [Diff] names every difference.
//
// Only tests use this package. Listing and mounting need Linux.
package treecmp

import (
	"fmt"
	"path"
	"sort"
	"strings"
)

// Type is what kind of file an entry is.
type Type string

// The types of files.
const (
	File    Type = "file"
	Dir     Type = "dir"
	Symlink Type = "symlink"
	Char    Type = "char"
	Block   Type = "block"
	FIFO    Type = "fifo"
	Socket  Type = "socket"
)

// Entry is one name of a tree. Everything a process could learn about the
// file is in it, except what differs between two equal trees: inode numbers,
// access and change times, allocated blocks.
type Entry struct {
	// Path is relative to the root of the tree, with slashes; the root
	// itself is ".". It holds the bytes of the name, which need not be UTF-8.
	Path string
	Type Type
	// Mode holds the permission bits with setuid (04000), setgid (02000)
	// and sticky (01000).
	Mode     uint32
	UID, GID uint32
	// Size is the content's length in bytes; of a symlink, its target's. It
	// is 0 for directories, whose size tells about the filesystem only.
	Size int64
	// MtimeSec and MtimeNsec are the modification time since 1970. Seconds
	// may be negative. Nanoseconds are 0 to 999,999,999.
	MtimeSec  int64
	MtimeNsec int64
	// SHA256 is the hash of a regular file's content, in lower-case hex.
	SHA256 string
	// Target is what a symlink holds.
	Target string
	// Major and Minor are the device number of Char and Block.
	Major, Minor uint32
	// Xattrs are the extended attributes by full name ("user.x",
	// "security.capability"). It is nil where there are none.
	Xattrs map[string][]byte
	// Group is the smallest path of the names in this tree that share this
	// file, and empty where the file has one name in the tree. Two trees have
	// the same hard links exactly when their groups are equal.
	Group string
}

// Under returns the entries at and below dir, with paths relative to it.
// Groups whose smallest path lies outside of dir are named anew. The
// result is empty if entries has no dir.
func Under(entries []Entry, dir string) []Entry {
	dir = path.Clean(dir)
	var out []Entry
	members := map[string][]int{}
	for _, e := range entries {
		switch {
		case dir == ".":
		case e.Path == dir:
			e.Path = "."
		case strings.HasPrefix(e.Path, dir+"/"):
			e.Path = e.Path[len(dir)+1:]
		default:
			continue
		}
		if e.Group != "" {
			members[e.Group] = append(members[e.Group], len(out))
		}
		out = append(out, e)
	}
	for _, at := range members {
		nameGroup(out, at)
	}
	return out
}

// nameGroup sets the group of the entries at the given places, which are
// the names of one file.
func nameGroup(entries []Entry, at []int) {
	smallest := ""
	if len(at) > 1 {
		smallest = entries[at[0]].Path
		for _, i := range at {
			smallest = min(smallest, entries[i].Path)
		}
	}
	for _, i := range at {
		entries[i].Group = smallest
	}
}

// Diff returns one line for each difference between two trees, ordered by
// path, and nothing if they are equal. The order of the entries given does
// not matter. What is not to be compared is to be made equal by the caller
// before.
func Diff(want, got []Entry) []string {
	var lines []string
	index := func(side string, entries []Entry) map[string]*Entry {
		m := make(map[string]*Entry, len(entries))
		for i := range entries {
			e := &entries[i]
			if m[e.Path] != nil {
				lines = append(lines, fmt.Sprintf("%q: listed twice in the tree %s", e.Path, side))
			}
			m[e.Path] = e
		}
		return m
	}
	w, g := index("wanted", want), index("got", got)
	paths := make([]string, 0, len(w))
	for p := range w {
		paths = append(paths, p)
	}
	for p := range g {
		if w[p] == nil {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	for _, p := range paths {
		switch {
		case g[p] == nil:
			lines = append(lines, fmt.Sprintf("%q: missing, want a %s", p, w[p].Type))
		case w[p] == nil:
			lines = append(lines, fmt.Sprintf("%q: unexpected %s", p, g[p].Type))
		default:
			lines = append(lines, diffEntry(w[p], g[p])...)
		}
	}
	return lines
}

func diffEntry(w, g *Entry) []string {
	var lines []string
	differ := func(what, format string, want, got any) {
		if want != got {
			lines = append(lines, fmt.Sprintf("%q: %s "+format+", want "+format, w.Path, what, got, want))
		}
	}
	differ("type", "%s", w.Type, g.Type)
	if w.Type != g.Type {
		return lines
	}
	differ("mode", "%04o", w.Mode, g.Mode)
	differ("uid", "%d", w.UID, g.UID)
	differ("gid", "%d", w.GID, g.GID)
	differ("size", "%d", w.Size, g.Size)
	differ("mtime", "%s", mtime(w), mtime(g))
	differ("sha256", "%s", w.SHA256, g.SHA256)
	differ("target", "%q", w.Target, g.Target)
	differ("device", "%s", device(w), device(g))
	differ("hard-link group", "%q", w.Group, g.Group)
	names := map[string]bool{}
	for n := range w.Xattrs {
		names[n] = true
	}
	for n := range g.Xattrs {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		wv, wok := w.Xattrs[n]
		gv, gok := g.Xattrs[n]
		differ("xattr "+n, "%s", xattr(wv, wok), xattr(gv, gok))
	}
	return lines
}

func mtime(e *Entry) string  { return fmt.Sprintf("%d.%09d", e.MtimeSec, e.MtimeNsec) }
func device(e *Entry) string { return fmt.Sprintf("%d:%d", e.Major, e.Minor) }

func xattr(value []byte, ok bool) string {
	if !ok {
		return "absent"
	}
	return fmt.Sprintf("%q", value)
}
