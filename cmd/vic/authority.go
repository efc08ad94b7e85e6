package main

import (
	"context"
	"crypto"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/engine"
)

func authorityCommand() *cli.Command {
	return &cli.Command{
		Name: "authority", Usage: "who may control the containers of a VCH",
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "print the public keys of the authorities that the VCH trusts",
				Action: func(c *cli.Context) error {
					if err := args(c, 0, 0); err != nil {
						return err
					}
					return withEngine(c, func(_ context.Context, e *engine.Engine) error {
						for _, k := range e.Authorities() {
							fmt.Println(k)
						}
						return nil
					})
				},
			},
			{
				Name: "set", ArgsUsage: "FILE…",
				Usage: "have all containers, running ones too, trust these authorities and no others",
				Description: "A FILE holds a key as --authority takes it, or a public key as \"vic authority ls\" prints it.\n" +
					"That of --authority must be among them. To replace it: set the old and the new one, have\n" +
					"everybody use the new one, and with that set the new one alone. Prints the containers that\n" +
					"trust them; done again where some do not answer, it does what is left.",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "lost", Usage: "nobody has a key that the VCH trusts: containers trust the new ones when they are started again"},
				},
				Action: func(c *cli.Context) error {
					if err := args(c, 1, -1); err != nil {
						return err
					}
					var keys []crypto.PublicKey
					for _, f := range c.Args().Slice() {
						k, err := vic.ReadAuthority(f)
						if err != nil {
							return err
						}
						keys = append(keys, k)
					}
					return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
						done, err := e.RotateAuthority(ctx, keys, &engine.RotateOptions{Lost: c.Bool("lost")})
						for _, name := range done {
							fmt.Println(name)
						}
						return err
					})
				},
			},
		},
	}
}
