//go:build linux && amd64

package kernel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso/kernel"
)

// workloads is what container workloads need from the kernel, as probes that
// testdata/probe makes in a VM, with who needs them.
func workloads() []struct{ who, probes string } {
	return []struct{ who, probes string }{
		{"vic: what the kernel is", "release config.gz no-modules no-kernel-warnings"},
		{"vic: VMware's devices", "pvscsi vmxnet3 sata-cd vmci vmware-only"},
		{"vic: where VMware's devices are not to be had", "virtio-drivers hwrng-virtio"},
		{"vic: hot-add, power off, clones", "pci-hotplug memory-hotplug cpu-hotplug power-button vmgenid"},
		{"vic: console, guest channels, clock, last resort", "serial rtc sysrq"},
		{"vic: defence of the kernel itself", "mitigations aslr yama"},
		{"vic: layers and their attributes", "filesystems ext4 iso9660 tmpfs-xattr"},

		{"container runtimes: namespaces", "namespace-mnt namespace-uts namespace-ipc namespace-pid namespace-net namespace-user namespace-cgroup namespace-time"},
		{"container runtimes: control groups", "cgroup2 cgroup-cpu cgroup-cpu-weight cgroup-cpuset cgroup-memory cgroup-swap cgroup-pids cgroup-hugetlb cgroup-io-max cgroup-io-weight cgroup-freeze cgroup-kill cgroup-pressure pressure"},
		{"container runtimes: devices of groups", "bpf-cgroup-device bpf-jit"},
		{"older runtimes: control groups of version 1", "cgroup-v1"},
		{"container runtimes: confinement", "seccomp landlock keys"},
		{"Docker, BuildKit, containerd: layers", "overlay overlay-userns-xattr loop dm-crypt"},
		{"rootless engines, sshfs, storage clients", "fuse overlay-userns-xattr tun tap"},
		{"images for other processors", "exec-i386 binfmt_misc"},

		{"Docker, BuildKit, CNI: interfaces", "no-stray-links loopback link-bridge bridge-netfilter link-veth link-dummy link-macvlan link-macvtap link-ipvlan link-vlan link-vxlan"},
		{"Kubernetes and overlay networks: interfaces", "link-geneve link-vrf link-wireguard xfrm policy-routing"},
		{"traffic shaping", "link-ifb tc-htb tc-tbf tc-fq_codel tc-fq tc-ingress tc-filter"},
		{"nftables: NAT and filters", "conntrack conntrack-netlink nft-ip nft-ip6 nft-inet nft-bridge nft-arp nft-sets nft-objects nft-flowtable"},
		{"iptables over nftables: matches", "iptables-nft-addrtype iptables-nft-bpf iptables-nft-cgroup iptables-nft-comment iptables-nft-connmark iptables-nft-conntrack iptables-nft-hashlimit iptables-nft-icmp iptables-nft-iprange iptables-nft-ipvs iptables-nft-limit iptables-nft-mac iptables-nft-mark iptables-nft-multiport iptables-nft-owner iptables-nft-physdev iptables-nft-pkttype iptables-nft-policy iptables-nft-recent iptables-nft-rpfilter iptables-nft-set iptables-nft-socket iptables-nft-state iptables-nft-statistic iptables-nft-string iptables-nft-tcp iptables-nft-tcpmss iptables-nft-u32 iptables-nft-udp"},
		{"iptables over nftables: targets", "iptables-nft-CHECKSUM iptables-nft-CLASSIFY iptables-nft-CONNMARK iptables-nft-CT iptables-nft-DNAT iptables-nft-LOG iptables-nft-MARK iptables-nft-MASQUERADE iptables-nft-NETMAP iptables-nft-NFLOG iptables-nft-NFQUEUE iptables-nft-REDIRECT iptables-nft-REJECT iptables-nft-SET iptables-nft-SNAT iptables-nft-TCPMSS iptables-nft-TEE iptables-nft-TPROXY"},
		{"older iptables", "iptables-legacy-filter iptables-legacy-nat iptables-legacy-mangle iptables-legacy-raw ip6tables-legacy-filter ip6tables-legacy-nat ip6tables-legacy-mangle ip6tables-legacy-raw"},
		{"kube-proxy, firewalls", "ipset ipvs"},

		{"programs: protocols", "ipv6 af_packet af_xdp af_vsock ping-socket sctp mptcp tls-ulp multicast syncookies congestion-control congestion-default"},
		{"programs: what ss and netstat read", "inet-diag udp-diag unix-diag"},
		{"programs: ciphers of the kernel", "af_alg-hash af_alg-xts af_alg-essiv af_alg-gcm af_alg-chacha20poly1305 af_alg-rng"},
		{"programs: eBPF", "bpf-map bpf-xdp bpf-sched-cls bpf-fs"},
		{"programs: input and output", "io_uring aio epoll inotify fanotify dnotify file-handles"},
		{"programs: memory", "memfd userfaultfd hugepages transparent-hugepages-madvise name-mapping swap process_vm_readv"},
		{"programs: System V and POSIX IPC", "sysv-shm sysv-sem sysv-msg mqueue"},
		{"debuggers, monitors, checkpoint and restore", "pidfd kcmp perf-event process-io"},
		{"volumes on NFS", "nfs3 nfs4.0 nfs4.1 nfs4.2 autofs"},
	}
}

