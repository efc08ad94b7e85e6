package imagestore

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Changes of an image's configuration (OCI image specification, config.md). What
// is nil or empty stays as it is.
type Changes struct {
	// Env are NAME=VALUE; a name that is there gets the new value.
	Env []string
	// Entrypoint and Cmd replace what is there; empty and not nil removes it.
	// A new Entrypoint removes the Cmd unless there is a new one too.
	Entrypoint, Cmd []string
	// WorkingDir may be relative to the one that is there.
	WorkingDir string
	User       string
	Labels     map[string]string
	// ExposedPorts are PORT or PORT/PROTOCOL, added to those that are there.
	ExposedPorts []string
	// Volumes are paths, added to those that are there.
	Volumes    []string
	StopSignal string
}

// apply changes a configuration.
func (ch *Changes) apply(c *ocispec.ImageConfig) error {
	for _, kv := range ch.Env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) {
			return fault.Of(vic.ErrInvalid, "Env %q: want NAME=VALUE", kv)
		}
		i := slices.IndexFunc(c.Env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if i < 0 {
			c.Env = append(c.Env, kv)
		} else {
			c.Env[i] = kv
		}
	}
	if ch.Entrypoint != nil {
		c.Entrypoint, c.Cmd = slices.Clone(ch.Entrypoint), nil
	}
	if ch.Cmd != nil {
		c.Cmd = slices.Clone(ch.Cmd)
	}
	if ch.WorkingDir != "" {
		dir := ch.WorkingDir
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.WorkingDir, dir)
		}
		c.WorkingDir = path.Clean(dir)
	}
	if ch.User != "" {
		c.User = ch.User
	}
	if ch.StopSignal != "" {
		if n, err := strconv.Atoi(ch.StopSignal); err == nil && (n < 1 || n > 64) || err != nil && !strings.HasPrefix(ch.StopSignal, "SIG") {
			return fault.Of(vic.ErrInvalid, "StopSignal %q: want a name such as SIGTERM, or a number", ch.StopSignal)
		}
		c.StopSignal = ch.StopSignal
	}
	if len(ch.Labels) > 0 {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, ch.Labels)
	}
	for _, p := range ch.ExposedPorts {
		ports, err := parsePorts(p)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if c.ExposedPorts == nil {
				c.ExposedPorts = map[string]struct{}{}
			}
			c.ExposedPorts[p] = struct{}{}
		}
	}
	for _, v := range ch.Volumes {
		if !path.IsAbs(v) {
			return fault.Of(vic.ErrInvalid, "Volumes: %q is no absolute path", v)
		}
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[path.Clean(v)] = struct{}{}
	}
	return nil
}

