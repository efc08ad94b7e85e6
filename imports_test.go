package vic_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The tree's import rules. Patterns are import paths in which "@" stands for
// this module and a trailing "/..." for the path and all below it. A package
// may always import what belongs to its own unit, which is its directory
// below vic, internal, cmd or examples with all that is in it. Tests may
// import what they like.

// rule says what some packages must not import.
type rule struct {
	of    []string // the packages it holds for
	deny  []string
	allow []string // exceptions from deny
	deep  bool     // holds for what their imports import, too
	why   string
}

// guard says who alone may import some packages.
type guard struct {
	imported string
	by       []string
	why      string
}

const govmomi = "github.com/vmware/govmomi/..."

// tools are programs and test support of the project's own; they may use
// everything.
func tools() []string {
	return []string{"@/internal/demo/...", "@/internal/plant/...", "@/internal/govc/...", "@/internal/bench/...", "@/internal/testlab/..."}
}

func rules() []rule {
	public := []string{"@/vic/...", "@/bootiso/...", "@/cmd/..."}
	return []rule{
		{of: []string{"@"}, deny: []string{"@/..."}, why: "the module's root is documentation"},
		{of: []string{"@/vic"}, deny: []string{"@/..."}, allow: []string{"@/internal/..."},
			why: "vic is below every other public package"},
		{of: []string{"@/vic/vch/...", "@/vic/imagestore/...", "@/vic/registry/...", "@/vic/volumestore/...", "@/vic/network/..."},
			deny: []string{"@/..."}, allow: []string{"@/vic", "@/internal/..."},
			why: "siblings exchange only values of vic"},
		{of: []string{"@/vic/containervm/..."}, deny: []string{"@/..."}, allow: []string{"@/vic", "@/vic/tether/...", "@/internal/..."},
			why: "containervm knows of its siblings tether only"},
		{of: []string{"@/vic/imagestore/..."},
			deny: []string{"oras.land/oras-go/v2", "oras.land/oras-go/v2/registry/...",
				"github.com/google/go-containerregistry/...", "github.com/containers/image/..."},
			why: "imagestore takes a Source and is no registry client"},
		{of: []string{"@/vic/tether/..."}, deny: []string{"@/...", govmomi}, allow: []string{"@/vic/tether/...", "@/internal/..."}, deep: true,
			why: "tether runs in the guest"},
		{of: []string{"@/vic/engine/..."}, deny: []string{"@/cmd/...", "@/vic/lab/...", "@/bootiso/..."}, why: "engine is a library"},
		{of: []string{"@/vic/lab/..."}, deny: []string{"@/cmd/..."}, why: "the lab is a library"},
		{of: []string{"@/internal/vsphere/..."}, deny: public, why: "public packages stand on vsphere"},
		{of: []string{"@/internal/chain/..."}, deny: public, allow: []string{"@/vic"}, why: "chain knows of the public packages vic only"},
		{of: []string{"@/internal/fault/..."}, deny: []string{"@/..."}, allow: []string{"@/internal/fault/..."}, deep: true,
			why: "fault is below everything"},
		{of: []string{"@/internal/ext4/..."}, deny: []string{"@/...", govmomi}, allow: []string{"@/internal/ext4/..."}, deep: true,
			why: "ext4 is a pure format"},
		{of: []string{"@/internal/vmdk/..."}, deny: []string{"@/...", govmomi}, allow: []string{"@/internal/vmdk/..."}, deep: true,
			why: "vmdk is a pure format"},
		{of: []string{"@/internal/rpci/...", "@/internal/testimage/...", "@/internal/testregistry/...", "@/internal/treecmp/...", "@/internal/seeded/..."},
			deny: public, why: "internal packages are below the public ones"},
		{of: tools(), why: "tools may use everything"},
		{of: []string{"@/cmd/..."}, deny: []string{"@/cmd/..."}, why: "commands do not share code, libraries do"},
		{of: []string{"@/cmd/tether/..."}, deny: []string{govmomi}, allow: []string{"github.com/vmware/govmomi/toolbox/..."}, deep: true,
			why: "the guest's PID 1 is no vSphere client"},
		{of: []string{"@/bootiso/..."}, deny: []string{"@/vic/...", "@/cmd/..."}, allow: []string{"@/vic/tether/..."},
			why: "the ISO's builder knows of the run-time libraries tether only"},
		{of: []string{"@/examples/..."}, deny: []string{"@/internal/...", "@/cmd/..."}, why: "examples use what every embedder can"},
	}
}

