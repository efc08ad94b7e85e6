package treecmp_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/treecmp"
)

// sample is a tree with something in every field.
func sample() []treecmp.Entry {
	return []treecmp.Entry{
		{Path: ".", Type: treecmp.Dir, Mode: 0o755},
		{Path: "a", Type: treecmp.Dir, Mode: 0o1777, UID: 1, GID: 2, MtimeSec: -5, MtimeNsec: 999999999},
		{Path: "a/\xff\\x\n", Type: treecmp.File, Mode: 0o4755, Size: 3, SHA256: "ab", Group: "a/\xff\\x\n"},
		{Path: "a/link", Type: treecmp.Symlink, Mode: 0o777, Size: 4, Target: "../\xfe\ufffd\\"},
		{Path: "a/null", Type: treecmp.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Path: "a/pipe", Type: treecmp.FIFO, Xattrs: map[string][]byte{"user.\xff": {0, 255}, "user.b": {}}},
		{Path: "b", Type: treecmp.File, Mode: 0o4755, Size: 3, SHA256: "ab", Group: "a/\xff\\x\n"},
	}
}

func TestDiff(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(e []treecmp.Entry) []treecmp.Entry
		want   []string
	}{
		{"equal", func(e []treecmp.Entry) []treecmp.Entry { return e }, nil},
		{"another order", func(e []treecmp.Entry) []treecmp.Entry { e[0], e[5] = e[5], e[0]; return e }, nil},
		{"missing", func(e []treecmp.Entry) []treecmp.Entry { return e[:6] }, []string{`"b": missing, want a file`}},
		{"unexpected", func(e []treecmp.Entry) []treecmp.Entry {
			return append(e, treecmp.Entry{Path: "c", Type: treecmp.Socket})
		}, []string{`"c": unexpected socket`}},
		{"twice", func(e []treecmp.Entry) []treecmp.Entry { return append(e, e[1]) },
			[]string{`"a": listed twice in the tree got`}},
		{"type", func(e []treecmp.Entry) []treecmp.Entry { e[1].Type, e[1].Mode = treecmp.File, 0; return e },
			[]string{`"a": type file, want dir`}},
		{"mode", func(e []treecmp.Entry) []treecmp.Entry { e[1].Mode = 0o777; return e },
			[]string{`"a": mode 0777, want 1777`}},
		{"owner", func(e []treecmp.Entry) []treecmp.Entry { e[1].UID, e[1].GID = 3, 4; return e },
			[]string{`"a": uid 3, want 1`, `"a": gid 4, want 2`}},
		{"time", func(e []treecmp.Entry) []treecmp.Entry { e[1].MtimeNsec = 1; return e },
			[]string{`"a": mtime -5.000000001, want -5.999999999`}},
		{"content", func(e []treecmp.Entry) []treecmp.Entry { e[6].SHA256, e[6].Size = "cd", 4; return e },
			[]string{`"b": size 4, want 3`, `"b": sha256 cd, want ab`}},
		{"target", func(e []treecmp.Entry) []treecmp.Entry { e[3].Target = "x"; return e },
			[]string{`"a/link": target "x", want "../\xfe�\\"`}},
		{"device", func(e []treecmp.Entry) []treecmp.Entry { e[4].Minor = 5; return e },
			[]string{`"a/null": device 1:5, want 1:3`}},
		{"hard link", func(e []treecmp.Entry) []treecmp.Entry { e[6].Group = ""; return e },
			[]string{`"b": hard-link group "", want "a/\xff\\x\n"`}},
		{"xattrs", func(e []treecmp.Entry) []treecmp.Entry {
			e[5].Xattrs = map[string][]byte{"user.\xff": {0}, "user.c": nil}
			return e
		}, []string{
			`"a/pipe": xattr user.b absent, want ""`,
			`"a/pipe": xattr user.c "", want absent`,
			`"a/pipe": xattr user.` + "\xff" + ` "\x00", want "\x00\xff"`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := treecmp.Diff(sample(), tc.change(sample()))
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("Diff: -want +got\n%s", d)
			}
		})
	}
}

func TestUnder(t *testing.T) {
	got := treecmp.Under(sample(), "a/")
	want := []treecmp.Entry{sample()[1], sample()[2], sample()[3], sample()[4], sample()[5]}
	for i, p := range []string{".", "\xff\\x\n", "link", "null", "pipe"} {
		want[i].Path = p
	}
	want[1].Group = "" // Its other name lies outside.
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Under: -want +got\n%s", d)
	}
	if d := treecmp.Diff(sample(), treecmp.Under(sample(), ".")); d != nil {
		t.Errorf("Under the root itself: %q", d)
	}
	if got := treecmp.Under(sample(), "none"); len(got) != 0 {
		t.Errorf("Under a directory that is not there: %v", got)
	}
}

func TestEncodeDecode(t *testing.T) {
	var buf bytes.Buffer
	if err := treecmp.Encode(&buf, sample()); err != nil {
		t.Fatal(err)
	}
	text := buf.String()
	got, err := treecmp.Decode(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), got); d != "" {
		t.Errorf("Decode: -want +got\n%s", d)
	}
	if n := strings.Count(text, "\n"); n != len(sample()) {
		t.Errorf("%d lines for %d entries", n, len(sample()))
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"cut off", `{"path":"a","type":"file"`, "line 1: cut off"},
		{"not JSON", "{\"path\":\"a\",\"type\":\"dir\"}\nkernel: oops\n", "line 2: not an entry"},
		{"no path", "{\"type\":\"file\"}\n", "field path: empty"},
		{"type", "{\"path\":\"a\",\"type\":\"door\"}\n", `unknown type "door"`},
		{"escape", `{"path":"a\\q","type":"file"}` + "\n", "field path: bad escape"},
		{"hex", `{"path":"a","type":"symlink","target":"\\xZZ"}` + "\n", "field target: bad escape"},
		{"xattr", `{"path":"a","type":"file","xattrs":{"\\":"AA=="}}` + "\n", "field xattrs: bad escape"},
		{"too long", strings.Repeat("a", 5<<20), "longer than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := treecmp.Decode(strings.NewReader(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	var buf bytes.Buffer
	if err := treecmp.Encode(&buf, sample()); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(`{"path":"\\x41","type":"file"}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := treecmp.Decode(bytes.NewReader(text))
		if err != nil {
			return
		}
		var buf bytes.Buffer
		if err := treecmp.Encode(&buf, entries); err != nil {
			t.Fatal(err)
		}
		again, err := treecmp.Decode(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(entries, again); d != "" {
			t.Errorf("does not survive Encode and Decode: -before +after\n%s", d)
		}
	})
}
