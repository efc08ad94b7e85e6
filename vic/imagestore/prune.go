package imagestore

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// PruneOptions say which images Prune deletes; nil means the dangling ones.
type PruneOptions struct {
	// All deletes the images that no container was made from, named or not;
	// otherwise only those without a name are.
	All bool
	// Until spares images that were created after it, by what their
	// configuration says; zero spares none. Images that do not say when they
	// were created are not spared.
	Until time.Time
	// Labels that an image must have: "key" or "key=value". NotLabels that it
	// must not have.
	Labels, NotLabels []string
}

// ParsePruneFilters reads filters as "docker image prune --filter" takes them:
// dangling=BOOL, until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]. A TIME is
// that of RFC 3339, also without zone, time or seconds, seconds since 1970, or a
// duration before now. Filters that are not known are vic.ErrInvalid.
func ParsePruneFilters(filters []string, now time.Time) (*PruneOptions, error) {
	o := &PruneOptions{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || value == "" {
			return nil, fault.Of(vic.ErrInvalid, "filter %q: want KEY=VALUE", f)
		}
		switch key {
		case "dangling":
			b, err := strconv.ParseBool(value)
			if err != nil {
				return nil, fault.Of(vic.ErrInvalid, "filter %q: want true or false", f)
			}
			o.All = !b
		case "until":
			if !o.Until.IsZero() {
				return nil, fault.Of(vic.ErrInvalid, "filter %q: until is given twice", f)
			}
			var err error
			if o.Until, err = parseTime(value, now); err != nil {
				return nil, fault.Of(vic.ErrInvalid, "filter %q: %v", f, err)
			}
		case "label":
			o.Labels = append(o.Labels, value)
		case "label!":
			o.NotLabels = append(o.NotLabels, value)
		default:
			return nil, fault.Of(vic.ErrInvalid, "filter %q: there are dangling, until, label and label!", f)
		}
	}
	return o, nil
}

func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 0 && n < 1<<40 {
		return time.Unix(0, int64(n*1e9)).UTC(), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15Z07:00", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.Of(vic.ErrInvalid, "%q is neither a time nor a duration", s)
}

// Prune deletes images that are not used and their layers. An image that a
// container was made from stays, and so does one that is being pulled.
func (s *Store) Prune(ctx context.Context, o *PruneOptions) (*Deleted, error) {
	if o == nil {
		o = &PruneOptions{}
	}
	d, err := s.collect(ctx, func(st *state) (*plan, error) {
		p := &plan{images: map[digest.Digest]bool{}}
		for id, doc := range st.images {
			names := st.namesOf(id)
			if len(names) > 0 && !o.All || len(st.containers(id)) > 0 || st.pulls[id] || !o.match(doc) {
				continue
			}
			p.names = append(p.names, names...)
			p.images[id] = true
		}
		return p, nil
	})
	return d, fault.Wrap("prune images", s.ref(), err)
}

func (o *PruneOptions) match(doc *imageDoc) bool {
	if !o.Until.IsZero() && doc.Config.Created != nil && doc.Config.Created.After(o.Until) {
		return false
	}
	has := func(l string) bool {
		key, want, exact := strings.Cut(l, "=")
		v, ok := doc.Config.Config.Labels[key]
		return ok && (!exact || v == want)
	}
	for _, l := range o.Labels {
		if !has(l) {
			return false
		}
	}
	for _, l := range o.NotLabels {
		if has(l) {
			return false
		}
	}
	return true
}
