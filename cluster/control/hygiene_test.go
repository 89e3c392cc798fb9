package control_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

func TestExpiredJoinTokensAreTrimmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		for n, life := range map[int]time.Duration{2: time.Minute, 3: time.Hour} {
			c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: nodeName(n), Hash: nodeHash(n), Expires: time.Now().Add(life)}))
		}
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		pass(5 * time.Minute)
		view := c.f.Read()
		if fsm.JoinTokens.Get(view, "node2") != nil || fsm.JoinTokens.Get(view, "node3") == nil {
			t.Fatal("want the expired token gone and the other kept")
		}
		if n := c.count(fsm.TrimTokens.Op()); n != 1 {
			t.Fatalf("got %d trims, want 1", n)
		}
	})
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := control.New(control.Config{}); err == nil {
		t.Fatal("an empty configuration was accepted")
	}
	ctl := newControl(t, newCluster(t), nil)
	if err := ctl.Run(t.Context(), 0); err == nil {
		t.Fatal("term 0 was accepted")
	}
}

func TestSystemClockGoesForward(t *testing.T) {
	t.Parallel()
	clock := control.SystemClock()
	a := clock.Elapsed()
	if b := clock.Elapsed(); b < a {
		t.Fatalf("%v came after %v", b, a)
	}
	if clock.Now().IsZero() {
		t.Fatal("no time")
	}
}
