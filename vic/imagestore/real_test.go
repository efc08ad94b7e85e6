package imagestore_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// run is what proves that an image works: its main program in a VM.
type run struct {
	script   string
	user     string
	memoryMB int64
	want     []string // in what it prints
}

// runs are by the name of the image. The scripts are bash's, or busybox's sh.
var runs = map[string]run{
	"busybox": {script: "busybox | head -n 1; cp /bin/busybox /tmp && cmp /bin/busybox /tmp/busybox && /tmp/busybox uname -s", want: []string{"BusyBox v", "Linux"}},
	"tall": {script: "cat /tall/top; ls /tall", want: []string{fmt.Sprintln(testimage.TallLayers - 1),
		fmt.Sprintf("%02d\n%02d\ntop\n", testimage.TallLayers-2, testimage.TallLayers-1)}},
	"python": {script: `python3 -c 'import hashlib, json, sqlite3, ssl; print(json.dumps({"answer": 6*7}), hashlib.sha256(b"").hexdigest())' && pip3 --version`,
		want: []string{`{"answer": 42} ` + emptySum, "pip 23", "python 3.11"}},
	"perl": {script: `perl -MDigest::SHA=sha256_hex -MJSON::PP -MPOSIX=floor -e 'print encode_json([floor(42.5)]), " ", sha256_hex(""), "\n"'`, want: []string{"[42] " + emptySum}},
	"nginx": {script: `nginx -v 2>&1 && nginx && exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3 && nginx -s stop`,
		want: []string{"nginx/1.22", "HTTP/1.1 200 OK", "Welcome to nginx!"}},
	"redis": {script: `redis-server --daemonize yes --save '' --dir /tmp >/dev/null
for i in $(seq 100); do redis-cli ping 2>/dev/null && break; sleep 0.2; done
redis-cli set answer 42; redis-cli get answer; redis-cli eval 'return 6*7' 0; redis-cli shutdown nosave`, want: []string{"PONG\nOK\n42\n42\n"}},
	"node": {script: `nodejs -e 'console.log(6*7, require("crypto").createHash("sha256").update("").digest("hex"), process.version)'`,
		memoryMB: 1024, want: []string{"42 " + emptySum + " v18."}},
	"postgresql": {script: `id -un; export PATH=/usr/lib/postgresql/15/bin:$PATH; cd /tmp && initdb -D d -A trust >log 2>&1 &&
pg_ctl -D d -w -t 300 -l log -o '-c listen_addresses= -c unix_socket_directories=/tmp -c shared_buffers=16MB' start >>log &&
psql -h /tmp -d postgres -Atc 'create table t as select generate_series(1, 1000) as n' -c 'select sum(n) from t' && pg_ctl -D d -m fast stop >>log || cat log`,
		user: "postgres", memoryMB: 1024, want: []string{"postgres\n", "SELECT 1000\n500500\n"}},
	"gcc": {script: `cd /tmp && printf '#include <cstdio>\n#include <vector>\nint main() { std::vector<int> v(42, 1); int n = 0; for (int i : v) n += i; printf("hello %%d\\n", n); }\n' >h.cc &&
printf 'h: h.cc\n\tg++ -O1 -o h h.cc\n' >Makefile && make -s && ./h && gcc --version | head -n 1`, memoryMB: 1024, want: []string{"hello 42\n", "gcc (Debian 12"}},
	"icons": {script: "find / -xdev -path '/usr/share/icons/*' | wc -l; md5sum $(find /usr/share/icons -type f -name '*.svg' | sort | tail -n 3)", memoryMB: 512},
}

// TestRealImages pulls images of programs that people run from a registry. After
// each layer the chain is sound for qemu-img and e2fsck, at the end its tree is
// the one that umoci extracts, and the program works in a VM.
func TestRealImages(t *testing.T) {
	if testing.Short() {
		t.Skip("boots VMs")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount and to extract owners and devices")
		}
		t.Skip("needs root, to mount and to extract owners and devices")
	}
	e := testlab.Start(t, testlab.Options{})
	usual := map[string]bool{"busybox": true, "tall": true}
	for _, r := range testimage.Reals() {
		t.Run(r.Name, func(t *testing.T) {
			if os.Getenv("VIC_SOAK") == "" && !usual[r.Name] {
				t.Skip(`"make soak" runs it`)
			}
			testReal(t, e, r)
		})
	}
}