// TestWorkloads boots the kernel in QEMU, has a program do all that container
// workloads do, and looks whether it could.
func TestWorkloads(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM")
	}
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs", "xorriso"} {
		if _, err := exec.LookPath(tool); err != nil {
			unless(t, err.Error())
		}
	}
	dir := t.TempDir()
	console := boot(t, dir)
	got := map[string]string{} // probe: "ok" or why not
	for line := range strings.Lines(console) {
		line = strings.TrimRight(line, "\r\n")
		if name, is := strings.CutPrefix(line, "ok "); is {
			got[name] = "ok"
		} else if rest, is := strings.CutPrefix(line, "FAIL "); is {
			name, why, _ := strings.Cut(rest, ": ")
			got[name] = why
		}
	}
	known := map[string]bool{}
	for _, w := range workloads() {
		t.Run(w.who, func(t *testing.T) {
			for name := range strings.FieldsSeq(w.probes) {
				known[name] = true
				switch got[name] {
				case "ok":
				case "":
					t.Errorf("%s: not tried", name)
				default:
					t.Errorf("%s: %s", name, got[name])
				}
			}
		})
	}
	for name, state := range got {
		if !known[name] {
			t.Errorf("%s (%s): tried, but the table does not say for whom", name, state)
		}
	}
	if !strings.Contains(console, "probe: done") || t.Failed() {
		t.Errorf("console:\n%s", console)
	}
}

// boot runs the probes in a VM and returns what it printed.
func boot(t *testing.T, dir string) string {
	t.Helper()
	vmlinux, err := kernel.ELF(kernel.Image())
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path("probe"), "./testdata/probe")
	probe, err := os.ReadFile(path("probe"))
	if err != nil {
		t.Fatal(err)
	}
	write("vmlinux", vmlinux)
	write("initrd", cpio(file{"init", 0o755, probe}, file{"release", 0o644, []byte(kernel.Version)}))
	write("disk", make([]byte, 8<<20))
	run("mke2fs", "-q", "-F", "-t", "ext4", path("disk"))
	if err := os.Mkdir(path("cd"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("cd/A longer name.txt", []byte("hello\n"))
	run("xorriso", "-as", "mkisofs", "-quiet", "-J", "-o", path("cd.iso"), path("cd"))

	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1G",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", path("vmlinux"), "-initrd", path("initrd"),
		"-append", "console=ttyS0 quiet panic=-1 lapic_hz=1000000000 noreplace-smp noreplace-returns",
		"-device", "pcie-root-port,id=rp,slot=1,chassis=1",
		"-device", "pvscsi", "-drive", "if=none,id=disk,format=raw,file="+path("disk"), "-device", "scsi-hd,drive=disk",
		"-drive", "if=none,id=cd,media=cdrom,format=raw,read-only=on,file="+path("cd.iso"), "-device", "ide-cd,drive=cd,bus=ide.0",
		"-netdev", "hubport,id=net,hubid=0", "-device", "vmxnet3,netdev=net")
	cmd.WaitDelay = 5 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	start := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("QEMU: %v\n%s\nconsole:\n%s", errors.Join(err, ctx.Err()), &complaints, &out)
	}
	t.Logf("the VM ran for %v", time.Since(start).Round(time.Millisecond))
	return out.String()
}

type file struct {
	name string
	perm uint32
	data []byte
}

// cpio packs files as an initial RAM disk
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(files ...file) []byte {
	var b bytes.Buffer
	for i, f := range slices.Concat(files, []file{{name: "TRAILER!!!"}}) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			i, 0o100000|f.perm, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(f.name)+1, 0, f.name)
		for range 2 {
			for b.Len()%4 != 0 {
				b.WriteByte(0)
			}
			b.Write(f.data)
			f.data = nil
		}
	}
	return b.Bytes()
}
