package fsm_test

import (
	"bytes"
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
