package modlist_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/bootiso/modlist"
)

func TestWriteAndParse(t *testing.T) {
	want := []modlist.Module{
		{File: "kernel/a.ko"},
		{File: "kernel/b.ko", Needs: []string{"kernel/a.ko"}, Parameters: "x=1 y=2"},
		{File: "kernel/c.ko", Needs: []string{"kernel/a.ko", "kernel/b.ko"}, Late: true},
	}
	var b bytes.Buffer
	if err := modlist.Write(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := modlist.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"early a.ko":                      "line 1: fewer than three fields",
		"soon a.ko -":                     "neither early nor late",
		"early ../a.ko -":                 "not a clean relative path",
		"early /a.ko -":                   "not a clean relative path",
		"early a.ko b.ko":                 `"b.ko" does not stand before it`,
		"early a.ko a.ko":                 `"a.ko" does not stand before it`,
		"early a.ko -\nearly a.ko -":      "line 2",
		"late a.ko -\nearly b.ko a.ko":    "needs the late",
		strings.Repeat("early a.ko", 1e5): "too long",
	} {
		if _, err := modlist.Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("early a.ko -\nearly b.ko a.ko scan=manual\nlate c.ko a.ko,b.ko\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := modlist.Parse(strings.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := modlist.Write(&b, list); err != nil {
			t.Fatal(err)
		}
		again, err := modlist.Parse(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(list, again); diff != "" {
			t.Fatal(diff)
		}
	})
}
