// Package registry opens repositories of OCI registries: to pull from, to push
// to, to list.
//
//	n, err := registry.ParseName("alpine:3.22")
//	repo, err := registry.Open(n, &registry.Options{DockerConfig: registry.DockerConfigPath()})
//	img, err := images.Pull(ctx, repo, n.String(), nil)
//
// A [Repository] satisfies an image store's Source (Resolve, Fetch) and what
// pushing takes (Exists, Mount, Push, Tag). It may be used by many goroutines
// and holds no more than idle connections, which Close drops.
//
// # What is trusted
//
// A registry's answers are not. Manifests are read whole, at most 4 MiB, and
// returned only when they are what their digest says, whichever mirror sent
// them; a blob's bytes are counted and held to the size of its descriptor, and
// the reader's consumer verifies its digest. Lengths, media types and digests
// that contradict each other are vic.ErrInvalid, and no mirror is asked
// instead.
//
// # Where requests go
//
// Requests for a registry go to its host and to the mirrors that Options name.
// A registry can name further hosts itself: blob storage by a redirect, a
// token server by a challenge. Those are followed under these rules, all
// checked again at every hop, and by address when a connection is made, so
// that no name can resolve its way around them:
//
//   - never from TLS to plain HTTP, and to no scheme but these;
//   - at most ten redirects, and no credentials beyond the host (and port)
//     they are for;
//   - nowhere that Deny names;
//   - with a list of allowed registries, only to what Allow or Redirects name;
//   - without one, anywhere, but from a registry with a public address to a
//     private, loopback or link-local one only if Redirects names it: a
//     stranger's registry must not make us knock at our own network's doors.
//
// Through a proxy only names are known; what a name resolves to is the proxy's
// to decide.
//
// # Failures
//
// Broken connections and answers of the kinds 408, 429 and 5xx are tried again
// a few times with growing pauses; a Retry-After is obeyed while it is short.
// A blob's reader goes on where its connection broke, at the next mirror if it
// must. The kinds of error are vic's: ErrNotFound, ErrDenied (credentials,
// certificates, policy), ErrUnavailable (among them [RateLimitError]),
// ErrInvalid and ErrUnsupported. Their texts hold no secret: neither
// credentials nor the query of a URL.
package registry
