package libvirt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

const guestMemory = 128 * api.MiB

// machine is one lab node with what a guest needs.
type machine struct {
	node   *lab.Node
	guest  lab.Guest
	config libvirt.Config
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	l := lab.StartLibvirt(t, 1)
	node := l.Nodes()[0]
	return &machine{node: node, guest: lab.TinyGuestFor(t), config: libvirt.Config{
		Socket: node.Socket, ClusterID: uuid.NewString(), StateDir: filepath.Join(l.Dir(), "state"),
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: testWriter{t}}),
	}}
}

// testWriter sends the adapter's log to the test's.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (m *machine) open(t testing.TB) plugins.Hypervisor {
	t.Helper()
	h, err := libvirt.Open(m.config)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// spec is a guest that boots its kernel directly.
func (m *machine) spec(testing.TB) plugins.DomainSpec {
	id := uuid.NewString()
	return plugins.DomainSpec{
		ID: id, Name: "default.vm-" + id[:8], ClusterID: m.config.ClusterID, Gen: 1, CPUs: 1, MemoryBytes: guestMemory,
		Firmware: "bios", Boot: &plugins.BootSpec{Kernel: m.guest.Kernel, Initrd: m.guest.Initrd, Args: lab.KernelArgs},
	}
}

// client talks to the daemon without the adapter.
func (m *machine) client(t testing.TB) *golibvirt.Libvirt {
	t.Helper()
	c := golibvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(m.node.Socket)))
	if err := c.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect() })
	return c
}

func (m *machine) domain(t testing.TB, c *golibvirt.Libvirt, id string) golibvirt.Domain {
	t.Helper()
	d, err := c.DomainLookupByUUID(golibvirt.UUID(uuid.MustParse(id)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// kill ends the QEMU process of the guest, found by its UUID on the command
// line: libvirt's pid file holds a number of another process namespace.
func (m *machine) kill(t testing.TB, id string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		args, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(args), "/usr/bin/qemu-system-") || !strings.Contains(string(args), "\x00-uuid\x00"+id+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no QEMU process runs %s", id)
}

// tamper redefines the domain, as "virsh edit" does.
func (m *machine) tamper(t testing.TB, id string) {
	t.Helper()
	c := m.client(t)
	text, err := c.DomainGetXMLDesc(m.domain(t, c, id), golibvirt.DomainXMLInactive)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.ReplaceAll(text, fmt.Sprintf(">%d</", guestMemory/api.KiB), ">98304</")
	if edited == text {
		t.Fatalf("the definition has no memory to edit: %s", text)
	}
	if _, err := c.DomainDefineXMLFlags(edited, 0); err != nil {
		t.Fatal(err)
	}
}

// takenUp waits until a daemon that was started again has its guest's monitor
// back. Until then it lists the guest as it was, but holds the domain's job
// (qemuProcessReconnect). A guest that is destroyed meanwhile dies before its
// monitor answers, and is cleaned up there, where libvirt sends no event.
func (m *machine) takenUp(t testing.TB, id string) {
	t.Helper()
	c := m.client(t)
	for deadline := time.Now().Add(bootTimeout); ; <-time.After(20 * time.Millisecond) {
		state, _, _, err := c.DomainGetControlInfo(m.domain(t, c, id), 0)
		if err == nil && golibvirt.DomainControlState(state) == golibvirt.DomainControlOk {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not take up guest %s: control state %d, %v", id, state, err)
		}
	}
}

func TestHypervisorKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Hypervisor(t, plugintest.Hypervisors{
		Open: m.open, Spec: m.spec, Ready: "GUEST-READY", Line: "echo answer-$((6*7))", Answer: "answer-42",
		Kill: m.kill, Tamper: m.tamper,
		Break: func(t testing.TB) {
			if err := m.node.Kill(); err != nil {
				t.Fatal(err)
			}
		},
		Heal: func(t testing.TB) {
			if err := m.node.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		TakenUp: m.takenUp,
	})
}
