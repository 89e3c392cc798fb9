package cluster_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// What the linearizability test does.
const (
	linearClients = 8
	linearKeys    = 50
	linearFor     = 35 * time.Second // at least; faults that have begun are finished
	linearTimeout = 4 * time.Second  // of one operation; then its outcome is unknown
	linearCheck   = 2 * time.Minute
)

// TestHTTPIsLinearizable runs clients that read and compare-and-set objects
// over the HTTP API while leaders are killed, restarted and paused, and checks
// the history with porcupine. Watchers check the event stream and stale reads
// of each node meanwhile.
func TestHTTPIsLinearizable(t *testing.T) {
	linearizable(t, harness.Start(t, harness.Options{}))
}

func linearizable(t *testing.T, c *harness.Cluster) {
	h := &history{began: time.Now(), revisions: map[string]uint64{}}
	ctx, cancel := context.WithCancel(t.Context())

	var clients, watchers sync.WaitGroup
	for i := range linearClients {
		// Each client begins at another node.
		conn := c.Client(linearTimeout, c.Nodes[i%3], c.Nodes[(i+1)%3], c.Nodes[(i+2)%3])
		clients.Go(func() { h.client(ctx, conn, i) })
	}
	streams := make([]*stream, len(c.Nodes))
	watching, stopWatching := context.WithCancel(t.Context())
	for i := range streams {
		streams[i] = &stream{}
		conn := c.Client(30*time.Second, c.Nodes[i], c.Nodes[(i+1)%3], c.Nodes[(i+2)%3])
		watchers.Go(func() { streams[i].follow(watching, conn) })
		watchers.Go(func() { staleNeverFalls(watching, t, c, c.Nodes[i]) })
	}

	t.Cleanup(func() { cancel(); stopWatching(); clients.Wait(); watchers.Wait() })

	faults := disturb(t, c, linearFor)
	cancel()
	clients.Wait()
	t.Logf("faults: %v", faults)
	for _, n := range c.Nodes {
		n.Ready(30 * time.Second)
	}
	c.Converge(30 * time.Second)
	h.check(t)
	h.present(t, c)
	checkStreams(t, c, streams, stopWatching)
	watchers.Wait()
}

// disturb breaks things one after the other for a while, and counts what it
// did. At its end every node runs.
func disturb(t *testing.T, c *harness.Cluster, lasting time.Duration) map[string]int {
	t.Helper()
	faults := map[string]int{}
	kinds := []string{"kill leader", "pause leader", "kill follower", "pause leader long", "kill leader", "pause follower"}
	for began, i := time.Now(), 0; time.Since(began) < lasting || i < len(kinds); i++ {
		kind := kinds[i%len(kinds)]
		leader := c.Leader()
		victim := leader
		if kind == "kill follower" || kind == "pause follower" {
			victim = c.Others(leader)[rand.IntN(2)]
		}
		faults[kind]++
		harness.Pause(time.Duration(300+rand.IntN(700)) * time.Millisecond) // of calm
		switch kind {
		case "kill leader", "kill follower":
			victim.Signal(syscall.SIGKILL)
			victim.Gone(10 * time.Second)
			harness.Pause(time.Duration(rand.IntN(2500)) * time.Millisecond) // without it
			victim.Start()
			victim.Ready(30 * time.Second)
		case "pause leader", "pause follower":
			pause(victim, time.Duration(100+rand.IntN(900))*time.Millisecond)
		case "pause leader long":
			pause(victim, time.Duration(2500+rand.IntN(2500))*time.Millisecond)
		}
	}
	return faults
}

func pause(n *harness.Node, d time.Duration) {
	n.Stop()
	harness.Pause(d)
	n.Continue()
}

// The operations of the model.
const (
	opRead = iota
	opCreate
	opSwap
)

// input and output are one operation on one object. Values are unique, so a
// value stands for the revision that it was written as.
type input struct {
	op    int
	key   string
	from  string // of a swap: the value that the client saw
	value string // to be written
}

type output struct {
	value   string // that was read; empty: there is no object
	refused bool   // create: it exists; swap: the revision has moved
	unknown bool   // it may have happened, or still may
}