// parsePorts reads PORT, FIRST-LAST, with or without /PROTOCOL.
func parsePorts(s string) ([]string, error) {
	bad := func() ([]string, error) {
		return nil, fault.Of(vic.ErrInvalid, "ExposedPorts: %q: want PORT, or FIRST-LAST, and /tcp, /udp or /sctp", s)
	}
	r, protocol, ok := strings.Cut(s, "/")
	if !ok {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	lo, hi, ok := strings.Cut(r, "-")
	if !ok {
		hi = lo
	}
	a, errA := strconv.ParseUint(lo, 10, 16)
	b, errB := strconv.ParseUint(hi, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return bad()
	}
	var out []string
	for ; a <= b; a++ {
		out = append(out, fmt.Sprintf("%d/%s", a, protocol))
	}
	return out, nil
}

// instruct applies instructions in the form that a Dockerfile has: CMD,
// ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR. Variables
// ($NAME, ${NAME}, ${NAME:-other}, ${NAME:+other}) are those of the
// configuration as it is before the instruction, except in CMD and ENTRYPOINT.
func instruct(c *ocispec.ImageConfig, lines []string) error {
	cmd := false
	for _, line := range lines {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		word, rest = strings.ToUpper(word), strings.TrimSpace(rest)
		ch, err := instruction(word, rest, c.Env)
		if err == nil {
			if word == "ENTRYPOINT" && cmd && ch.Cmd == nil {
				ch.Cmd = c.Cmd // given before it
			}
			cmd = cmd || word == "CMD"
			err = ch.apply(c)
		}
		if err != nil {
			return fault.As(vic.ErrInvalid, fmt.Errorf("instruction %.200q: %w", line, err))
		}
	}
	return nil
}

func instruction(word, rest string, env []string) (*Changes, error) {
	ch := &Changes{}
	if rest == "" {
		return nil, fault.Of(vic.ErrInvalid, "it says nothing")
	}
	if word == "CMD" || word == "ENTRYPOINT" {
		list, ok := jsonList(rest)
		if !ok {
			list = []string{"/bin/sh", "-c", rest}
		}
		if word == "CMD" {
			ch.Cmd = list
		} else {
			ch.Entrypoint = list
		}
		return ch, nil
	}
	switch word {
	case "ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR":
	case "ADD", "COPY", "RUN", "FROM", "ARG", "ONBUILD", "HEALTHCHECK", "SHELL", "MAINTAINER":
		return nil, fault.Of(vic.ErrUnsupported, "%s cannot be applied to an image that is there", word)
	default:
		return nil, fault.Of(vic.ErrInvalid, "no such instruction")
	}
	if word == "VOLUME" {
		if list, ok := jsonList(rest); ok {
			ch.Volumes = list
			return ch, nil
		}
	}
	words, err := splitWords(rest, env)
	if err != nil {
		return nil, err
	}
	one := func(to *string) error {
		if len(words) != 1 {
			return fault.Of(vic.ErrInvalid, "want one word; quote spaces")
		}
		*to = words[0].text
		return nil
	}
	switch word {
	case "ENV", "LABEL":
		pairs, err := keyValues(words, rest, env)
		if err != nil {
			return nil, err
		}
		if word == "LABEL" {
			ch.Labels = map[string]string{}
		}
		for _, p := range pairs {
			if word == "ENV" {
				ch.Env = append(ch.Env, p[0]+"="+p[1])
			} else {
				ch.Labels[p[0]] = p[1]
			}
		}
	case "EXPOSE":
		for _, w := range words {
			ch.ExposedPorts = append(ch.ExposedPorts, w.text)
		}
	case "VOLUME":
		for _, w := range words {
			ch.Volumes = append(ch.Volumes, w.text)
		}
	case "STOPSIGNAL":
		err = one(&ch.StopSignal)
	case "USER":
		err = one(&ch.User)
	case "WORKDIR":
		err = one(&ch.WorkingDir)
	}
	return ch, err
}

func jsonList(s string) ([]string, bool) {
	list := []string{}
	return list, strings.HasPrefix(s, "[") && json.Unmarshal([]byte(s), &list) == nil && list != nil
}

// keyValues reads KEY=VALUE…, or KEY and all the rest as its value.
func keyValues(words []word, rest string, env []string) ([][2]string, error) {
	if words[0].equals < 0 {
		key, value, ok := strings.Cut(rest, " ")
		if !ok {
			return nil, fault.Of(vic.ErrInvalid, "%q has no value", rest)
		}
		value, err := expand(strings.TrimSpace(value), env)
		return [][2]string{{key, value}}, err
	}
	var out [][2]string
	for _, w := range words {
		if w.equals <= 0 {
			return nil, fault.Of(vic.ErrInvalid, "%q: want KEY=VALUE", w.text)
		}
		out = append(out, [2]string{w.text[:w.equals], w.text[w.equals+1:]})
	}
	return out, nil
}

// word is a word without its quotes; equals is where its first "=" is that was
// not quoted, or -1.
type word struct {
	text   string
	equals int
}

// splitWords splits at spaces that are not quoted, and expands variables.
func splitWords(s string, env []string) ([]word, error) {
	var out []word
	for s = strings.TrimLeft(s, " \t"); s != ""; s = strings.TrimLeft(s, " \t") {
		w := word{equals: -1}
		var b strings.Builder
		var quote byte
		for s != "" && (quote != 0 || s[0] != ' ' && s[0] != '\t') {
			c := s[0]
			s = s[1:]
			switch {
			case quote == c:
				quote = 0
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
			case c == '\\' && quote != '\'':
				if s == "" {
					return nil, fault.Of(vic.ErrInvalid, "a backslash at the end")
				}
				if quote == '"' && !strings.ContainsRune("\"\\$", rune(s[0])) {
					b.WriteByte('\\')
				}
				b.WriteByte(s[0])
				s = s[1:]
			case c == '$' && quote != '\'':
				v, after, err := variable(s, env)
				if err != nil {
					return nil, err
				}
				b.WriteString(v)
				s = after
			default:
				if c == '=' && w.equals < 0 {
					w.equals = b.Len()
				}
				b.WriteByte(c)
			}
		}
		if quote != 0 {
			return nil, fault.Of(vic.ErrInvalid, "a quote %c is not closed", quote)
		}
		w.text = b.String()
		out = append(out, w)
	}
	return out, nil
}

// expand expands variables in a text that is not split.
func expand(s string, env []string) (string, error) {
	var b strings.Builder
	for s != "" {
		c := s[0]
		s = s[1:]
		switch {
		case c == '\\' && s != "":
			b.WriteByte(s[0])
			s = s[1:]
		case c == '$':
			v, after, err := variable(s, env)
			if err != nil {
				return "", err
			}
			b.WriteString(v)
			s = after
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// variable expands what follows a "$" and returns the rest.
func variable(s string, env []string) (value, rest string, err error) {
	name := func(s string) int {
		i := strings.IndexFunc(s, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		})
		if i < 0 {
			return len(s)
		}
		return i
	}
	get := func(n string) string {
		for _, kv := range env {
			if k, v, _ := strings.Cut(kv, "="); k == n {
				return v
			}
		}
		return ""
	}
	if !strings.HasPrefix(s, "{") {
		n := name(s)
		if n == 0 {
			return "$", s, nil
		}
		return get(s[:n]), s[n:], nil
	}
	inner, rest, ok := strings.Cut(s[1:], "}")
	n := name(inner)
	if !ok || n == 0 {
		return "", "", fault.Of(vic.ErrInvalid, "variable ${%.50s: want ${NAME}, ${NAME:-other} or ${NAME:+other}", inner)
	}
	v := get(inner[:n])
	switch op, other := inner[n:min(n+2, len(inner))], inner[min(n+2, len(inner)):]; op {
	case "":
	case ":-":
		if v == "" {
			v = other
		}
	case ":+":
		if v != "" {
			v = other
		}
	default:
		return "", "", fault.Of(vic.ErrInvalid, "variable ${%.50s}: want ${NAME}, ${NAME:-other} or ${NAME:+other}", inner)
	}
	return v, rest, nil
}
