package cluster_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/cluster"
)

// lyingLog gives back another entry than it was given.
type lyingLog struct {
	raft.LogStore
	was, is string // of equal length
}

func (l lyingLog) GetLog(index uint64, entry *raft.Log) error {
	err := l.LogStore.GetLog(index, entry)
	if err == nil {
		entry.Data = bytes.ReplaceAll(entry.Data, []byte(l.was), []byte(l.is))
	}
	return err
}

// corrupt restarts a node on a disk that turns one entry into another.
func (n *node) corrupt() {
	n.t.Helper()
	n.kill()
	if err := os.Remove(n.cfg.DataDir + "/journal.db"); err != nil { // it would tell
		n.t.Fatal(err)
	}
	n.cfg.WrapLog = func(store raft.LogStore) raft.LogStore { return lyingLog{store, "tenant-a", "tenant-b"} }
	n.ended, n.fatal = make(chan struct{}), nil
	n.open()
}

// Row 11: a node whose state is not the quorum's ends, whoever leads, and the
// others go on.
func TestRow11ANodeThatDivergedEnds(t *testing.T) {
	t.Parallel()
	for _, voter := range []bool{true, false} {
		t.Run(map[bool]string{true: "voter", false: "replica"}[voter], func(t *testing.T) {
			t.Parallel()
			c := start(t, 3, nil)
			wrong := c.follower()
			if !voter {
				wrong = newNode(t, "replica", nil)
				c.join(wrong, false)
			}
			c.must(c.waitLeader(), tenant("tenant-a"))
			c.converged(c.nodes...)
			wrong.corrupt()
			c.ready(wrong)
			c.must(c.waitLeader(), tenant("later"))
			c.eventually("the diverged node ends", func() bool {
				wrong.CompareState(t.Context())
				select {
				case <-wrong.ended:
					return true
				case <-time.After(10 * time.Millisecond):
					return false
				}
			})
			f := wrong.fatal[0]
			if f.ExitStatus != cluster.ExitError || !strings.Contains(f.Err.Error(), "quorum") {
				t.Fatalf("ended with %+v", f)
			}
			for _, n := range c.nodes {
				if n == wrong {
					continue
				}
				n.CompareState(t.Context())
				if len(n.Unready()) > 0 || voter != (n.Stats().Diverged != "") {
					t.Errorf("%s: unready %v, diverged %q", n.name, n.Unready(), n.Stats().Diverged)
				}
				select {
				case <-n.ended:
					t.Errorf("%s ended too: %+v", n.name, n.fatal)
				default:
				}
			}
		})
	}
}

// Two nodes that differ cannot know which one is right: neither ends, and both
// say that they are not ready.
func TestRow11WithoutAQuorumNobodyEnds(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	c.must(c.waitLeader(), tenant("tenant-a"))
	c.converged(c.nodes...)
	wrong := c.follower()
	wrong.corrupt()
	c.ready(wrong)
	c.must(c.waitLeader(), tenant("later"))
	for _, n := range c.nodes {
		c.eventually(n.name+" notices", func() bool {
			n.CompareState(t.Context())
			return n.Stats().Diverged != "" && len(n.Unready()) > 0
		})
		select {
		case <-n.ended:
			t.Errorf("%s ended: %+v", n.name, n.fatal)
		default:
		}
	}
}