// objectModel is an object with compare-and-set; the state is its value, empty
// before the creation.
func objectModel() porcupine.Model {
	return porcupine.Model{
		Partition: byKey,
		Init:      func() any { return "" },
		Step:      step,
		DescribeOperation: func(in, out any) string {
			return fmt.Sprintf("%+v -> %+v", in, out)
		},
	}
}

func step(state, in, out any) (bool, any) {
	now, i, o := state.(string), in.(input), out.(output)
	holds := i.op == opCreate && now == "" || i.op == opSwap && now == i.from
	switch {
	case i.op == opRead:
		return o.value == now, now
	case o.unknown && holds, holds && !o.refused:
		return true, i.value
	case o.unknown:
		return true, now
	}
	return o.refused && !holds, now
}

func byKey(ops []porcupine.Operation) [][]porcupine.Operation {
	byKey := map[string][]porcupine.Operation{}
	for _, op := range ops {
		k := op.Input.(input).key
		byKey[k] = append(byKey[k], op)
	}
	var out [][]porcupine.Operation
	for _, list := range byKey {
		out = append(out, list)
	}
	return out
}

// history is what all clients did.
type history struct {
	began time.Time

	mu        sync.Mutex // guards what follows
	ops       []porcupine.Operation
	revisions map[string]uint64 // of each value that was acknowledged or read
	clash     []string          // values with two revisions
	unknown   int
	dropped   int // reads that failed, writes that did not happen
}

// client reads and writes random keys until ctx ends.
func (h *history) client(ctx context.Context, conn *client.Client, id int) {
	r := rand.New(rand.NewPCG(uint64(id), 1))
	type seen struct {
		value    string
		revision uint64
	}
	last := map[string]seen{}
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("key-%d", r.IntN(linearKeys))
		in := input{op: opRead, key: key}
		if known := last[key]; r.IntN(10) < 6 {
			in.op, in.from, in.value = opSwap, known.value, fmt.Sprintf("%d-%d", id, n)
			if known.revision == 0 {
				in.op = opCreate
			}
		}
		start := time.Since(h.began)
		v, err := h.do(conn, in, last[key].revision)
		h.note(id, in, start, v, err)
		switch {
		case err == nil && v != nil:
			last[key] = seen{v.Description, v.Modified}
		case in.op != opRead:
			// What is there now is unknown: a read comes first, unless the
			// clients race for it.
			if v, err := h.do(conn, input{op: opRead, key: key}, 0); err == nil && v != nil && r.IntN(2) == 0 {
				last[key] = seen{v.Description, v.Modified}
			}
		}
	}
}

// do makes one operation. An absent object is nil.
func (h *history) do(conn *client.Client, in input, revision uint64) (*api.Tenant, error) {
	ctx := context.Background()
	if in.op == opRead {
		v, _, err := tenants(conn).Get(ctx, "", in.key, client.ReadOptions{})
		if api.CodeOf(err) == api.CodeNotFound {
			return nil, nil
		}
		return v, err
	}
	return tenants(conn).Put(ctx, &api.Tenant{Meta: api.Meta{Name: in.key, Modified: revision}, Description: in.value})
}

func (h *history) note(id int, in input, start time.Duration, v *api.Tenant, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: id, Input: in, Call: start.Nanoseconds(), Return: time.Since(h.began).Nanoseconds()}
	out := output{}
	switch {
	case err == nil && v != nil:
		out.value = v.Description
		h.revise(v)
	case err == nil:
	case in.op == opRead, notDone(err):
		h.dropped++
		return
	case api.CodeOf(err) == api.CodeConflict:
		out.refused = true
	default:
		h.unknown++
		out.unknown = true
		op.Return = int64(1<<62) + int64(len(h.ops)) // it may still happen, after everything else
	}
	op.Output = out
	h.ops = append(h.ops, op)
}

// notDone reports whether a write certainly did not happen.
func notDone(err error) bool {
	switch api.CodeOf(err) {
	case api.CodeUnavailable, api.CodeNoLeader, api.CodeLimit:
		return true
	}
	return false
}

