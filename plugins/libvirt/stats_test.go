package libvirt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

func TestMeterKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Meter(t, plugintest.Meters{Spec: m.spec, Open: func(t testing.TB) (plugins.Hypervisor, plugins.Meter) {
		h := m.open(t).(*libvirt.Hypervisor)
		return h, h
	}})
}

// manyGuests is a daemon that runs so many guests, each with two disks, the
// seed and an interface.
func manyGuests(t testing.TB, n int) (*fakeDaemon, *libvirt.Hypervisor, []string) {
	t.Helper()
	d := newFakeDaemon(t)
	h, err := libvirt.Open(libvirt.Config{Socket: d.socket, ClusterID: uuid.NewString(), StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	var ids []string
	for range n {
		id := uuid.NewString()
		libvirt.Remember(h, id)
		ids = append(ids, id)
	}
	d.replies[procDomainsStats] = statsReply(append([]string{uuid.NewString()}, ids...), func(i int) []param {
		params := []param{{"cpu.time", uint64(i) * 1e9}, {"cpu.user", uint64(1)}, {"cpu.system", uint64(2)},
			{"balloon.current", uint64(131072)}, {"balloon.maximum", uint64(131072)}, {"balloon.rss", uint64(65536)},
			{"block.count", uint64(3)}, {"net.count", uint64(1)}, {"net.0.name", "vnet0"}}
		for k, name := range []string{"vda", "sdb", "sdzz"} {
			at := fmt.Sprintf("block.%d.", k)
			params = append(params, param{at + "name", name}, param{at + "path", "/var/lib/debvisor/pools/local/volumes/" + uuid.NewString() + ".qcow2"},
				param{at + "backingIndex", uint64(1)})
			for _, f := range []string{"rd.reqs", "rd.bytes", "rd.times", "wr.reqs", "wr.bytes", "wr.times", "fl.reqs", "fl.times", "allocation", "capacity", "physical"} {
				params = append(params, param{at + f, uint64(k+1) * 100})
			}
		}
		for _, way := range []string{"rx", "tx"} {
			for v, f := range []string{"bytes", "pkts", "errs", "drop"} {
				params = append(params, param{"net.0." + way + "." + f, uint64(v + 10)})
			}
		}
		return params
	})
	slices.Sort(ids)
	return d, h, ids
}

// TestSamplesCostOneRoundTrip counts what the daemon is asked.
func TestSamplesCostOneRoundTrip(t *testing.T) {
	t.Parallel()
	d, h, ids := manyGuests(t, 50)
	for i := range 3 {
		before := d.total()
		sample, err := h.Sample(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if asked := d.total() - before; i > 0 && asked != 1 { // the first one connects, too
			t.Errorf("sample %d asked the daemon %d times, want once", i, asked)
		}
		var got []string
		for _, g := range sample.Domains {
			got = append(got, g.ID)
		}
		if !slices.Equal(got, ids) {
			t.Fatalf("sampled %d guests, want the %d of ours in order", len(got), len(ids))
		}
		g := sample.Domains[0]
		want := plugins.DomainCounters{ID: ids[0], CPUTime: g.CPUTime, MemoryBytes: 128 * api.MiB, MemoryRSSBytes: 64 * api.MiB,
			Disks: []plugins.DiskCounters{{Name: "vda", ReadBytes: 100, WriteBytes: 100, Reads: 100, Writes: 100, ReadTime: 100, WriteTime: 100},
				{Name: "sdb", ReadBytes: 200, WriteBytes: 200, Reads: 200, Writes: 200, ReadTime: 200, WriteTime: 200}},
			NICs: []plugins.NICCounters{{Name: "vnet0", ReceivedBytes: 10, SentBytes: 10, ReceivedPackets: 11, SentPackets: 11, ReceivedDropped: 13, SentDropped: 13}}}
		if !reflect.DeepEqual(g, want) || g.CPUTime < time.Second {
			t.Errorf("got %+v, want %+v", g, want)
		}
	}
}

// BenchmarkSample measures one reading of 500 guests: the daemon's answer is
// ready, so this is what the protocol and the adapter cost.
func BenchmarkSample(b *testing.B) {
	_, h, _ := manyGuests(b, 500)
	for b.Loop() {
		if s, err := h.Sample(b.Context()); err != nil || len(s.Domains) != 500 {
			b.Fatalf("%d guests: %v", len(s.Domains), err)
		}
	}
}

func TestTheMachineIsRead(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/stat":                    "cpu  100 10 50 1000 20 5 5 10 40 0\ncpu0 50 5 25 500 10 2 2 5 20 0\ncpu1 50 5 25 500 10 3 3 5 20 0\nintr 1\n",
		"proc/meminfo":                 "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n",
		"proc/loadavg":                 "0.52 0.40 0.30 1/100 4242\n",
		"proc/diskstats":               " 8 0 sda 10 0 20 30 40 0 50 60 0 1 2 3\n 8 1 sda1 10 0 20 30 40 0 50 60 0 1 2 3\n 7 0 loop0 1 0 1 1 1 0 1 1 0 1 1\n",
		"proc/net/dev":                 "Inter-| Receive\n face |bytes\n  eth0: 1000 10 0 1 0 0 0 0 2000 20 0 2 0 0 0 0\n  vnet3: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n",
		"sys/block/sda/device/x":       "",
		"sys/class/net/eth0/device/x":  "",
		"sys/class/net/vnet3/uevent/x": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := libvirt.ReadMachine(root)
	want := plugins.NodeCounters{CPUs: 2, CPUBusy: 1800 * time.Millisecond, CPUTotal: 12 * time.Second, Load: 0.52,
		MemoryBytes: 2 * api.MiB, MemoryAvailableBytes: api.MiB,
		Disk: plugins.DiskCounters{Reads: 10, ReadBytes: 20 * 512, ReadTime: 30 * time.Millisecond, Writes: 40, WriteBytes: 50 * 512, WriteTime: 60 * time.Millisecond},
		NIC:  plugins.NICCounters{ReceivedBytes: 1000, ReceivedPackets: 10, ReceivedDropped: 1, SentBytes: 2000, SentPackets: 20, SentDropped: 2}}
	if err != nil || got != want {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
	if _, err := libvirt.ReadMachine(t.TempDir()); err == nil {
		t.Error("a machine without /proc is read without an error")
	}
}
