package fsm_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// apply hands raw bytes to Apply as the next entry of the log.
func (c *cluster) apply(raw string) error {
	_, _, err := c.f.ApplyBatch([]fsm.Committed{{Index: c.index + 1, Term: 1, Data: []byte(raw)}})
	return err
}

func TestEntryThatIsNotUnderstoodStopsTheNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	put := func(body string) string {
		return "\x01" + `{"op":"tenant.put","time":"2026-01-02T03:04:05Z","body":` + body + `}`
	}
	for name, raw := range map[string]string{
		"nothing":                       "",
		"another version":               "\x02" + put(`{"name":"a"}`)[1:],
		"no JSON":                       "\x01{",
		"two values":                    put(`{"name":"a"}`) + "{}",
		"an unknown op":                 strings.Replace(put(`{"name":"a"}`), "tenant.put", "tenant.paint", 1),
		"a field of a newer entry":      strings.Replace(put(`{"name":"a"}`), `"op"`, `"colour":"red","op"`, 1),
		"a field of a newer object":     put(`{"name":"a","colour":"red"}`),
		"a field of a newer meta":       put(`{"name":"a","labels":{},"owner":"me"}`),
		"another type":                  put(`{"name":1}`),
		"a number that does not fit":    put(`{"name":"a","modified":-1}`),
		"an object where a list should": put(`[]`),
	} {
		before := c.f.Read().StateHash()
		if err := c.apply(raw); !errors.Is(err, fsm.ErrUpgrade) {
			t.Errorf("%s: got %v, want ErrUpgrade", name, err)
		}
		if c.f.Index() != c.index || c.f.Read().StateHash() != before {
			t.Errorf("%s: something was applied", name)
		}
	}
	if err := c.apply(put(`{"name":"a"}`)); err != nil {
		t.Fatalf("the entry as it should be: %v", err)
	}
}

// TestVersionThatIsNotUnderstoodStopsTheNode: what follows its activation may
// mean something else than this binary thinks.
func TestVersionThatIsNotUnderstoodStopsTheNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(1), Address: "127.0.0.1:7443", ClusterVersion: fsm.VersionMax + 1}))
	e := fsm.ActivateVersion.Entry(fsm.VersionActivate{Version: fsm.VersionMax + 1})
	e.Time = c.now
	raw, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.apply(string(raw)); !errors.Is(err, fsm.ErrUpgrade) {
		t.Fatalf("got %v, want ErrUpgrade", err)
	}
	if v := c.f.Read(); v.ClusterVersion() != fsm.VersionMin || v.Index() != c.index {
		t.Fatalf("version %d is active at %d", v.ClusterVersion(), v.Index())
	}
	var buf bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	newer := resealed(t, buf.Bytes(), `"cluster_version":1`, `"cluster_version":2`)
	if err := fsm.New().Restore(bytes.NewReader(newer)); !errors.Is(err, fsm.ErrUpgrade) {
		t.Fatalf("restore of a newer version: got %v, want ErrUpgrade", err)
	}
	if err := c.f.Check(&fsm.Entry{Op: "tenant.put", Body: []byte(`{"name":"a","colour":"red"}`)}); api.CodeOf(err) != api.CodeInvalid {
		t.Fatalf("Check lets a newer field pass: %v", err)
	}
}