func guards() []guard {
	top := append([]string{"@/cmd/...", "@/examples/..."}, tools()...)
	tests := append([]string{"@/internal/testimage/...", "@/internal/testregistry/...", "@/internal/treecmp/..."}, tools()...)
	return []guard{
		{"@/vic/engine/...", top, "engine composes the libraries for commands and embedders"},
		{"@/vic/lab/...", top, "no library knows of the lab: it sees a vCenter"},
		{"@/examples/...", nil, "examples are programs"},
		{"@/internal/testimage/...", tests, "only tests use it"},
		{"@/internal/testregistry/...", tests, "only tests use it"},
		{"@/internal/seeded/...", tests, "only tests use it"},
		{"@/internal/treecmp/...", tests, "only tests use it"},
		{"@/internal/testlab/...", tools(), "only tests use it"},
		{"testing/...", []string{"@/internal/testlab/..."}, "testing is for tests"},
	}
}

// pkg is a package without its tests.
type pkg struct {
	ImportPath string
	Imports    []string
}

type checker struct {
	module string
	pkgs   map[string]pkg
}

func newChecker(module string, pkgs []pkg) *checker {
	c := &checker{module, map[string]pkg{}}
	for _, p := range pkgs {
		c.pkgs[p.ImportPath] = p
	}
	return c
}

// check returns a line for every violation, with importer, imported and rule.
func (c *checker) check(rules []rule, guards []guard) []string {
	var lines []string
	for path, p := range c.pkgs {
		if path != c.module && !strings.HasPrefix(path, c.module+"/") {
			continue
		}
		covered := false
		for _, r := range rules {
			if !c.matches(r.of, path) {
				continue
			}
			covered = true
			for _, chain := range c.imports(p, r.deep) {
				// What a forbidden import imports adds nothing to its line.
				denied := slices.IndexFunc(chain, func(imported string) bool {
					return c.matches(r.deny, imported) && !c.matches(r.allow, imported) && c.unit(imported) != c.unit(path)
				})
				if denied == len(chain)-1 {
					lines = append(lines, fmt.Sprintf("%s must not import %s: %s", c.short(path), c.join(chain), r.why))
				}
			}
		}
		if !covered {
			lines = append(lines, fmt.Sprintf("%s has no rule; add it to the table in imports_test.go", c.short(path)))
		}
		for _, g := range guards {
			for _, imported := range p.Imports {
				if c.matches([]string{g.imported}, imported) && !c.matches(g.by, path) && c.unit(imported) != c.unit(path) {
					lines = append(lines, fmt.Sprintf("%s must not import %s: %s", c.short(path), c.short(imported), g.why))
				}
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// imports returns the shortest way to each package that p imports: directly,
// or if deep is set at all.
func (c *checker) imports(p pkg, deep bool) [][]string {
	var chains [][]string
	seen := map[string]bool{p.ImportPath: true}
	extend := func(chain []string, imports []string) {
		for _, path := range imports {
			if !seen[path] {
				seen[path] = true
				chains = append(chains, append(slices.Clone(chain), path))
			}
		}
	}
	extend(nil, p.Imports)
	for i := 0; deep && i < len(chains); i++ {
		extend(chains[i], c.pkgs[chains[i][len(chains[i])-1]].Imports)
	}
	return chains
}

func (c *checker) matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if rest, ok := strings.CutPrefix(pattern, "@"); ok {
			pattern = c.module + rest
		}
		if base, ok := strings.CutSuffix(pattern, "/..."); ok {
			return path == base || strings.HasPrefix(path, base+"/")
		}
		return path == pattern
	})
}

// unit is what a package belongs to; it is the package itself outside of
// this module.
func (c *checker) unit(path string) string {
	rest, ok := strings.CutPrefix(path, c.module+"/")
	if !ok {
		return path
	}
	parts := strings.Split(rest, "/")
	switch parts[0] {
	case "vic", "internal", "cmd", "examples":
		return strings.Join(parts[:min(2, len(parts))], "/")
	}
	return parts[0]
}

func (c *checker) short(path string) string {
	if rest, ok := strings.CutPrefix(path, c.module+"/"); ok {
		return rest
	}
	return path
}

func (c *checker) join(chain []string) string {
	last := c.short(chain[len(chain)-1])
	if len(chain) == 1 {
		return last
	}
	var by []string
	for _, p := range chain[:len(chain)-1] {
		by = append(by, c.short(p))
	}
	return last + " (by " + strings.Join(by, ", ") + ")"
}

func TestImports(t *testing.T) {
	run := func(args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %q: %v\n%s", args, err, stderr.Bytes())
		}
		return out
	}
	module := strings.TrimSpace(string(run("list", "-m")))
	dec := json.NewDecoder(bytes.NewReader(run("list", "-deps", "-json=ImportPath,Imports", "./...")))
	var pkgs []pkg
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	for _, line := range newChecker(module, pkgs).check(rules(), guards()) {
		t.Error(line)
	}
}

