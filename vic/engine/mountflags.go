package engine

import (
	"encoding/csv"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

func refuse(format string, args ...any) error { return fault.Of(vic.ErrInvalid, format, args...) }

// ParseVolume reads a volume as docker run -v takes it: TARGET, NAME:TARGET or
// NAME:TARGET:OPTIONS, options being ro, rw, nocopy and volume-nocopy with
// commas between them.
func ParseVolume(s string) (VolumeMount, error) {
	parts := strings.Split(s, ":")
	m := VolumeMount{}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2, 3:
		m.Volume, m.Target = parts[0], parts[1]
		if m.Volume == "" {
			return m, refuse("volume %.200q: the name is empty", s)
		}
	default:
		return m, refuse("volume %.200q: want TARGET, NAME:TARGET or NAME:TARGET:OPTIONS", s)
	}
	if strings.HasPrefix(m.Volume, "/") || strings.HasPrefix(m.Volume, ".") || strings.HasPrefix(m.Volume, "~") {
		return m, fault.Of(vic.ErrUnsupported, "volume %.200q: a container is a VM of its own, and there is no host whose directories it could have: name a volume, or copy files", s)
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "rw", "":
			case "ro":
				m.ReadOnly = true
			case "nocopy", "volume-nocopy":
				m.NoCopy = true
			case "z", "Z", "cached", "delegated", "consistent":
				return m, fault.Of(vic.ErrUnsupported, "volume %.200q: option %q is about the files of a host, and there is none", s, o)
			default:
				return m, refuse("volume %.200q: option %.40q is not known: there are ro, rw and nocopy", s, o)
			}
		}
	}
	return m, checkTarget(s, &m.Target)
}

func checkTarget(s string, target *string) error {
	if !path.IsAbs(*target) {
		return refuse("mount %.200q: the target %.100q is not absolute", s, *target)
	}
	*target = path.Clean(*target)
	if err := tether.CheckTarget(*target); err != nil {
		return refuse("mount %.200q: target: %v", s, err)
	}
	return nil
}

// ParseTmpfs reads a tmpfs as docker run --tmpfs takes it: TARGET or
// TARGET:OPTIONS, options being size, mode, uid, gid and nr_inodes with a value,
// and ro, rw, exec, noexec, suid, nosuid, dev and nodev.
func ParseTmpfs(s string) (containervm.Mount, error) {
	target, opts, _ := strings.Cut(s, ":")
	m := containervm.Mount{Target: target, Tmpfs: &tether.Tmpfs{}}
	for _, o := range strings.Split(opts, ",") {
		if o == "" {
			continue
		}
		if err := tmpfsOption(&m, o); err != nil {
			return m, refuse("tmpfs %.200q: %v", s, err)
		}
	}
	return m, checkTarget(s, &m.Target)
}

func tmpfsOption(m *containervm.Mount, o string) (err error) {
	k, v, _ := strings.Cut(o, "=")
	t := m.Tmpfs
	number := func(base, bits int) (n uint64) {
		if n, err = strconv.ParseUint(v, base, bits); err != nil {
			err = fmt.Errorf("option %.60q: want a number", o)
		}
		return n
	}
	switch k {
	case "size":
		if t.Bytes, err = volumestore.ParseBytes(v); err != nil {
			err = fmt.Errorf("option size: %w", err)
		}
		return err
	case "mode":
		t.Mode = uint32(number(8, 12))
		return err
	case "uid":
		t.UID = uint32(number(10, 32))
		return err
	case "gid":
		t.GID = uint32(number(10, 32))
		return err
	case "nr_inodes":
		t.Inodes = int64(number(10, 62))
		return err
	}
	switch o {
	case "rw":
		m.ReadOnly = false
	case "ro":
		m.ReadOnly = true
	case "exec", "noexec":
		t.Exec = o == "exec"
	case "suid", "nosuid":
		t.SUID = o == "suid"
	case "dev", "nodev":
		t.Dev = o == "dev"
	default:
		return fmt.Errorf("option %.60q is not known: there are size, mode, uid, gid, nr_inodes, ro, rw, exec, noexec, suid, nosuid, dev and nodev", o)
	}
	return nil
}

