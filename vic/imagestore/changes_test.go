package imagestore_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

func TestInstructions(t *testing.T) {
	base := func() ocispec.ImageConfig {
		return ocispec.ImageConfig{
			Env: []string{"PATH=/bin", "A=old"}, Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, WorkingDir: "/srv",
			Labels: map[string]string{"keep": "1"}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
		}
	}
	for _, c := range []struct {
		lines string // separated by newlines
		want  func(*ocispec.ImageConfig)
		kind  error
		text  string
	}{
		{lines: "ENV A=new", want: func(c *ocispec.ImageConfig) { c.Env[1] = "A=new" }},
		{lines: "env B=1 C='two words' D=\"$A\\\"q\" E='$A' F=x\\ y G=", want: func(c *ocispec.ImageConfig) {
			c.Env = append(c.Env, "B=1", "C=two words", `D=old"q`, "E=$A", "F=x y", "G=")
		}},
		{lines: "ENV B  the rest = of it $A", want: func(c *ocispec.ImageConfig) { c.Env = append(c.Env, "B=the rest = of it old") }},
		{lines: "ENV PATH=$PATH:/x:${HOME:-/root}${A:+:set}${NONE:+no}$", want: func(c *ocispec.ImageConfig) { c.Env[0] = "PATH=/bin:/x:/root:set$" }},
		{lines: "ENV A=1\nENV B=$A", want: func(c *ocispec.ImageConfig) { c.Env[1] = "A=1"; c.Env = append(c.Env, "B=1") }},
		{lines: `CMD ["a", "b c"]`, want: func(c *ocispec.ImageConfig) { c.Cmd = []string{"a", "b c"} }},
		{lines: "CMD echo $A", want: func(c *ocispec.ImageConfig) { c.Cmd = []string{"/bin/sh", "-c", "echo $A"} }},
		{lines: `ENTRYPOINT ["e"]`, want: func(c *ocispec.ImageConfig) { c.Entrypoint, c.Cmd = []string{"e"}, nil }},
		{lines: "ENTRYPOINT []\nCMD x", want: func(c *ocispec.ImageConfig) { c.Entrypoint, c.Cmd = []string{}, []string{"/bin/sh", "-c", "x"} }},
		{lines: "CMD [\"x\"]\nENTRYPOINT [\"e\"]", want: func(c *ocispec.ImageConfig) { c.Entrypoint, c.Cmd = []string{"e"}, []string{"x"} }},
		{lines: "WORKDIR sub/dir", want: func(c *ocispec.ImageConfig) { c.WorkingDir = "/srv/sub/dir" }},
		{lines: "WORKDIR /a/../b", want: func(c *ocispec.ImageConfig) { c.WorkingDir = "/b" }},
		{lines: "USER 1000:1000", want: func(c *ocispec.ImageConfig) { c.User = "1000:1000" }},
		{lines: "LABEL a=b keep=2 \"with space\"=x", want: func(c *ocispec.ImageConfig) {
			c.Labels = map[string]string{"a": "b", "keep": "2", "with space": "x"}
		}},
		{lines: "EXPOSE 443 53/udp 8000-8002/TCP", want: func(c *ocispec.ImageConfig) {
			for _, p := range []string{"443/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp"} {
				c.ExposedPorts[p] = struct{}{}
			}
		}},
		{lines: "VOLUME /data /more/", want: func(c *ocispec.ImageConfig) { c.Volumes = map[string]struct{}{"/data": {}, "/more": {}} }},
		{lines: `VOLUME ["/with space"]`, want: func(c *ocispec.ImageConfig) { c.Volumes = map[string]struct{}{"/with space": {}} }},
		{lines: "STOPSIGNAL SIGQUIT", want: func(c *ocispec.ImageConfig) { c.StopSignal = "SIGQUIT" }},
		{lines: "STOPSIGNAL 9", want: func(c *ocispec.ImageConfig) { c.StopSignal = "9" }},

		{lines: "RUN true", kind: vic.ErrUnsupported, text: "RUN"},
		{lines: "HEALTHCHECK NONE", kind: vic.ErrUnsupported, text: "HEALTHCHECK"},
		{lines: "EVN A=b", kind: vic.ErrInvalid, text: "no such instruction"},
		{lines: "ENV", kind: vic.ErrInvalid, text: "says nothing"},
		{lines: "ENV A", kind: vic.ErrInvalid, text: "no value"},
		{lines: "ENV A=b C", kind: vic.ErrInvalid, text: "KEY=VALUE"},
		{lines: "ENV =b", kind: vic.ErrInvalid, text: "KEY=VALUE"},
		{lines: "ENV A='b", kind: vic.ErrInvalid, text: "not closed"},
		{lines: "ENV A=${B", kind: vic.ErrInvalid, text: "want ${NAME}"},
		{lines: "ENV A=${B:?no}", kind: vic.ErrInvalid, text: "want ${NAME}"},
		{lines: "USER a b", kind: vic.ErrInvalid, text: "one word"},
		{lines: "EXPOSE 0", kind: vic.ErrInvalid, text: "ExposedPorts"},
		{lines: "EXPOSE 70000", kind: vic.ErrInvalid, text: "ExposedPorts"},
		{lines: "EXPOSE 80/icmp", kind: vic.ErrInvalid, text: "ExposedPorts"},
		{lines: "VOLUME data", kind: vic.ErrInvalid, text: "absolute"},
		{lines: "STOPSIGNAL quit", kind: vic.ErrInvalid, text: "StopSignal"},
	} {
		got, want := base(), base()
		err := imagestore.Instruct(&got, strings.Split(c.lines, "\n"))
		if c.text != "" {
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v; want one of kind %v with %q", c.lines, err, c.kind, c.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.lines, err)
			continue
		}
		c.want(&want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", c.lines, d)
		}
	}
}

