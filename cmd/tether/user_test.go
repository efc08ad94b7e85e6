//go:build linux && amd64

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n" +
		"65534:x:77:78::/numbers:\nnohome:x:12:13::relative:\nbig:x:4294967295:0::/:\n"
	testGroup = "root:x:0:\napp:x:1001:\nextra:x:1002:other,app\nmore:x:1003:app,app\nbad:x:zz:app\n"
)

func TestLookupUser(t *testing.T) {
	for spec, want := range map[string]identity{
		"":           {0, 0, []uint32{0}, "/root"},
		"root":       {0, 0, []uint32{0}, "/root"},
		"app":        {1000, 1001, []uint32{1001, 1002, 1003, 1003}, "/home/app"},
		"1000":       {1000, 1001, []uint32{1001, 1002, 1003, 1003}, "/home/app"},
		"app:root":   {1000, 0, []uint32{0}, "/home/app"},
		"app:1234":   {1000, 1234, []uint32{1234}, "/home/app"},
		"app:":       {1000, 1001, []uint32{1001}, "/home/app"},
		"4711":       {4711, 0, []uint32{0}, "/"},
		"4711:extra": {4711, 1002, []uint32{1002}, "/"},
		"nohome":     {12, 13, []uint32{13}, "/"},
		":app":       {0, 1001, []uint32{1001}, "/root"},
	} {
		got, err := lookupUser(spec, nil, strings.NewReader(testPasswd), strings.NewReader(testGroup))
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(identity{})); diff != "" {
			t.Errorf("%q: %s", spec, diff)
		}
	}
	for spec, want := range map[string]string{
		"nobody":     `no user "nobody"`,
		"big":        `no user "big"`,
		"4294967295": `no user "4294967295"`,
		"-1":         `no user "-1"`,
		"app:none":   `no group "none"`,
		"app:-5":     `no group "-5"`,
	} {
		if _, err := lookupUser(spec, nil, strings.NewReader(testPasswd), strings.NewReader(testGroup)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", spec, err, want)
		}
	}
	long := strings.Repeat("x", 1<<20)
	if _, err := lookupUser("app", nil, strings.NewReader(long), strings.NewReader("")); err == nil {
		t.Error("a line of a mebibyte was read")
	}
}

func TestLookupFurtherGroups(t *testing.T) {
	got, err := lookupUser("app:root", []string{"extra", "4711", "1003", "root"}, strings.NewReader(testPasswd), strings.NewReader(testGroup))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint32{0, 1002, 4711, 1003, 0}, got.groups); diff != "" {
		t.Error(diff)
	}
	if _, err := lookupUser("", []string{"0", "none"}, strings.NewReader(testPasswd), strings.NewReader(testGroup)); err == nil || !strings.Contains(err.Error(), `groupAdd[1]: the container's /etc/group has no group "none"`) {
		t.Errorf("unknown: %v", err)
	}
}

func TestLookupUserWithoutFiles(t *testing.T) {
	got, err := lookupUser("1000:1000", nil, strings.NewReader(""), strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(identity{1000, 1000, []uint32{1000}, "/"}, got, cmp.AllowUnexported(identity{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("app:extra", testPasswd, testGroup)
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		id, err := lookupUser(spec, nil, strings.NewReader(passwd), strings.NewReader(group))
		if err == nil && (id.uid == 1<<32-1 || id.gid == 1<<32-1 || len(id.groups) > 1025 || id.groups[0] != id.gid) {
			t.Fatalf("%q: %+v", spec, id)
		}
	})
}
