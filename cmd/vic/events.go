package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "print what happens to containers, as vSphere tells it",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "since", Usage: "from `TIME` on: RFC 3339, seconds since 1970, or how long ago, such as 10m"},
			&cli.StringFlag{Name: "until", Usage: "up to `TIME`; without it, until interrupted"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "only `KEY=VALUE`: container, image, event; one of the values of each key"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c, 0, 0); err != nil {
				return err
			}
			var o containervm.EventOptions
			if err := readTimes(c, &o.Since, &o.Until); err != nil {
				return err
			}
			for _, f := range c.StringSlice("filter") {
				k, v, ok := strings.Cut(f, "=")
				switch {
				case !ok || v == "":
					return usageError("--filter %q: want KEY=VALUE", f)
				case k == "container":
					o.Containers = append(o.Containers, v)
				case k == "image":
					o.Images = append(o.Images, v)
				case k == "event":
					o.Actions = append(o.Actions, containervm.Action(v))
				default:
					return usageError("--filter %q: the keys are container, image and event", f)
				}
			}
			out := json.NewEncoder(os.Stdout)
			return withEngine(c, func(ctx context.Context, e *engine.Engine) error {
				err := e.Events(ctx, &o, func(ev containervm.Event) error {
					if c.Bool("json") {
						return out.Encode(ev)
					}
					_, err := fmt.Println(eventLine(ev))
					return err
				})
				if ctx.Err() != nil && errors.Is(err, context.Canceled) {
					return nil // as it was asked to
				}
				return err
			})
		},
	}
}

// eventLine is an event for people.
func eventLine(e containervm.Event) string {
	more := []string{"name=" + e.Name, "image=" + e.Image}
	if e.ExitCode != nil {
		more = append(more, "exitCode="+strconv.Itoa(*e.ExitCode))
	}
	if e.Host != "" {
		more = append(more, "host="+e.Host)
	}
	if e.User != "" {
		more = append(more, "user="+e.User)
	}
	return fmt.Sprintf("%s container %s %s (%s)", e.Time.Format(time.RFC3339Nano), e.Action, e.ID, strings.Join(more, ", "))
}
