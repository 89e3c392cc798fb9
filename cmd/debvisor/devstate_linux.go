package main

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
)

const (
	devPort          = "7443"
	devNetworkTries  = 32
	devSimulatedBoot = "1s"
)

// devState is what a development cluster keeps for the next run.
type devState struct {
	Network    string   `json:"network"` // the first three bytes of the nodes' addresses: "127.83.12"
	Nodes      int      `json:"nodes"`
	Hypervisor string   `json:"hypervisor"`
	Sockets    []string `json:"sockets,omitzero"`
}

// openDev takes the directory and decides what runs there.
func openDev(a *app, o devOptions) (*dev, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", o.dir, err)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	d := &dev{a: a, options: o, dir: dir, program: program, died: make(chan *devNode, devNodesMax)}
	if err := d.take(); err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// makeDir makes a directory that QEMU, as another user, may pass through.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

func (d *dev) file(name string) string { return filepath.Join(d.dir, name) }

// take locks the directory for as long as this process runs.
func (d *dev) take() error {
	f, err := os.OpenFile(d.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return api.Errorf(api.CodeConflict, "another debvisor dev runs in %s", d.dir).Do("end it, or choose another --dir")
	}
	d.lock = f
	return nil
}

// close gives the directory free, also where a process that is being started
// right now still holds the file.
func (d *dev) close() {
	_ = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
	d.lock.Close()
}

// prepare reads or makes the state, and the files of the nodes.
func (d *dev) prepare() error {
	if err := os.Remove(d.file("env")); err != nil && !absent(err) {
		return fmt.Errorf("remove the old env: %w", err)
	}
	if err := d.loadState(); err != nil {
		return err
	}
	for i := range d.state.Nodes {
		name := fmt.Sprintf("node%d", i+1)
		n := &devNode{name: name, dir: d.file(name), address: net.JoinHostPort(fmt.Sprintf("%s.%d", d.state.Network, i+1), devPort)}
		if len(d.state.Sockets) > 0 {
			n.socket = d.state.Sockets[i%len(d.state.Sockets)]
		}
		d.nodes = append(d.nodes, n)
		if err := d.writeConfig(n); err != nil {
			return err
		}
	}
	return nil
}

func (d *dev) loadState() error {
	name := d.file("dev.json")
	raw, err := os.ReadFile(name)
	switch {
	case absent(err):
		if d.state.Network, err = freeNetwork(d.options.nodes); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read state: %w", err)
	default:
		if err := json.Unmarshal(raw, &d.state); err != nil {
			return api.Errorf(api.CodeUnavailable, "%s is damaged: %v", name, err).Do("remove %s and start anew", d.dir)
		}
	}
	if d.state.Nodes > d.options.nodes {
		d.a.notef("this cluster has %d nodes; all of them start", d.state.Nodes)
	}
	d.state.Nodes = max(d.state.Nodes, d.options.nodes)
	if err := d.chooseHypervisor(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(d.state, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return writeSecret(name, string(text))
}

// chooseHypervisor settles what "auto" means and keeps it: guests of one
// hypervisor are unknown to the other.
func (d *dev) chooseHypervisor() error {
	wanted, sockets := d.options.hypervisor, d.options.sockets
	if !slices.Contains([]string{hypervisorAuto, hypervisorLibvirt, hypervisorSim}, wanted) {
		return api.Invalid("hypervisor", "is %q", wanted).Allow("auto, libvirt, sim")
	}
	if len(sockets) > 1 && len(sockets) != d.state.Nodes {
		return api.Invalid("libvirt-socket", "is given %d times", len(sockets)).Allow("one for all nodes, or %d: one per node", d.state.Nodes)
	}
	if d.state.Hypervisor != "" && wanted != hypervisorAuto && wanted != d.state.Hypervisor {
		return api.Errorf(api.CodeConflict, "this cluster runs on %s", d.state.Hypervisor).Do("choose another --dir for %s", wanted)
	}
	if d.state.Hypervisor == "" {
		d.state.Hypervisor = wanted
		if wanted == hypervisorAuto {
			d.state.Hypervisor = hypervisorSim
			if libvirtAnswers(cmp.Or(first(sockets), libvirtDefault)) {
				d.state.Hypervisor = hypervisorLibvirt
			}
			d.a.notef("hypervisor: %s", d.state.Hypervisor)
		}
	}
	if d.state.Hypervisor == hypervisorLibvirt && len(sockets) > 0 {
		d.state.Sockets = sockets
	}
	for _, s := range d.state.Sockets {
		if !libvirtAnswers(s) {
			return api.Errorf(api.CodeUnavailable, "no libvirtd answers at %s", s).Do("start it, or name its socket with --libvirt-socket")
		}
	}
	return nil
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func libvirtAnswers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, dialTimeout)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// freeNetwork chooses addresses that no other program listens on. They are
// random, so that several clusters on one machine do not meet.
func freeNetwork(nodes int) (string, error) {
	for range devNetworkTries {
		var b [2]byte
		_, _ = rand.Read(b[:]) // never fails
		network := fmt.Sprintf("127.%d.%d", 16+int(b[0])%224, b[1])
		if networkFree(network, nodes) {
			return network, nil
		}
	}
	return "", api.Errorf(api.CodeUnavailable, "no free loopback addresses were found in %d tries", devNetworkTries).Do("look for what listens with: ss -tln")
}

func networkFree(network string, nodes int) bool {
	for i := range nodes {
		l, err := net.Listen("tcp4", net.JoinHostPort(network+"."+strconv.Itoa(i+1), devPort))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// writeConfig writes the configuration file of a node.
func (d *dev) writeConfig(n *devNode) error {
	if err := makeDir(n.dataDir()); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by debvisor dev.\ndata_dir   = %s\nlisten     = %q\nadvertise  = %q\nhypervisor = %q\nlog_level  = %q\n",
		hclString(n.dataDir()), n.address, n.address, d.state.Hypervisor, d.options.logLevel)
	if n.socket != "" {
		fmt.Fprintf(&b, "libvirt_socket = %s\n", hclString(n.socket))
	}
	if d.state.Hypervisor == hypervisorSim {
		fmt.Fprintf(&b, "sim {\n  boot_time = %q\n}\n", devSimulatedBoot)
	} else {
		fmt.Fprintf(&b, "share = %d\n", d.state.Nodes)
	}
	return writeSecret(n.configFile(), b.String())
}

// hclString quotes s for HCL, where "${" would begin a template.
func hclString(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strconv.Quote(s), "${", "$${"), "%{", "%%{")
}

// alive reports whether a process exists.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
