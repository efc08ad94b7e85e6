package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/registry"
)

func TestRegistryOptions(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := registry.Options{CertsDir: "/etc/docker/certs.d", DockerConfig: registry.DockerConfigPath()}
	with := func(f func(*registry.Options)) registry.Options {
		o := base
		f(&o)
		return o
	}
	for _, tc := range []struct {
		name, of string
		args     []string
		env      string // of VIC_ALLOW_REGISTRY
		want     registry.Options
	}{
		{"nothing", "r.example", nil, "", base},
		{"plain", "r.example", []string{"--plain-http", "r.example", "--registry-ca", ca}, "", with(func(o *registry.Options) { o.PlainHTTP = true })},
		{"not plain", "s.example", []string{"--plain-http", "r.example", "--registry-ca", ca}, "", with(func(o *registry.Options) { o.CA = []byte("PEM") })},
		{"mirror of docker.io", "docker.io", []string{"--registry-mirror", "http://m.example", "--registry-mirror", "r.example=n.example/x"}, "",
			with(func(o *registry.Options) { o.Mirrors = []string{"http://m.example"} })},
		{"mirror of another", "r.example", []string{"--registry-mirror", "http://m.example", "--registry-mirror", "r.example=n.example/x"}, "",
			with(func(o *registry.Options) { o.Mirrors = []string{"n.example/x"} })},
		{"lists", "r.example", []string{"--allow-registry", "*.example", "--deny-registry", "10.0.0.0/8", "--allow-redirect", "cdn.example", "--insecure-registry", "a,b"}, "",
			with(func(o *registry.Options) {
				o.Allow, o.Deny, o.Redirects = []string{"*.example"}, []string{"10.0.0.0/8"}, []string{"cdn.example"}
				o.InsecureRegistries = []string{"a", "b"}
			})},
		{"environment", "r.example", nil, "a, b", with(func(o *registry.Options) { o.Allow = []string{"a", "b"} })},
		{"no docker", "r.example", []string{"--docker-config", "", "--registry-certs", ""}, "", registry.Options{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("VIC_ALLOW_REGISTRY", tc.env)
			var got registry.Options
			a := &cli.App{Flags: registryFlags(), DisableSliceFlagSeparator: true, Action: func(c *cli.Context) error {
				f, err := registryOptions(c)
				if err == nil {
					got = *f(registry.Name{Registry: tc.of})
				}
				return err
			}}
			if err := a.Run(append([]string{"vic"}, tc.args...)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreFields(registry.Options{}, "Logger")); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}
