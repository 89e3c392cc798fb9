package fsmtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/fsm/fsmtest"
)

// update writes the golden log of the coming release anew. Those of releases
// are never written again.
var update = flag.Bool("update", false, "write the golden log of the coming release")

const (
	goldenDir  = "../testdata"
	goldenNext = "next" // name of the log of the coming release
	goldenSize = 400
)

// golden is what a golden log must lead to, on every binary to come.
type golden struct {
	Index          uint64   `json:"index"`
	Chain          api.Hash `json:"chain"`
	StateHash      api.Hash `json:"state_hash"`
	Snapshot       int64    `json:"snapshot_bytes"`
	ClusterVersion uint32   `json:"cluster_version"`
}

func result(t *testing.T, f *fsm.FSM) golden {
	t.Helper()
	var buf bytes.Buffer
	size, err := f.Snapshot().WriteTo(&buf)
	if err != nil {
		t.Fatal(err)
	}
	v := f.Read()
	return golden{v.Index(), v.Chain(), v.StateHash(), size, v.ClusterVersion()}
}

func TestGoldenLogsLeadToTheRecordedState(t *testing.T) {
	t.Parallel()
	if *update {
		writeGolden(t)
	}
	logs, err := filepath.Glob(filepath.Join(goldenDir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no golden log: %v", err)
	}
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		log, err := fsmtest.ReadLog(bytes.NewReader(raw))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		f := fsm.New()
		if _, _, err := f.ApplyBatch(log); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		recorded, err := os.ReadFile(strings.TrimSuffix(path, ".log") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var want golden
		if err := json.Unmarshal(recorded, &want); err != nil {
			t.Fatal(err)
		}
		if got := result(t, f); got != want {
			t.Errorf("%s: got %+v, want %+v: a log means something else than when it was written. "+
				"Before the first release, and only then, record it anew with -update", path, got, want)
		}
	}
}

func writeGolden(t *testing.T) {
	t.Helper()
	ops := map[string]bool{}
	m := grow(t, newGenerator(t, seeded(7)), goldenSize, func(_ *fsmtest.Machine, _ *fsm.View, e fsm.Entry, _ fsm.Outcome, _ *fsm.Yield) {
		ops[e.Op] = true
	})
	g := newGenerator(t, seeded(8))
	for _, op := range fsm.Ops() { // whatever chance left out
		const tries = 100 // a maker may first take steps towards its operation
		for try := 0; !ops[op] && try < tries; try++ {
			e := g.Make(m.FSM.Read(), op)
			if _, _, err := m.Append(e); err != nil {
				t.Fatal(err)
			}
			ops[e.Op] = true
		}
	}
	m.Log = append(m.Log, fsm.Committed{Index: m.FSM.Index() + 1, Term: 9}) // a change of the configuration
	if _, _, err := m.FSM.ApplyBatch(m.Log[len(m.Log)-1:]); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := fsmtest.WriteLog(&buf, m.Log); err != nil {
		t.Fatal(err)
	}
	recorded, err := json.MarshalIndent(result(t, m.FSM), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(goldenDir, goldenNext)
	if err := errors.Join(os.MkdirAll(goldenDir, 0o755), os.WriteFile(path+".log", buf.Bytes(), 0o644),
		os.WriteFile(path+".json", append(recorded, '\n'), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestGoldenLogMeetsEveryOperation keeps the log of the coming release complete.
func TestGoldenLogMeetsEveryOperation(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join(goldenDir, goldenNext+".log"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := fsmtest.ReadLog(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := fsmtest.WriteLog(&again, log); err != nil || !bytes.Equal(raw, again.Bytes()) {
		t.Fatalf("the log is not what it was written from: %v", err)
	}
	seen := map[string]bool{}
	for _, c := range log {
		if c.Data == nil {
			continue
		}
		e, err := fsm.DecodeEntry(c.Data)
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Op] = true
	}
	for _, op := range fsm.Ops() {
		if !seen[op] {
			t.Errorf("the golden log lacks %s: record it anew with -update", op)
		}
	}
}

func TestBrokenLogsAreNotRead(t *testing.T) {
	t.Parallel()
	if _, err := fsmtest.ReadLog(strings.NewReader("{\"index\":1}\n{")); err == nil {
		t.Error("half a line was read")
	}
	if err := fsmtest.WriteLog(&bytes.Buffer{}, []fsm.Committed{{Index: 1, Data: []byte{9}}}); err == nil {
		t.Error("an entry of another version was written")
	}
}
