package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/lab"
)

func targetFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "target", EnvVars: []string{"VIC_TARGET"}, Usage: "the vCenter's `URL`; without it, the lab that is up"},
		&cli.StringFlag{Name: "user", EnvVars: []string{"VIC_USER"}, Usage: "login `NAME`; the password is taken from VIC_PASSWORD or --password-file"},
		&cli.PathFlag{Name: "password-file", Usage: "`FILE` that holds the password"},
		&cli.StringFlag{Name: "thumbprint", EnvVars: []string{"VIC_THUMBPRINT"}, Usage: "`SHA256` of the server's certificate, where no authority vouches for it"},
		&cli.PathFlag{Name: "ca", EnvVars: []string{"VIC_CA"}, Usage: "`FILE` of certificates that may sign the server's"},
		&cli.StringFlag{Name: "datacenter", EnvVars: []string{"VIC_DATACENTER"}, Usage: "`NAME`, where there are several"},
		&cli.StringFlag{Name: "guest-proxy", EnvVars: []string{"VIC_GUEST_PROXY"}, Usage: "`URL` of an HTTP proxy into the containers' networks, where they are not reached directly"},
		&cli.StringSliceFlag{Name: "guest-network", EnvVars: []string{"VIC_GUEST_NETWORK"}, Usage: "`CIDR` of a network where containers with leases are reached; without it, any address that may be one"},
		&cli.PathFlag{Name: "authority", EnvVars: []string{"VIC_AUTHORITY"}, Usage: "`FILE` with the key that certifies controllers to containers; made where it does not exist"},
		&cli.PathFlag{Name: "lab", EnvVars: []string{"VIC_LAB"}, Usage: "`DIR` of the lab", Value: defaultLab()},
		&cli.StringFlag{Name: "vch", EnvVars: []string{"VIC_VCH"}, Usage: "`NAME` of the VCH, where there are several"},
		&cli.BoolFlag{Name: "debug", EnvVars: []string{"VIC_DEBUG"}, Usage: "say what is done, on standard error"},
	}
}

func defaultLab() string {
	if d := os.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "vic", "lab")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "vic", "lab")
}

func logger(c *cli.Context) *slog.Logger {
	if !c.Bool("debug") {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// connect logs in to the vCenter that the flags name, or to the lab.
func connect(c *cli.Context) (*vic.Client, error) {
	cfg, err := config(c)
	if err != nil {
		return nil, err
	}
	cfg.Datacenter = c.String("datacenter")
	cfg.Logger = logger(c)
	return vic.Connect(c.Context, cfg)
}

func config(c *cli.Context) (vic.Config, error) {
	if c.String("target") == "" {
		st, err := lab.Status(c.Path("lab"))
		if err != nil {
			return vic.Config{}, usageError("no --target is given and no lab is up at %s (%v): run \"vic lab up\"", c.Path("lab"), err)
		}
		return st.Config()
	}
	cfg := vic.Config{URL: c.String("target"), User: c.String("user"), Password: os.Getenv("VIC_PASSWORD"), Thumbprint: c.String("thumbprint")}
	if f := c.Path("password-file"); f != "" {
		b, err := os.ReadFile(f)
		if err != nil {
			return cfg, err
		}
		cfg.Password = trimNewline(string(b))
	}
	if f := c.Path("ca"); f != "" {
		b, err := os.ReadFile(f)
		if err != nil {
			return cfg, err
		}
		cfg.CA = b
	}
	if s := c.String("guest-proxy"); s != "" {
		u, err := url.Parse(s)
		if err != nil {
			return cfg, usageError("--guest-proxy: %v", err)
		}
		if cfg.DialGuest, err = vic.ProxyDialer(u); err != nil {
			return cfg, err
		}
	}
	for _, s := range c.StringSlice("guest-network") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return cfg, usageError("--guest-network: %v", err)
		}
		cfg.GuestNetworks = append(cfg.GuestNetworks, p)
	}
	file := c.Path("authority")
	if file == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return cfg, usageError("--authority: %v", err)
		}
		file = filepath.Join(dir, "vic", "authority.pem")
	}
	var err error
	cfg.Authority, err = vic.OpenAuthority(file)
	return cfg, err
}

func trimNewline(s string) string {
	for len(s) > 0 && (s[len(s)-1] == '\n' || s[len(s)-1] == '\r') {
		s = s[:len(s)-1]
	}
	return s
}

// withClient connects, calls f and logs out.
func withClient(c *cli.Context, f func(ctx context.Context, cl *vic.Client) error) error {
	cl, err := connect(c)
	if err != nil {
		return err
	}
	err = f(c.Context, cl)
	return errors.Join(err, cl.Close(context.WithoutCancel(c.Context)))
}

// withEngine connects and opens the VCH.
func withEngine(c *cli.Context, f func(ctx context.Context, e *engine.Engine) error) error {
	return withClient(c, func(ctx context.Context, cl *vic.Client) error {
		reg, err := registryOptions(c)
		if err != nil {
			return err
		}
		e, err := engine.Open(ctx, cl, c.String("vch"), &engine.Options{Registry: reg})
		if err != nil {
			return err
		}
		return f(ctx, e)
	})
}
