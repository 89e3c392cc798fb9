package harness

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	loadTimeout = 20 * time.Second      // of one write, tries included
	loadHome    = time.Second           // a writer that was moved on by then begins at its own node again
	loadPace    = 10 * time.Millisecond // between two writes of a writer: the rest is for what else is tested
)

// Load writes tenants with names of their own until it is stopped, and
// remembers which writes were acknowledged.
type Load struct {
	t      testing.TB
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex        // guards what follows
	acked   map[string]uint64 // name to revision
	failed  map[string]error  // without an acknowledgement
	last    time.Time         // of an acknowledgement
	longest time.Duration     // between two acknowledgements
}

// StartLoad starts writers. They end with the test.
func StartLoad(t testing.TB, c *Cluster, writers int) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{t: t, cancel: cancel, acked: map[string]uint64{}, failed: map[string]error{}, last: time.Now()}
	for w := range writers {
		// Each begins at another node, so that one that hangs does not hold all up.
		k := w % len(c.Nodes)
		nodes := slices.Concat(c.Nodes[k:], c.Nodes[:k])
		l.done.Go(func() { l.write(ctx, func() (*client.Client, error) { return c.dial(loadTimeout, nodes...) }, w) })
	}
	t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

// write writes until ctx ends. A client stays with the node that answered last:
// so the writer begins at its own node again every second, lest all writers
// meet at one node and what happens there is taken for what happens to all.
func (l *Load) write(ctx context.Context, dial func() (*client.Client, error), writer int) {
	var conn *client.Client
	var since time.Time
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	pace := time.NewTicker(loadPace)
	defer pace.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		if conn == nil {
			var err error
			if conn, err = dial(); err != nil {
				l.t.Errorf("a writer cannot begin: %v", err)
				return
			}
			since = time.Now()
		}
		name := fmt.Sprintf("load-%d-%d", writer, n)
		v, err := client.Resource[api.Tenant](conn, api.KindTenant).Put(ctx, &api.Tenant{Meta: api.Meta{Name: name}, Description: name})
		l.note(name, v, err)
		if time.Since(since) > loadHome {
			conn.Close()
			conn = nil
		}
		select {
		case <-ctx.Done():
		case <-pace.C:
		}
	}
}

func (l *Load) note(name string, v *api.Tenant, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed[name] = err
		return
	}
	now := time.Now()
	l.longest, l.last = max(l.longest, now.Sub(l.last)), now
	l.acked[name] = v.Modified
}

// Count is how many writes were acknowledged.
func (l *Load) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Grow waits until n more writes are acknowledged. It returns the longest time
// between two acknowledgements since it was called before, which is how long a
// fault in between has stopped all writes.
func (l *Load) Grow(n int, timeout time.Duration) time.Duration {
	l.t.Helper()
	before := l.Count()
	Until(l.t, timeout, fmt.Sprintf("%d more writes are acknowledged", n), func() (bool, string) {
		count := l.Count()
		return count >= before+n, fmt.Sprintf("%d were; refusals: %s", count-before, l.refusals())
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	gap := l.longest
	l.longest = 0
	return gap.Round(time.Millisecond)
}

// refusals counts the failures by their codes, with one of each.
func (l *Load) refusals() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts, examples := map[api.Code]int{}, map[api.Code]error{}
	for _, err := range l.failed {
		counts[api.CodeOf(err)]++
		examples[api.CodeOf(err)] = err
	}
	text := "none"
	for code, n := range counts {
		text += fmt.Sprintf("; %d %s, as %v", n, code, examples[code])
	}
	return strings.TrimPrefix(text, "none; ")
}

// Stop ends the writers and returns what was acknowledged.
func (l *Load) Stop() map[string]uint64 {
	l.cancel()
	l.done.Wait()
	refusals := l.refusals()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Logf("%d writes acknowledged, %d not: %s", len(l.acked), len(l.failed), refusals)
	return maps.Clone(l.acked)
}

// Holds fails the test unless the node that answers has every acknowledged
// write, each at its revision.
func (c *Cluster) Holds(conn *client.Client, acked map[string]uint64) {
	c.t.Helper()
	list, err := client.Resource[api.Tenant](conn, api.KindTenant).All(context.Background(), client.ListOptions{})
	if err != nil {
		c.t.Fatalf("list tenants: %v", err)
	}
	found := map[string]uint64{}
	for _, v := range list.Items {
		found[v.Name] = v.Modified
	}
	lost := 0
	for name, revision := range acked {
		if found[name] != revision {
			if lost++; lost <= 10 {
				c.t.Errorf("tenant %s was acknowledged at revision %d and is now at %d (0: gone)", name, revision, found[name])
			}
		}
	}
	if lost > 0 {
		c.t.Fatalf("%d of %d acknowledged writes are lost", lost, len(acked))
	}
}

// Converge waits until the journals of all nodes end with the same record, and
// so do their chains: what each node applied is the same, in the same order.
// The states are compared row by row then.
func (c *Cluster) Converge(timeout time.Duration, nodes ...*Node) {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	took := Until(c.t, timeout, "the nodes converge", func() (bool, string) {
		var first *api.AuditReport
		for _, n := range nodes {
			report, err := c.Client(10*time.Second, n).VerifyAudit(context.Background(), nil)
			if err != nil {
				return false, n.Name + ": " + err.Error()
			}
			if first == nil {
				first = report
			}
			if report.Last != first.Last || report.Head != first.Head {
				return false, fmt.Sprintf("%s ends at %d with %s, %s at %d with %s", nodes[0].Name, first.Last, first.Head, n.Name, report.Last, report.Head)
			}
		}
		return true, ""
	})
	c.sameRows(nodes)
	c.t.Logf("%d nodes had converged after %v", len(nodes), took.Round(time.Millisecond))
}

// sameRows compares what the nodes store of kinds that do not change by
// themselves.
func (c *Cluster) sameRows(nodes []*Node) {
	c.t.Helper()
	for _, name := range []string{api.KindTenant, api.KindNetwork, api.KindVM, api.KindVolume, api.KindImage} {
		kind, _ := api.LookupKind(name)
		var first string
		for i, n := range nodes {
			list, err := c.Client(10*time.Second, n).Objects(context.Background(), kind, client.ListOptions{
				ReadOptions: client.ReadOptions{Stale: true}, All: kind.TenantScope, Limit: 50_000})
			if err != nil {
				c.t.Fatalf("list %s of %s: %v", kind.Plural, n.Name, err)
			}
			rows := fmt.Sprintf("%s", list.Items)
			if i == 0 {
				first = rows
			} else if rows != first {
				c.t.Fatalf("%s of %s and %s differ:\n%.2000s\n%.2000s", kind.Plural, nodes[0].Name, n.Name, first, rows)
			}
		}
	}
}
