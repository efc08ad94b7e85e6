package registry

import "strings"

// A challenge is one entry of a WWW-Authenticate header.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

const maxChallenges = 16

// parseChallenges reads the WWW-Authenticate headers of an answer (RFC 9110,
// section 11.6.1): several challenges may share a line, and a challenge has
// either one token68 or parameters. Names are in lower case. What cannot be
// read ends its line.
func parseChallenges(lines []string) []challenge {
	var out []challenge
	for _, s := range lines {
		for len(out) < maxChallenges {
			s = strings.TrimLeft(s, " \t,")
			var scheme string
			if scheme, s = token(s); scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			s = c.parse(s)
			out = append(out, c)
		}
	}
	return out
}

// parse reads what belongs to a challenge and returns what follows it.
func (c *challenge) parse(s string) string {
	s = strings.TrimLeft(s, " \t")
	for {
		rest := strings.TrimLeft(s, " \t,")
		name, rest := token(rest)
		if name == "" {
			return skipToken68(s)
		}
		rest = strings.TrimLeft(rest, " \t")
		if !strings.HasPrefix(rest, "=") {
			return s // the next challenge's scheme
		}
		rest = strings.TrimLeft(rest[1:], " \t")
		var value string
		switch {
		case strings.HasPrefix(rest, `"`):
			var ok bool
			if value, rest, ok = quoted(rest); !ok {
				return ""
			}
		default:
			if value, rest = token(rest); value == "" {
				return skipToken68(s) // "Negotiate YWJj=="
			}
		}
		if name = strings.ToLower(name); len(c.params) < maxChallenges {
			if _, twice := c.params[name]; !twice {
				c.params[name] = value
			}
		}
		s = rest
	}
}

// skipToken68 drops up to the next comma.
func skipToken68(s string) string {
	if _, rest, ok := strings.Cut(s, ","); ok {
		return rest
	}
	return ""
}

// token cuts a token (RFC 9110, section 5.6.2) off.
func token(s string) (tok, rest string) {
	i := 0
	for i < len(s) && (s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || s[i] >= '0' && s[i] <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) >= 0) {
		i++
	}
	return s[:i], s[i:]
}

// quoted reads a quoted-string (RFC 9110, section 5.6.4).
func quoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
