package volumestore

import (
	"crypto/rand"
	"encoding/hex"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Sizes of volumes in bytes.
const (
	// DefaultBytes is the size of a volume that does not say. Only what is used
	// takes room.
	DefaultBytes = 8 << 30
	// Granule is what sizes are rounded up to: a block group of the filesystem.
	Granule = 128 << 20
	// MaxBytes is the largest size.
	MaxBytes = 1 << 40
)

// DefaultStore is the label of the store that is meant where none is named.
const DefaultStore = "default"

// Driver is what volumes of this package are called to Docker's users.
const Driver = "vsphere"

// A Spec says what a volume is to be. It is inert data.
type Spec struct {
	// Name, unique in the stores: letters, digits, '-', '_' and '.', at most
	// 128. Empty draws the name of an anonymous volume, 64 hexadecimal digits.
	Name string
	// Store is the label of the store; empty is what Options say, or else
	// DefaultStore.
	Store string
	// Bytes is the size, rounded up to a multiple of Granule; 0 is what Options
	// say, or else DefaultBytes. In a store on an NFS server it is vic.ErrInvalid.
	Bytes int64
	// Labels are the caller's.
	Labels map[string]string
	// Options are a driver's options by name, in any case: Capacity or size, in
	// bytes or with a unit (see ParseBytes), and VolumeStore, a label. Others are
	// vic.ErrInvalid.
	Options map[string]string
}

var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	labelRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

// labelsLimit bounds what a volume's labels and options take.
const labelsLimit = 256 << 10

// NewName draws the name of an anonymous volume.
func NewName() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// want is a Spec, checked, and with what its options say.
type want struct {
	name, store string
	bytes       int64
	sizedBy     string // the field that says bytes
	anonymous   bool
	labels      map[string]string
	options     map[string]string
}

func (s *Spec) check() (want, error) {
	w := want{name: s.Name, store: s.Store, bytes: s.Bytes, sizedBy: "Bytes", labels: s.Labels, options: s.Options}
	if w.name == "" {
		w.name, w.anonymous = NewName(), true
	}
	if !nameRE.MatchString(w.name) {
		return w, fault.Of(vic.ErrInvalid, "Name %.140q: want at most 128 letters, digits, '-', '_' or '.', beginning with a letter or digit", w.name)
	}
	total := 0
	for k, v := range s.Labels {
		if k == "" {
			return w, fault.Of(vic.ErrInvalid, "Labels: one has no name")
		}
		total += len(k) + len(v)
	}
	for k, v := range s.Options {
		total += len(k) + len(v)
	}
	if total > labelsLimit {
		return w, fault.Of(vic.ErrInvalid, "Labels and Options: %d bytes are above %d", total, labelsLimit)
	}
	if s.Bytes < 0 {
		return w, fault.Of(vic.ErrInvalid, "Bytes %d: negative", s.Bytes)
	}
	for _, k := range slices.Sorted(keys(s.Options)) {
		v := s.Options[k]
		switch strings.ToLower(k) {
		case "capacity", "size":
			n, err := ParseBytes(v)
			if err != nil {
				return w, fault.Of(vic.ErrInvalid, "Options: %s: %v", k, err)
			}
			if w.bytes != 0 && w.bytes != n {
				return w, fault.Of(vic.ErrInvalid, "Options: %s: %d bytes, but %d are asked for, too", k, n, w.bytes)
			}
			w.bytes, w.sizedBy = n, "Options: "+k
		case "volumestore":
			if w.store != "" && w.store != v {
				return w, fault.Of(vic.ErrInvalid, "Options: %s: store %q, but %q is asked for, too", k, v, w.store)
			}
			w.store = v
		default:
			return w, fault.Of(vic.ErrInvalid, "Options: %.60q is not known: there are Capacity (or size) and VolumeStore", k)
		}
	}
	if w.bytes > MaxBytes {
		return w, fault.Of(vic.ErrInvalid, "Bytes %d: the largest volume has 1 TiB", w.bytes)
	}
	w.bytes = (w.bytes + Granule - 1) / Granule * Granule
	return w, nil
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// ParseBytes reads a size as Docker takes it: bytes, or a number with one of the
// units b, k, m, g, t, also as kb or KiB; they are powers of 1024.
func ParseBytes(s string) (int64, error) {
	num := strings.ToLower(strings.TrimSpace(s))
	num = strings.TrimSuffix(num, "ib")
	if num != "" && strings.HasSuffix(num, "b") {
		num = num[:len(num)-1]
	}
	unit := 1.0
	if i := strings.IndexByte("kmgt", lastByte(num)); i >= 0 {
		unit = math.Pow(1024, float64(i+1))
		num = strings.TrimSpace(num[:len(num)-1])
	}
	// Digits and a point only: no signs, exponents, hexadecimal or names.
	if num == "" || strings.Trim(num, "0123456789.") != "" {
		return 0, fault.Of(vic.ErrInvalid, "%.60q is no size: want bytes or a number with a unit, such as 512m or 2GiB", s)
	}
	n, err := strconv.ParseFloat(num, 64)
	if err != nil || n*unit < 1 || n*unit > 1<<62 {
		return 0, fault.Of(vic.ErrInvalid, "%.60q is no size: want bytes or a number with a unit, such as 512m or 2GiB", s)
	}
	return int64(n * unit), nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}
