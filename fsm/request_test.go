package fsm_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestARequestRefusedForWantOfRoomIsNotRemembered(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	fsm.RememberAtMost(c.f, 3)
	submit := func(n int) fsm.Outcome {
		network := api.Network{Meta: api.Meta{Name: fmt.Sprintf("n%d", n), Tenant: "default"}, Driver: "bridge", Bridge: "br0"}
		e, err := fsm.Networks.Put(&network)
		if err != nil {
			t.Fatal(err)
		}
		e.RequestID = fmt.Sprintf("request-%d", n)
		return c.propose(e)
	}
	for n := range 3 {
		if out := submit(n); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	for range 5 {
		if out := submit(3); out.Err == nil || out.Err.Code != api.CodeLimit || out.Replayed {
			t.Fatalf("a request beyond the limit: got %+v, want limit", out)
		}
	}
	if n := fsm.Remembered(c.f); n != 3 {
		t.Errorf("%d requests are remembered, want 3", n)
	}
	c.now = c.now.Add(fsm.RequestMemory + time.Second)
	if out := submit(3); out.Err != nil {
		t.Errorf("the same request once there is room: %v", out.Err)
	}
}

// What one node refuses and another carries out ends in two states: an op or a
// field that a binary does not know stops it, wherever in the entry it stands.
func TestAnApplyIsUnderstoodWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"operations":[{"op":"vm.fly","body":{}}]}`,
		`{"operations":[{"op":"vm.power","body":{"tenant":"default","name":"a","power":"on","warp":9}}]}`,
		`{"operations":[{"op":"vm.power"}]}`,
	} {
		c := newCluster(t)
		e := raw("apply", body)
		e.Time = c.now
		if err := c.f.Check(&e); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: Check says %v, want invalid", body, err)
		}
		if _, _, err := c.f.Plan([]fsm.Entry{e}); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: Plan says %v, want invalid", body, err)
		}
		encoded, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.f.ApplyBatch([]fsm.Committed{{Index: 2, Term: 1, Data: encoded}}); !errors.Is(err, fsm.ErrUpgrade) {
			t.Errorf("%s: Apply says %v, want that it stops", body, err)
		}
	}
	for _, body := range []string{
		`{"operations":[{"op":"node.renew","body":{}}]}`,
		`{"operations":[{"op":"apply","body":{"operations":[]}}]}`,
	} {
		c := newCluster(t)
		e := raw("apply", body)
		if out := c.propose(e); out.Err == nil || out.Err.Code != api.CodeInvalid {
			t.Errorf("%s: got %v, want invalid", body, out.Err)
		}
	}
}
