package main

import (
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/registry"
)

func registryFlags() []cli.Flag {
	list := func(name, env, usage string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, EnvVars: []string{env}, Usage: usage}
	}
	return []cli.Flag{
		list("plain-http", "VIC_PLAIN_HTTP", "`REGISTRY` that is spoken to without TLS"),
		list("insecure-registry", "VIC_INSECURE_REGISTRY", "`HOST`, *.DOMAIN or network whose certificates are not looked at, and that may speak no TLS"),
		&cli.PathFlag{Name: "registry-ca", EnvVars: []string{"VIC_REGISTRY_CA"}, Usage: "`FILE` of certificates that may sign a registry's"},
		&cli.PathFlag{Name: "registry-certs", EnvVars: []string{"VIC_REGISTRY_CERTS"}, Usage: "`DIR` laid out as Docker's", Value: "/etc/docker/certs.d"},
		list("registry-mirror", "VIC_REGISTRY_MIRROR", "`[REGISTRY=]HOST[/PREFIX]` that is asked before a registry, docker.io if none is named"),
		list("allow-registry", "VIC_ALLOW_REGISTRY", "`HOST`, *.DOMAIN or network: only these are pulled from, and only they may redirect to one another"),
		list("deny-registry", "VIC_DENY_REGISTRY", "`HOST`, *.DOMAIN or network that nothing is pulled from"),
		list("allow-redirect", "VIC_ALLOW_REDIRECT", "`HOST`, *.DOMAIN or network that registries may redirect to, besides"),
		&cli.PathFlag{Name: "docker-config", EnvVars: []string{"VIC_DOCKER_CONFIG"}, Usage: "`FILE` with logins, as docker login makes it", Value: registry.DockerConfigPath()},
	}
}

// listFlag returns a flag's values, of which one may hold several, separated
// by commas, as the environment does.
func listFlag(c *cli.Context, name string) []string {
	var out []string
	for _, v := range c.StringSlice(name) {
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

func registryOptions(c *cli.Context) (func(registry.Name) *registry.Options, error) {
	var ca []byte
	if f := c.Path("registry-ca"); f != "" {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		ca = b
	}
	mirrors := map[string][]string{}
	for _, s := range listFlag(c, "registry-mirror") {
		of, mirror, ok := strings.Cut(s, "=")
		if !ok {
			of, mirror = "docker.io", s
		}
		mirrors[of] = append(mirrors[of], mirror)
	}
	plain := listFlag(c, "plain-http")
	base := registry.Options{
		InsecureRegistries: listFlag(c, "insecure-registry"),
		CertsDir:           c.Path("registry-certs"),
		DockerConfig:       c.Path("docker-config"),
		Allow:              listFlag(c, "allow-registry"),
		Deny:               listFlag(c, "deny-registry"),
		Redirects:          listFlag(c, "allow-redirect"),
		Logger:             logger(c),
	}
	return func(n registry.Name) *registry.Options {
		o := base
		o.Mirrors = mirrors[n.Registry]
		if o.PlainHTTP = slices.Contains(plain, n.Registry); !o.PlainHTTP || len(o.Mirrors) > 0 {
			o.CA = ca
		}
		return &o
	}, nil
}
