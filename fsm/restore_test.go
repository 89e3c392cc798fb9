package fsm_test

import (
	"bytes"
	"strconv"
	"sync"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// An agent that read the emptied store of a former state would take its guests
// for strays.
func TestAReaderNeverSeesTheStoreThatRestoreEmptied(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var snapshot bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if v := c.f.Read(); fsm.Configs.Get(v, api.ConfigName) == nil {
					t.Errorf("a view at index %d has no rows", v.Index())
					return
				}
				if _, v, err := c.f.Plan(nil); err != nil || fsm.Configs.Get(v, api.ConfigName) == nil {
					t.Errorf("a plan was made on no rows: %v", err)
					return
				}
			}
		})
	}
	for range 150 {
		if err := c.f.Restore(bytes.NewReader(snapshot.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	readers.Wait()
}

// What is written is the state of the moment when the snapshot was taken,
// whatever is applied until it is written and meanwhile.
func TestASnapshotIsOfItsMoment(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	if out := put(c, fsm.VMs.Put, vm("before")); out.Err != nil {
		t.Fatal(out.Err)
	}
	var at, later bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&at); err != nil {
		t.Fatal(err)
	}
	snapshot := c.f.Snapshot()
	apply := func() {
		changed := *fsm.VMs.Get(c.f.Read(), "default/before")
		changed.CPUs++
		for _, v := range []api.VM{changed, vm("after-" + strconv.FormatUint(c.f.Index(), 10))} {
			if out := put(c, fsm.VMs.Put, v); out.Err != nil {
				t.Fatal(out.Err)
			}
		}
	}
	apply()
	if _, err := snapshot.WriteTo(writerFunc(func(p []byte) (int, error) {
		if later.Len() == 0 {
			apply()
		}
		return later.Write(p)
	})); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(at.Bytes(), later.Bytes()) {
		t.Fatalf("the snapshot at index %d has %d bytes and differs from the %d of that moment", c.f.Index(), later.Len(), at.Len())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
