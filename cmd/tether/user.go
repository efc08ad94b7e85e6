//go:build linux && amd64

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identity is whom a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// account is a line of passwd(5).
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// lookupUser finds "user", "uid", "user:group" or "uid:gid" in the files of
// the container, and further groups by name or number. A number that the files
// do not hold is taken as it is, a name is not.
func lookupUser(spec string, add []string, passwd, group io.Reader) (identity, error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	id := identity{home: "/"}
	number, isNumber := parseID(name)
	var found *account
	err := lines(passwd, func(f []string) bool {
		a, ok := parseAccount(f)
		if ok && (a.name == name || (isNumber && a.uid == number)) {
			found = &a
		}
		return found == nil
	})
	if err != nil {
		return id, fmt.Errorf("/etc/passwd: %w", err)
	}
	switch {
	case found != nil:
		id.uid, id.gid = found.uid, found.gid
		if found.home != "" {
			id.home = found.home
		}
	case isNumber:
		id.uid = number
		if number == 0 {
			id.home = "/root"
		}
	default:
		return id, fmt.Errorf("process.user: the container's /etc/passwd has no user %.64q", name)
	}
	groupNumber, groupIsNumber := parseID(groupName)
	groupFound := groupIsNumber
	groupNamed := false
	added := make(map[string]uint32)
	err = lines(group, func(f []string) bool {
		if len(f) < 3 {
			return true
		}
		gid, ok := parseID(f[2])
		if !ok {
			return true
		}
		if _, have := added[f[0]]; !have && slices.Contains(add, f[0]) {
			added[f[0]] = gid
		}
		switch {
		case hasGroup:
			if f[0] == groupName && !groupNamed {
				groupNumber, groupFound, groupNamed = gid, true, true
			}
		case found != nil && len(f) > 3:
			for member := range strings.SplitSeq(f[3], ",") {
				if member == found.name && gid != id.gid && len(id.groups) < 1024 {
					id.groups = append(id.groups, gid)
				}
			}
		}
		return true
	})
	if err != nil {
		return id, fmt.Errorf("/etc/group: %w", err)
	}
	if hasGroup && groupName != "" {
		if !groupFound {
			return id, fmt.Errorf("process.user: the container's /etc/group has no group %.64q", groupName)
		}
		id.gid = groupNumber
	}
	for i, name := range add {
		gid, ok := added[name]
		if !ok {
			if gid, ok = parseID(name); !ok {
				return id, fmt.Errorf("settings.groupAdd[%d]: the container's /etc/group has no group %.64q", i, name)
			}
		}
		if !slices.Contains(id.groups, gid) {
			id.groups = append(id.groups, gid)
		}
	}
	// The primary group stands among the others too, so that a process cannot
	// get rid of it by setgid(2) (CVE-2022-36109).
	id.groups = append([]uint32{id.gid}, id.groups...)
	return id, nil
}

// parseID reads a user's or group's number. The largest one means "none" to
// the kernel.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
}

func parseAccount(f []string) (account, bool) {
	if len(f) < 4 {
		return account{}, false
	}
	uid, ok1 := parseID(f[2])
	gid, ok2 := parseID(f[3])
	a := account{name: f[0], uid: uid, gid: gid}
	if len(f) > 5 && strings.HasPrefix(f[5], "/") {
		a.home = f[5]
	}
	return a, ok1 && ok2
}

// lines hands out the fields of each line until each tells false. A line above
// 64 KiB is an error.
func lines(r io.Reader, each func(fields []string) bool) error {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !each(strings.Split(line, ":")) {
			return nil
		}
	}
	return sc.Err()
}

// openRegular opens a file of the container for reading; a missing one is
// empty.
func openRegular(name string) (io.ReadCloser, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
