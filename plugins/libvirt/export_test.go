package libvirt

import (
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Render makes the definition of a checked spec on an imagined machine.
func Render(spec plugins.DomainSpec, virtType string) (string, error) {
	if err := checkSpec(spec, spec.ClusterID); err != nil {
		return "", err
	}
	m := machine{virtType: virtType, emulator: "/usr/bin/qemu-system-x86_64", arch: "x86_64", dir: "/state/" + spec.ID, started: time.Unix(1, 0)}
	if spec.Firmware == "uefi" {
		m.firmware = &firmware{code: "/fw/code", vars: "/fw/vars"}
	}
	return buildDomain(spec, m).encode()
}

// Wanted reads back what the definition's mark says was asked for.
func Wanted(text, clusterID string) (gen, revision uint64, drift []string, ours bool) {
	d, err := decodeDomain(text)
	if err != nil || d.markOf(clusterID) == nil {
		return 0, 0, nil, false
	}
	m := d.markOf(clusterID)
	return m.Gen, m.Revision, d.drift(m, ""), true
}

// Seed builds the seed's image.
func Seed(c *api.CloudInit, instanceID, vm string) ([]byte, error) {
	return buildSeed(c, instanceID, vm)
}

// TrimLog cuts a console log.
func TrimLog(path string) error { return trimLog(path) }

// HasVirtualization reads /proc/cpuinfo.
func HasVirtualization(cpuinfo []byte) bool { return hasVirtualization(cpuinfo) }

// ConsoleLogMax and ConsoleLogKeep bound a console log, in bytes.
const (
	ConsoleLogMax  = consoleLogMax
	ConsoleLogKeep = consoleLogKeep
)

// Usable keeps the addresses that a guest may show, all of one interface.
func Usable(addresses ...string) []string {
	i := libvirt.DomainInterface{Name: "eth0"}
	for _, a := range addresses {
		i.Addrs = append(i.Addrs, libvirt.DomainIPAddr{Addr: a})
	}
	return usable([]libvirt.DomainInterface{i})
}

// ToPNG converts a picture of the daemon.
func ToPNG(raw []byte) ([]byte, error) { return toPNG(raw) }

// Remember makes a domain one of ours, as a listing does.
func Remember(h *Hypervisor, id string) { h.remember(id) }

// ReadMachine reads the counters of a machine whose files are below root.
func ReadMachine(root string) (plugins.NodeCounters, error) { return readMachine(root) }

// CutConsole ends the stream of a guest's console as the daemon may, and
// returns when it has ended.
func (h *Hypervisor) CutConsole(id string) {
	h.mu.Lock()
	l := h.lines[id]
	h.mu.Unlock()
	if l != nil {
		l.conn.close()
		<-l.done
	}
}

// Remarked is the mark of a definition as it replaces that of the executing
// guest, once an edit waits for its next start.
func Remarked(text, clusterID, waits string) (string, error) {
	d, err := decodeDomain(text)
	if err != nil {
		return "", err
	}
	m := *d.markOf(clusterID)
	m.Pending = append(m.Pending, pendingEdit{Text: waits})
	return m.element()
}