// Each rule finds what it is for, and nothing else is found.
func TestImportRules(t *testing.T) {
	const m = "example.org/m"
	p := func(path string, imports ...string) pkg {
		path = strings.Replace(path, "@", m, 1)
		for i := range imports {
			imports[i] = strings.Replace(imports[i], "@", m, 1)
		}
		return pkg{path, imports}
	}
	vim := "github.com/vmware/govmomi/vim25"
	for _, tc := range []struct {
		name string
		pkgs []pkg
		want []string
	}{
		{"clean", []pkg{
			p("@"), p("@/vic", "@/internal/fault", "@/internal/vsphere", vim), p("@/vic/vch", "@/vic", "@/vic/vch/inner", "@/internal/chain"),
			p("@/vic/vch/inner", "@/vic"), p("@/vic/containervm", "@/vic/tether", "@/internal/ext4"),
			p("@/vic/tether", "golang.org/x/crypto/ssh", "@/internal/rpci"), p("@/internal/rpci"),
			p("@/vic/imagestore", "oras.land/oras-go/v2/content"), p("@/vic/registry", "oras.land/oras-go/v2/registry/remote"),
			p("@/vic/engine", "@/vic/vch", "@/vic/tether", "@/vic/registry"), p("@/vic/lab", vim, "@/bootiso", "@/internal/vmdk"),
			p("@/internal/chain", "@/vic", "@/internal/ext4", "@/internal/vmdk"), p("@/internal/ext4/inner"), p("@/internal/ext4", "@/internal/ext4/inner"),
			p("@/cmd/vic", "@/cmd/vic/inner", "@/vic/engine", "@/vic/lab"), p("@/cmd/vic/inner"),
			p("@/cmd/tether", "@/vic/tether", "github.com/vmware/govmomi/toolbox"), p("github.com/vmware/govmomi/toolbox", "github.com/vmware/govmomi/toolbox/hgfs"),
			p("@/bootiso", "@/vic/tether", "@/bootiso/modlist"), p("@/bootiso/modlist"), p("@/examples/hello", "@/vic/engine", "@/vic/lab"),
			p("@/internal/demo", "@/internal/testimage", "@/vic/lab"), p("@/internal/testimage"), p("github.com/x/y", "testing"),
		}, nil},
		{"root", []pkg{p("@", "@/vic")}, []string{"example.org/m must not import vic: the module's root is documentation"}},
		{"vic", []pkg{p("@/vic", "@/vic/vch")}, []string{"vic must not import vic/vch: vic is below every other public package"}},
		{"siblings", []pkg{p("@/vic/vch", "@/vic/imagestore"), p("@/vic/network", "@/vic/tether")}, []string{
			"vic/network must not import vic/tether: siblings exchange only values of vic",
			"vic/vch must not import vic/imagestore: siblings exchange only values of vic",
		}},
		{"containervm", []pkg{p("@/vic/containervm", "@/vic/vch")}, []string{"vic/containervm must not import vic/vch: containervm knows of its siblings tether only"}},
		{"imagestore", []pkg{p("@/vic/imagestore", "oras.land/oras-go/v2/registry/remote")},
			[]string{"vic/imagestore must not import oras.land/oras-go/v2/registry/remote: imagestore takes a Source and is no registry client"}},
		{"tether, far away", []pkg{p("@/vic/tether", "@/internal/rpci"), p("@/internal/rpci", "other.org/a"), p("other.org/a", vim),
			p(vim, "github.com/vmware/govmomi/vim25/soap")},
			[]string{"vic/tether must not import " + vim + " (by internal/rpci, other.org/a): tether runs in the guest"}},
		{"tether", []pkg{p("@/vic/tether", "@/vic")}, []string{"vic/tether must not import vic: tether runs in the guest"}},
		{"engine", []pkg{p("@/vic/engine", "@/cmd/vic")}, []string{"vic/engine must not import cmd/vic: engine is a library"}},
		{"lab", []pkg{p("@/vic/lab", "@/cmd/vic")}, []string{"vic/lab must not import cmd/vic: the lab is a library"}},
		{"vsphere", []pkg{p("@/internal/vsphere", "@/vic")}, []string{"internal/vsphere must not import vic: public packages stand on vsphere"}},
		{"chain", []pkg{p("@/internal/chain", "@/vic", "@/vic/imagestore")}, []string{"internal/chain must not import vic/imagestore: chain knows of the public packages vic only"}},
		{"fault", []pkg{p("@/internal/fault", "@/internal/rpci"), p("@/internal/rpci")}, []string{"internal/fault must not import internal/rpci: fault is below everything"}},
		{"ext4", []pkg{p("@/internal/ext4", "@/internal/vmdk"), p("@/internal/vmdk")}, []string{"internal/ext4 must not import internal/vmdk: ext4 is a pure format"}},
		{"vmdk", []pkg{p("@/internal/vmdk", vim)}, []string{"internal/vmdk must not import " + vim + ": vmdk is a pure format"}},
		{"other internal", []pkg{p("@/internal/rpci", "@/vic/tether")}, []string{"internal/rpci must not import vic/tether: internal packages are below the public ones"}},
		{"commands", []pkg{p("@/cmd/vic", "@/cmd/tether")}, []string{"cmd/vic must not import cmd/tether: commands do not share code, libraries do"}},
		{"PID 1", []pkg{p("@/cmd/tether", vim)}, []string{"cmd/tether must not import " + vim + ": the guest's PID 1 is no vSphere client"}},
		{"ISO", []pkg{p("@/bootiso", "@/vic/containervm")}, []string{"bootiso must not import vic/containervm: the ISO's builder knows of the run-time libraries tether only"}},
		{"examples", []pkg{p("@/examples/a", "@/internal/fault", "@/examples/b"), p("@/examples/b")}, []string{
			"examples/a must not import examples/b: examples are programs",
			"examples/a must not import internal/fault: examples use what every embedder can",
		}},
		{"who imports engine", []pkg{p("@/vic/lab", "@/vic/engine")}, []string{"vic/lab must not import vic/engine: engine composes the libraries for commands and embedders"}},
		{"who imports lab", []pkg{p("@/internal/vsphere", "@/vic/lab")}, []string{
			"internal/vsphere must not import vic/lab: no library knows of the lab: it sees a vCenter",
			"internal/vsphere must not import vic/lab: public packages stand on vsphere",
		}},
		{"who imports test images", []pkg{p("@/vic/lab", "@/internal/testimage", "@/internal/testlab", "@/internal/testregistry", "@/internal/treecmp")}, []string{
			"vic/lab must not import internal/testimage: only tests use it",
			"vic/lab must not import internal/testlab: only tests use it",
			"vic/lab must not import internal/testregistry: only tests use it",
			"vic/lab must not import internal/treecmp: only tests use it",
		}},
		{"testing", []pkg{p("@/vic", "testing/fstest")}, []string{"vic must not import testing/fstest: testing is for tests"}},
		{"unknown", []pkg{p("@/vic/manager"), p("@/pkg/util")}, []string{
			"pkg/util has no rule; add it to the table in imports_test.go",
			"vic/manager has no rule; add it to the table in imports_test.go",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := newChecker(m, tc.pkgs).check(rules(), guards())
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("violations: -want +got\n%s", d)
			}
		})
	}
}

// A reason names its rule in the planted violations above, so each rule has
// one of its own.
func TestImportRulesHaveReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules() {
		if r.why == "" || seen[r.why] {
			t.Errorf("rule for %q: its reason %q is empty or another's", r.of, r.why)
		}
		seen[r.why] = true
		if len(r.deny) == 0 && !slices.Equal(r.of, tools()) {
			t.Errorf("rule for %q denies nothing", r.of)
		}
	}
}