func (h *history) revise(v *api.Tenant) {
	id := v.Name + " " + v.Description
	if was, ok := h.revisions[id]; ok && was != v.Modified {
		h.clash = append(h.clash, fmt.Sprintf("%s at %d and %d", id, was, v.Modified))
	}
	h.revisions[id] = v.Modified
}

// check runs the checker. Unknown is a failure, too.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	counts := map[string]int{}
	for _, op := range h.ops {
		in, out := op.Input.(input), op.Output.(output)
		counts[[]string{"reads", "creates", "swaps"}[in.op]]++
		if out.refused {
			counts["refused"]++
		}
	}
	began := time.Now()
	result := porcupine.CheckOperationsTimeout(objectModel(), h.ops, linearCheck)
	t.Logf("%d operations in %v: %v, %d unknown, %d dropped; %v after %v", len(h.ops), time.Since(h.began).Round(time.Second), counts, h.unknown, h.dropped,
		result, time.Since(began).Round(time.Millisecond))
	if result != porcupine.Ok {
		h.explain(t)
		t.Fatalf("the history is %v", result)
	}
	if len(h.clash) > 0 {
		t.Errorf("values with two revisions: %v", h.clash)
	}
	if counts["swaps"] < 100 || counts["reads"] < 100 || counts["refused"] == 0 {
		t.Errorf("too little happened to prove anything: %v", counts)
	}
}

// explain shows the keys whose history is not linearizable.
func (h *history) explain(t *testing.T) {
	t.Helper()
	for _, ops := range byKey(h.ops) {
		if porcupine.CheckOperationsTimeout(objectModel(), ops, linearCheck/4) == porcupine.Ok {
			continue
		}
		for _, op := range ops {
			t.Logf("client %d, %v to %v: %+v -> %+v", op.ClientId, time.Duration(op.Call), time.Duration(op.Return), op.Input, op.Output)
		}
		return
	}
}

// present checks that the journal has each acknowledged value at the revision
// that the client was told.
func (h *history) present(t *testing.T, c *harness.Cluster) {
	t.Helper()
	recorded := map[string]uint64{}
	for _, change := range tenantChanges(t, c, c.Nodes[0]) {
		recorded[change.value] = change.index
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, revision := range h.revisions {
		if recorded[id] != revision {
			t.Errorf("%s was seen at revision %d; the journal has it at %d", id, revision, recorded[id])
		}
	}
}

// revised is one change of a tenant as the log has it.
type revised struct {
	index uint64
	value string // name and description
}

func (r revised) String() string { return strconv.FormatUint(r.index, 10) + " " + r.value }

// tenantChanges reads the changes of tenants from the journal of a node.
func tenantChanges(t *testing.T, c *harness.Cluster, n *harness.Node) []revised {
	t.Helper()
	var out []revised
	conn := c.Client(30*time.Second, n)
	for from := uint64(1); ; {
		records, err := conn.Audit(t.Context(), from, 500)
		if err != nil {
			t.Fatalf("audit of %s: %v", n.Name, err)
		}
		for i := range records {
			out = append(out, changesOf(t, &records[i])...)
			from = records[i].Index
		}
		if len(records) == 0 {
			return out
		}
	}
}

func changesOf(t testing.TB, r *api.Record) []revised {
	var out []revised
	for _, change := range r.Changes {
		if change.Kind != api.KindTenant || len(change.After) == 0 {
			continue
		}
		out = append(out, revised{r.Index, tenantValue(t, change.After)})
	}
	return out
}

// staleNeverFalls reads one node's own state again and again: the index never
// falls while its process runs, and what was read is still there.
func staleNeverFalls(ctx context.Context, t *testing.T, c *harness.Cluster, n *harness.Node) {
	conn := c.Client(2*time.Second, n)
	var last uint64
	for pid := 0; ctx.Err() == nil; {
		answer, err := conn.Call(ctx, http.MethodGet, "/v1/tenants", map[string][]string{"stale": {"true"}, "limit": {"1"}}, nil, nil)
		if now := n.PID(); now != pid {
			pid, last = now, 0 // a new process replays what is committed
			continue
		}
		if err != nil {
			continue
		}
		if answer.Index < last {
			t.Errorf("stale reads of %s went from index %d back to %d", n.Name, last, answer.Index)
		}
		last = answer.Index
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
