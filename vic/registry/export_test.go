package registry

import (
	"net/http"
	"net/netip"
	"time"
)

// What the tests look at from inside.

// Challenge is a parsed challenge.
type Challenge struct {
	Scheme string
	Params map[string]string
}

// ParseChallenges is parseChallenges.
func ParseChallenges(lines []string) []Challenge {
	var out []Challenge
	for _, c := range parseChallenges(lines) {
		out = append(out, Challenge{c.scheme, c.params})
	}
	return out
}

// JudgeAddress says whether a host at an address may be spoken to, where the
// registry itself is at near.
func JudgeAddress(o *Options, host, port string, own bool, at, near netip.Addr) error {
	p, err := newPolicy(o)
	if err != nil {
		return err
	}
	return p.judgeAddress(host, port, own, at, reachOf(near))
}

// RetryAfter is what an answer asks to wait.
func RetryAfter(value string, now time.Time) time.Duration {
	return retryAfter(&http.Response{Header: http.Header{"Retry-After": {value}}}, now)
}

// Parsers of headers.
var (
	ParseContentRange = parseContentRange
	ParseRate         = parseRate
	UploadRange       = uploadRange
	Exempt            = exempt
	RedactText        = redactText
	DocumentType      = documentType
)