// ParseMount reads a mount as docker run --mount takes it, a list of KEY=VALUE
// with commas between them, and adds it to s. type is volume, where it is not
// given, tmpfs or nfs; the others' keys are source (or src), target (or dst,
// destination), readonly (or ro), volume-nocopy, volume-subpath, volume-label,
// volume-driver (vsphere, or local for the sake of scripts), volume-opt,
// tmpfs-size and tmpfs-mode, and, for nfs, whose source is SERVER:PATH, nfs-version,
// nfs-port and nfs-mount-port.
func ParseMount(text string, s *RunSpec) error {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return refuse("mount %.200q: %v", text, err)
	}
	p := mountFlag{kind: "volume", tmpfs: containervm.Mount{Tmpfs: &tether.Tmpfs{}}, nfs: &tether.NFS{}}
	// The type decides which keys there are.
	for _, f := range fields {
		if k, v, _ := strings.Cut(f, "="); strings.EqualFold(k, "type") {
			p.kind = v
		}
	}
	switch p.kind {
	case "volume", "tmpfs", "nfs":
	case "bind":
		return fault.Of(vic.ErrUnsupported, "mount %.200q: type bind: a container is a VM of its own, and there is no host whose directories it could have", text)
	default:
		return fault.Of(vic.ErrUnsupported, "mount %.200q: type %.40q: there are volume, tmpfs and nfs", text, p.kind)
	}
	for _, f := range fields {
		if err := p.set(f); err != nil {
			return refuse("mount %.200q: %v", text, err)
		}
	}
	if err := checkTarget(text, &p.volume.Target); err != nil {
		return err
	}
	switch p.kind {
	case "volume":
		if strings.HasPrefix(p.source, "/") {
			return fault.Of(vic.ErrUnsupported, "mount %.200q: source %.100q: there is no host whose directories a container could have", text, p.source)
		}
		p.volume.Volume = p.source
		s.Volumes = append(s.Volumes, p.volume)
	case "tmpfs":
		p.tmpfs.Target, p.tmpfs.ReadOnly = p.volume.Target, p.volume.ReadOnly
		s.Container.Mounts = append(s.Container.Mounts, p.tmpfs)
	case "nfs":
		server, dir, ok := cutServer(p.source)
		if !ok {
			return refuse("mount %.200q: source %.100q: want SERVER:PATH", text, p.source)
		}
		p.nfs.Server, p.nfs.Path = server, path.Clean(dir)
		if err := p.nfs.Validate(); err != nil {
			return refuse("mount %.200q: %v", text, err)
		}
		s.Container.Mounts = append(s.Container.Mounts, containervm.Mount{
			Target: p.volume.Target, ReadOnly: p.volume.ReadOnly, NFS: p.nfs, Volume: p.source, Subpath: p.volume.Subpath,
		})
	}
	return nil
}

// cutServer splits SERVER:PATH; an IPv6 address stands in brackets.
func cutServer(s string) (server, dir string, ok bool) {
	if rest, found := strings.CutPrefix(s, "["); found {
		return strings.Cut(rest, "]:")
	}
	return strings.Cut(s, ":")
}

type mountFlag struct {
	kind   string
	source string
	volume VolumeMount
	tmpfs  containervm.Mount
	nfs    *tether.NFS
}

func (p *mountFlag) set(field string) error {
	k, v, valued := strings.Cut(field, "=")
	k = strings.ToLower(k)
	yes := func() (bool, error) {
		if !valued {
			return true, nil
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return false, fmt.Errorf("%s=%.20q: want true or false", k, v)
		}
		return b, nil
	}
	var err error
	switch k {
	case "type":
		return nil
	case "source", "src":
		p.source = v
		return nil
	case "target", "dst", "destination":
		p.volume.Target = v
		return nil
	case "readonly", "ro":
		p.volume.ReadOnly, err = yes()
		return err
	}
	switch p.kind + " " + k {
	case "volume volume-nocopy":
		p.volume.NoCopy, err = yes()
	case "volume volume-subpath", "nfs volume-subpath":
		p.volume.Subpath = v
	case "volume volume-label":
		add(&p.volume.Labels, v)
	case "volume volume-opt":
		add(&p.volume.Options, v)
	case "volume volume-driver":
		if v != volumestore.Driver && v != "local" {
			err = fmt.Errorf("volume-driver %.40q: there is %q", v, volumestore.Driver)
		}
	case "tmpfs tmpfs-size":
		err = tmpfsOption(&p.tmpfs, "size="+v)
	case "tmpfs tmpfs-mode":
		err = tmpfsOption(&p.tmpfs, "mode="+v)
	case "nfs nfs-version":
		p.nfs.Version = v
	case "nfs nfs-port", "nfs nfs-mount-port":
		n, e := strconv.ParseUint(v, 10, 16)
		if e != nil {
			return fmt.Errorf("%s=%.20q: want a port", k, v)
		}
		if k == "nfs-port" {
			p.nfs.Port = int(n)
		} else {
			p.nfs.MountPort = int(n)
		}
	default:
		err = fmt.Errorf("key %.60q is not known for type %s", k, p.kind)
	}
	return err
}

func add(to *map[string]string, kv string) {
	if *to == nil {
		*to = map[string]string{}
	}
	k, v, _ := strings.Cut(kv, "=")
	(*to)[k] = v
}