// What a configuration has that is not known here stays.
func TestDeriveKeepsWhatItDoesNotKnow(t *testing.T) {
	const parent = `{"architecture":"amd64","os":"linux","docker_version":"20","container":"abc","container_config":{"Cmd":["x"]},
		"config":{"Env":["A=b"],"Healthcheck":{"Test":["CMD","true"]},"OnBuild":["RUN x"],"Cmd":["old"],"Image":""},
		"rootfs":{"type":"layers","diff_ids":["sha256:1111111111111111111111111111111111111111111111111111111111111111"]}}`
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	b, err := imagestore.Derive(&imagestore.ConfigOptions{
		Author: "me", Comment: "why", CreatedBy: "sh", Created: at, Changes: imagestore.Changes{Cmd: []string{}, User: "u"},
	}, []byte(parent), "sha256:2222222222222222222222222222222222222222222222222222222222222222")
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	const result = `{"architecture":"amd64","os":"linux","docker_version":"20","author":"me","created":"2024-05-06T07:08:09Z",
		"config":{"Env":["A=b"],"Healthcheck":{"Test":["CMD","true"]},"OnBuild":["RUN x"],"Image":"","User":"u"},
		"history":[{"comment":"no history is known of this layer"},{"created":"2024-05-06T07:08:09Z","created_by":"sh","author":"me","comment":"why"}],
		"rootfs":{"type":"layers","diff_ids":["sha256:1111111111111111111111111111111111111111111111111111111111111111","sha256:2222222222222222222222222222222222222222222222222222222222222222"]}}`
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal([]byte(result), &want)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for _, ch := range []imagestore.Changes{{Env: []string{"novalue"}}, {Env: []string{"=x"}}, {Volumes: []string{"rel"}}, {ExposedPorts: []string{"x"}}, {StopSignal: "99"}} {
		if _, err := imagestore.Derive(&imagestore.ConfigOptions{Changes: ch}, []byte(parent), ""); !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("%+v: %v", ch, err)
		}
	}
}

func FuzzInstruct(f *testing.F) {
	for _, s := range []string{"ENV A=b", `ENV A="${B:-c}" D='e'`, `CMD ["x"]`, "EXPOSE 1-3/udp", "LABEL a b", "ENV A=\\", "VOLUME [\"\"]", "ENV A=$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := ocispec.ImageConfig{Env: []string{"PATH=/bin"}}
		if err := imagestore.Instruct(&c, []string{s}); err != nil && !errors.Is(err, vic.ErrInvalid) && !errors.Is(err, vic.ErrUnsupported) {
			t.Fatal(err)
		}
	})
}
