package testimage_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testimage"
)

// read returns a layer's headers and contents as archive/tar sees them.
func read(t *testing.T, l *testimage.Layer) (headers []*tar.Header, contents []string) {
	t.Helper()
	var buf bytes.Buffer
	if err := l.WriteTar(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&buf)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		headers, contents = append(headers, h), append(contents, string(content))
	}
}

func TestLayer(t *testing.T) {
	late := time.Unix(13569465600, 5)
	meta := &testimage.Meta{Mode: 0o4000, UID: 1, GID: 4000000000, ModTime: late, Xattrs: map[string]string{"user.a": "b"}}
	l := testimage.NewLayer()
	l.AddDir(".", nil)
	l.AddDir("d/", meta)
	l.AddFile("d/f", []byte("hi"), meta)
	l.AddXattr("./d/f", "user.c", "\x00")
	l.AddHardlink("d/g", "d/f", nil)
	l.AddHardlink("d/h", "old", &testimage.Meta{Mode: 0o600})
	l.AddSymlink("s", "../\xff", nil)
	l.AddDevice("c", 'c', 1, 3, nil)
	l.AddDevice("b", 'b', 259, 70000, nil)
	l.AddDevice("p", 'p', 0, 0, nil)
	l.AddFile("zero", nil, &testimage.Meta{ModTime: time.Unix(-1, 0)})
	l.Whiteout("x/y")
	l.Whiteout("z")
	l.Opaque("d")
	l.AddRaw(tar.Header{Typeflag: tar.TypeReg, Name: "../../evil", Size: 1, ModTime: testimage.Epoch()}, []byte("e"))

	type row struct {
		Name, Link, Content string
		Type                byte
		Mode                int64
		UID, GID            int
		Time                time.Time
		Major, Minor        int64
		Xattrs              map[string]string
	}
	epoch := testimage.Epoch()
	x := map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.user.c": "\x00"}
	want := []row{
		{Name: "./", Type: tar.TypeDir, Mode: 0o755, Time: epoch},
		{Name: "d/", Type: tar.TypeDir, Mode: 0o4000, UID: 1, GID: 4000000000, Time: late, Xattrs: map[string]string{"SCHILY.xattr.user.a": "b"}},
		{Name: "d/f", Type: tar.TypeReg, Mode: 0o4000, UID: 1, GID: 4000000000, Time: late, Xattrs: x, Content: "hi"},
		{Name: "d/g", Type: tar.TypeLink, Link: "d/f", Mode: 0o4000, UID: 1, GID: 4000000000, Time: late, Xattrs: x},
		{Name: "d/h", Type: tar.TypeLink, Link: "old", Mode: 0o600, Time: epoch},
		{Name: "s", Type: tar.TypeSymlink, Link: "../\xff", Mode: 0o777, Time: epoch},
		{Name: "c", Type: tar.TypeChar, Mode: 0o644, Time: epoch, Major: 1, Minor: 3},
		{Name: "b", Type: tar.TypeBlock, Mode: 0o644, Time: epoch, Major: 259, Minor: 70000},
		{Name: "p", Type: tar.TypeFifo, Mode: 0o644, Time: epoch},
		{Name: "zero", Type: tar.TypeReg, Time: time.Unix(-1, 0)},
		{Name: "x/.wh.y", Type: tar.TypeReg, Time: epoch},
		{Name: ".wh.z", Type: tar.TypeReg, Time: epoch},
		{Name: "d/.wh..wh..opq", Type: tar.TypeReg, Time: epoch},
		{Name: "../../evil", Type: tar.TypeReg, Time: epoch, Content: "e"},
	}
	headers, contents := read(t, l)
	var got []row
	for i, h := range headers {
		r := row{
			Name: h.Name, Link: h.Linkname, Type: h.Typeflag, Mode: h.Mode, UID: h.Uid, GID: h.Gid,
			Time: h.ModTime, Major: h.Devmajor, Minor: h.Devminor, Content: contents[i],
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				if r.Xattrs == nil {
					r.Xattrs = map[string]string{}
				}
				r.Xattrs[k] = v
			}
		}
		got = append(got, r)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("layer: -want +got\n%s", d)
	}
	if l.Len() != len(want) {
		t.Errorf("Len: %d, want %d", l.Len(), len(want))
	}

	// A tar read back is the same layer.
	var first, second bytes.Buffer
	if err := l.WriteTar(t.Context(), &first); err != nil {
		t.Fatal(err)
	}
	copied := testimage.NewLayer()
	if err := copied.AddTar(bytes.NewReader(first.Bytes()), nil); err != nil {
		t.Fatal(err)
	}
	if err := copied.WriteTar(t.Context(), &second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("AddTar of a layer's tar gives another tar")
	}
}

func TestLayerMistakes(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func() *testimage.Layer
		want string
	}{
		{"xattr of nothing", func() *testimage.Layer {
			l := testimage.NewLayer()
			l.AddXattr("a", "user.x", "")
			return l
		}, `the layer has no "a"`},
		{"device kind", func() *testimage.Layer {
			l := testimage.NewLayer()
			l.AddDevice("a", 'x', 1, 1, nil)
			return l
		}, "kind 'x'"},
		{"raw layer", func() *testimage.Layer {
			l := testimage.RawLayer(func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil })
			l.AddDir("a", nil)
			return l
		}, "a raw layer takes no entries"},
		{"name with a zero byte", func() *testimage.Layer {
			l := testimage.NewLayer()
			l.AddFile("a\x00b", nil, nil)
			return l
		}, `entry "a\x00b"`},
		{"source that fails", func() *testimage.Layer {
			l := testimage.NewLayer()
			l.AddReader("a", 1, func() (io.ReadCloser, error) { return nil, os.ErrPermission }, nil)
			return l
		}, `entry "a": permission denied`},
		{"source too short", func() *testimage.Layer {
			l := testimage.NewLayer()
			l.AddReader("a", 2, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }, nil)
			return l
		}, "missed writing 1 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.make().WriteTar(t.Context(), io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestWriteTarEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := testimage.NewLayer()
	l.AddReader("endless", 1<<40, func() (io.ReadCloser, error) {
		return io.NopCloser(readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })), nil
	}, nil)
	if err := l.WriteTar(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func FuzzAddTar(f *testing.F) {
	l := testimage.NewLayer()
	l.AddFile("f", []byte("x"), &testimage.Meta{Xattrs: map[string]string{"user.a": "b"}, ModTime: time.Unix(1, 1)})
	l.AddHardlink("g", "f", nil)
	l.Whiteout("h")
	var buf bytes.Buffer
	if err := l.WriteTar(context.Background(), &buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		l := testimage.NewLayer()
		if err := l.AddTar(bytes.NewReader(text), nil); err != nil {
			return
		}
		// What was read may be more than tar can write, such as a sparse
		// file or a name with a zero byte; then it is an error.
		var first, second bytes.Buffer
		if err := l.WriteTar(t.Context(), &first); err != nil {
			return
		}
		if err := l.WriteTar(t.Context(), &second); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("written twice, the layer differs: %v", err)
		}
	})
}