func testReal(t *testing.T, e *testlab.Env, r testimage.Real) {
	layout, err := r.Build(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	eng := e.Open(t, e.Client, &imagestore.Options{Bytes: r.Bytes})
	name := e.Push(t, layout, r.Name+":real")
	start := time.Now()
	img, err := eng.Pull(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := eng.DeleteImage(t.Context(), name, nil); err != nil {
			t.Error(err)
		}
	}()
	pulled := time.Since(start)
	start = time.Now()
	tops := chainOf(t, e.Local(t, img.Root().Path))
	if n := layerCount(t, layout); len(tops) > n+1 || n == 1 && len(tops) != 2 {
		t.Errorf("%d disks with a filesystem for %d layers", len(tops), n)
	}
	for i, top := range tops {
		command(t, "qemu-img", "check", top)
		if i > 0 { // the last is checked below
			raw, done := rawView(t, top)
			command(t, "e2fsck", "-fn", raw)
			done()
		}
	}
	want := reference(t, layout)
	if len(want) < r.Entries {
		t.Errorf("the image has %d entries, not %d", len(want), r.Entries)
	}
	diffs := treecmp.Diff(want, flattened(t, tops[0]))
	for _, d := range diffs[:min(len(diffs), 20)] {
		t.Error(d)
	}
	checked := time.Since(start)
	start = time.Now()
	out := runReal(t, eng, name, runs[r.Name])
	for _, w := range append(runs[r.Name].want, found(r.Name, want)...) {
		if !strings.Contains(out, w) {
			t.Errorf("it printed\n%.2000s\nwithout %q", out, w)
		}
	}
	t.Logf("%d entries, %d disks; pulled in %.1f s, checked in %.1f s, run in %.1f s", len(want), len(tops), pulled.Seconds(), checked.Seconds(), time.Since(start).Seconds())
}

// found is what the image of many files must print: how many they are.
func found(name string, tree []treecmp.Entry) []string {
	if name != "icons" {
		return nil
	}
	n := 0
	for _, e := range tree {
		if strings.HasPrefix(e.Path, "usr/share/icons/") {
			n++
		}
	}
	return []string{fmt.Sprintf("%d\n", n)}
}

// runReal runs a script in a VM to its end.
func runReal(t *testing.T, eng *engine.Engine, image string, r run) string {
	t.Helper()
	// Without hardware virtualisation a program can take a hundred times as long.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	shell := "bash"
	if strings.Contains(image, "/busybox:") || strings.Contains(image, "/tall:") {
		shell = "sh"
	}
	_, exit, err := eng.Run(ctx, engine.RunSpec{
		Image: image, Remove: true,
		Container: containervm.Spec{Args: []string{shell, "-c", r.script}, User: r.user, MemoryMB: r.memoryMB},
		Streams:   tether.Streams{Stdout: &out, Stderr: &complaints},
	})
	if err != nil || exit.Code != 0 {
		t.Errorf("run: %v, exit %+v\n%.2000s", err, exit, &complaints)
	}
	return out.String()
}

var parentHint = regexp.MustCompile(`parentFileNameHint="([^"]*)"`)

// chainOf lists the disks of a chain, the top first, but for the empty one at its
// end, which has no filesystem.
func chainOf(t *testing.T, top string) []string {
	t.Helper()
	var out []string
	for {
		b, err := os.ReadFile(top)
		if err != nil {
			t.Fatal(err)
		}
		m := parentHint.FindSubmatch(b)
		if m == nil {
			return out
		}
		out = append(out, top)
		top = filepath.Join(filepath.Dir(top), string(m[1]))
	}
}
