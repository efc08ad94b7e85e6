package main_test

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testCopy copies as docker cp does, in all its cases.
func testCopy(t *testing.T, c *cli) {
	c.want(t, 0, "", "run", "--name", "box", c.image, "sh", "-c", "mkdir -p /a/b; echo one > /a/b/f; ln -s b /a/l; rm /etc/group")
	if out := c.want(t, 0, "", "diff", "box"); out != "A /a\nA /a/b\nA /a/b/f\nA /a/l\nC /etc\nD /etc/group\n" {
		t.Errorf("diff: %q", out)
	}
	dir := t.TempDir()
	read := func(name, want string) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	c.want(t, 0, "", "cp", "box:/a/b/f", dir+"/new")
	read("new", "one\n")
	c.want(t, 0, "", "cp", "box:/a", dir)
	read("a/b/f", "one\n")
	if l, err := os.Readlink(filepath.Join(dir, "a/l")); err != nil || l != "b" {
		t.Errorf("%q, %v", l, err)
	}
	c.want(t, 0, "", "cp", "box:/a", dir+"/copy")
	read("copy/b/f", "one\n")
	c.want(t, 0, "", "cp", "box:/a/b/.", dir)
	read("f", "one\n")
	c.want(t, 3, "does not exist", "cp", "box:/none", dir)
	c.want(t, 2, "no directory", "cp", "box:/a", dir+"/new")
	c.want(t, 2, "CONTAINER:PATH", "cp", dir, dir)

	if err := os.MkdirAll(filepath.Join(dir, "in/sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in/sub/x"), []byte("in\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	c.want(t, 0, "", "cp", dir+"/in", "box:/a")           // /a/in
	c.want(t, 0, "", "cp", dir+"/in/.", "box:/a/l")       // /a/b/sub
	c.want(t, 0, "", "cp", dir+"/in", "box:/fresh")       // /fresh/sub
	c.want(t, 0, "", "cp", dir+"/in/sub/x", "box:/a/b/f") // over a file
	c.want(t, 2, "no directory", "cp", dir+"/in", "box:/a/b/f")
	c.want(t, 2, "no directory", "cp", dir+"/in/sub/x", "box:/none/")
	c.want(t, 3, "", "cp", dir+"/in/sub/x", "box:/none/x")
	out, _, code := c.run(t, nil, "cp", "box:/a", "-")
	if code != 0 {
		t.Fatal(code)
	}
	found := map[string]string{}
	for r := tar.NewReader(strings.NewReader(out)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r)
		found[h.Name] = string(b)
	}
	for name, want := range map[string]string{"a/in/sub/x": "in\n", "a/b/sub/x": "in\n", "a/b/f": "in\n"} {
		if found[name] != want {
			t.Errorf("%s: %q in %v", name, found[name], found)
		}
	}
	if _, errOut, code := c.run(t, strings.NewReader(out), "cp", "-", "box:/fresh"); code != 0 {
		t.Error(errOut)
	}
	c.want(t, 0, "", "cp", "box:/fresh/a/in/sub/x", dir+"/back")
	read("back", "in\n")
	c.want(t, 0, "", "rm", "box")
}

// testImages looks at the room images take, and deletes.
func testImages(t *testing.T, c *cli) {
	c.want(t, 0, "2 layers, ", "df")
	id := ""
	for line := range strings.Lines(c.want(t, 0, "sha256:", "df")) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "sha256:") {
			id = strings.TrimPrefix(f[1], "sha256:")
		}
	}
	c.want(t, 0, "", "create", "other")
	c.env = append(c.env, "VIC_VCH=demo")
	c.want(t, 0, "", "run", "--name", "user", c.image, "true")
	c.want(t, 4, "user", "rmi", id)
	c.want(t, 0, "deleted 0 layers", "gc")
	c.want(t, 0, "deleted 0 layers", "prune")
	c.want(t, 0, "deleted 0 layers", "prune", "-a", "--filter", "until=2000-01-01")
	c.want(t, 2, "filter", "prune", "--filter", "colour=red")
	c.want(t, 0, "untagged", "rmi", "-f", c.image)
	c.want(t, 0, "<none>", "df")
	c.want(t, 0, "", "rm", "user")
	c.want(t, 0, "deleted: sha256:"+id, "prune")
	c.want(t, 0, "0 layers", "df")
	c.want(t, 3, "", "rmi", c.image)
	c.want(t, 0, "", "delete", "other")
}
