package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// stream is what a follower of the event stream saw.
type stream struct {
	mu      sync.Mutex // guards what follows
	records []api.Record
	err     error
}

// follow reads events until ctx ends; the client goes on at another node when
// one breaks.
func (s *stream) follow(ctx context.Context, conn *client.Client) {
	for r, err := range conn.Events(ctx, client.EventOptions{After: 1, Kinds: []string{api.KindTenant}}) {
		s.mu.Lock()
		if err != nil {
			s.err = err
		} else {
			s.records = append(s.records, *r)
		}
		s.mu.Unlock()
	}
}

func (s *stream) seen(t testing.TB) ([]revised, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []revised
	for i := range s.records {
		out = append(out, changesOf(t, &s.records[i])...)
	}
	return out, s.err
}

// checkStreams waits until every stream has the whole log, and compares them
// with the journal: no gap, no repetition, in the order of the log.
func checkStreams(t *testing.T, c *harness.Cluster, streams []*stream, stop func()) {
	t.Helper()
	defer stop()
	want := tenantChanges(t, c, c.Nodes[0])
	for i, s := range streams {
		var got []revised
		harness.Until(t, 20*time.Second, fmt.Sprintf("stream %d has everything", i+1), func() (bool, string) {
			var err error
			if got, err = s.seen(t); err != nil {
				t.Fatalf("stream %d ended: %v", i+1, err)
			}
			return len(got) > 0 && got[len(got)-1] == want[len(want)-1], fmt.Sprintf("it has %d changes of %d", len(got), len(want))
		})
		if slices.Equal(got, want) {
			continue
		}
		for k := range min(len(got), len(want)) {
			if got[k] != want[k] {
				t.Errorf("stream %d: change %d is %v; the log has %v", i+1, k, got[k], want[k])
				break
			}
		}
		t.Errorf("stream %d has %d changes, the log %d", i+1, len(got), len(want))
	}
	t.Logf("%d streams with %d changes each", len(streams), len(want))
}

func tenantValue(t testing.TB, row json.RawMessage) string {
	var v api.Tenant
	if err := json.Unmarshal(row, &v); err != nil {
		t.Errorf("row %s: %v", row, err)
	}
	return v.Name + " " + v.Description
}

// TestModelCatchesAStaleRead shows that the check of the history can fail.
func TestModelCatchesAStaleRead(t *testing.T) {
	t.Parallel()
	write := func(from, value string) (any, any) {
		return input{op: opSwap, key: "k", from: from, value: value}, output{value: value}
	}
	for _, test := range []struct {
		name string
		read string
		want bool
	}{{"fresh", "b", true}, {"stale", "a", false}, {"lost", "", false}} {
		state := any("")
		legal, state := step(state, input{op: opCreate, key: "k", value: "a"}, output{value: "a"})
		in, out := write("a", "b")
		swapped, state := step(state, in, out)
		read, _ := step(state, input{op: opRead, key: "k"}, output{value: test.read})
		if !legal || !swapped || read != test.want {
			t.Errorf("%s: %v %v %v, want the read to be %v", test.name, legal, swapped, read, test.want)
		}
	}
}
