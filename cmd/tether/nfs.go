//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

const (
	nfsWait = 60 * time.Second // for a server to be mounted
	nfsSync = 20 * time.Second // for it to take what was written
)

// mountNFS mounts the directories of NFS servers, and tells where, by target.
// The caller holds machine.mounting. resolv is the text of a resolv.conf.
func (v *volumes) mountNFS(ctx context.Context, mounts []tether.Mount, resolv string) (map[string]string, error) {
	for _, m := range mounts {
		if m.Volume == nil || m.Volume.NFS == nil || v.servers()[m.Target] != "" {
			continue
		}
		v.made++
		dir := filepath.Join(volumeMount, "nfs"+strconv.Itoa(v.made))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := mountNFS(ctx, m.Volume.NFS, dir, resolv); err != nil {
			return nil, fmt.Errorf("mount %s: NFS server %s: %s: %w", m.Target, m.Volume.NFS.Server, m.Volume.NFS.Path, err)
		}
		if err := makeNFSDir(ctx, m.Volume.NFS, dir); err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH) // nobody knows of it
			return nil, fmt.Errorf("mount %s: NFS server %s: %w", m.Target, m.Volume.NFS.Server, err)
		}
		v.mu.Lock()
		ended := v.ended
		if v.nfs == nil {
			v.nfs = map[string]string{}
		}
		v.nfs[m.Target] = dir
		v.mu.Unlock()
		if ended {
			return nil, tether.ErrNotRunning
		}
	}
	return v.servers(), nil
}

// servers are where NFS servers are mounted, by target.
func (v *volumes) servers() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.nfs)
}

// makeNFSDir makes the directory of a volume on a server that is mounted at dir, as
// the user whose it is to be.
func makeNFSDir(ctx context.Context, n *tether.NFS, dir string) error {
	if n.Dir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nfsWait)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		// Users of file systems are a thread's (setfsuid(2)). It is never unlocked,
		// so it ends with this function, whatever it was.
		runtime.LockOSThread()
		_, _ = unix.SetfsgidRetGid(int(n.GID))
		_, _ = unix.SetfsuidRetUid(int(n.UID))
		done <- unix.Mkdir(filepath.Join(dir, n.Dir), 0o755)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	switch {
	case err == nil, errors.Is(err, unix.EEXIST): // and if that is no directory, it is not mounted
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: the server does not let user %d of group %d do that: give the volume store the uid and gid that own %s", err, n.UID, n.GID, n.Path)
	}
	return fmt.Errorf("make directory %s/%s: %w", strings.TrimSuffix(n.Path, "/"), n.Dir, err)
}

func mountNFS(ctx context.Context, n *tether.NFS, dir, resolv string) error {
	ctx, cancel := context.WithTimeout(ctx, nfsWait)
	defer cancel()
	addr, err := lookup(ctx, n.Server, resolv)
	if err != nil {
		return err
	}
	host := n.Server
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	versions := []string{n.Version}
	if n.Version == "" {
		versions = []string{"4.2", "4.1", "4", "3"}
	}
	var all error
	for _, version := range versions {
		// A server that does not answer holds the call for longer than we wait.
		done := make(chan error, 1)
		go func() {
			done <- unix.Mount(host+":"+n.Path, dir, "nfs", 0, nfsOptions(n, version, addr))
		}()
		select {
		case err = <-done:
		case <-ctx.Done():
			return errors.Join(all, fmt.Errorf("version %s: no answer: %w", version, context.Cause(ctx)))
		}
		if err == nil {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("version %s: %w", version, err))
	}
	return all
}

// nfsOptions are what the kernel's client is told (Linux, fs/nfs/fs_context.c).
// With version 3 locks are the container's own: the protocol for others' needs a
// daemon of the client, and the container is a VM of its own.
func nfsOptions(n *tether.NFS, version string, addr netip.Addr) string {
	o := fmt.Sprintf("vers=%s,addr=%s,proto=%s", version, addr, transport(addr))
	if n.Port != 0 {
		o += fmt.Sprintf(",port=%d", n.Port)
	}
	if version == "3" {
		o += fmt.Sprintf(",nolock,mountaddr=%s,mountproto=%s", addr, transport(addr))
		if n.MountPort != 0 {
			o += fmt.Sprintf(",mountport=%d", n.MountPort)
		}
		return o
	}
	if n.Port == 0 {
		o += ",port=2049"
	}
	// Servers that call back find the address of the connection.
	return o + ",clientaddr=0.0.0.0"
}

func transport(a netip.Addr) string {
	if a.Is6() {
		return "tcp6"
	}
	return "tcp"
}

// lookup finds a server's address by the name servers of a resolv.conf.
func lookup(ctx context.Context, name, resolv string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a.Unmap(), nil
	}
	var servers []string
	for line := range strings.Lines(resolv) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	if len(servers) == 0 {
		return netip.Addr{}, errors.New("it is named, not numbered, and there are no name servers")
	}
	var next atomic.Int64
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		s := servers[int(next.Add(1)-1)%len(servers)]
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(s, "53"))
	}}
	all, err := r.LookupNetIP(ctx, "ip", strings.TrimSuffix(name, ".")+".")
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range all {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	return all[0], nil
}

// syncNFS has servers take what was written, those that answer.
func syncNFS(dirs map[string]string) error {
	done := make(chan error, len(dirs))
	for _, dir := range dirs {
		go func() { done <- syncFS(dir) }()
	}
	var errs error
	late := time.After(nfsSync)
	for range dirs {
		select {
		case err := <-done:
			errs = errors.Join(errs, err)
		case <-late:
			return errors.Join(errs, errors.New("an NFS server does not take what was written"))
		}
	}
	return errs
}
