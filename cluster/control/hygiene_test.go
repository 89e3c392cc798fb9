package control_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
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

func TestCompareReportsWhoDiffers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		for n := 2; n <= 5; n++ {
			c.join(n, "", false)
			if n < 5 {
				c.register(n, 1) // node 5 is not live: it is not asked
			}
		}
		var reported []string
		ctl := newControl(t, c, func(conf *control.Config) {
			conf.HashAt = func(_ context.Context, n *api.Node, index uint64) (api.Hash, error) {
				switch n.Name {
				case "node2":
					hash, ok := c.f.HashAt(index)
					if !ok {
						return hash, errors.New("not there")
					}
					return hash, nil
				case "node3":
					return api.Hash{1}, nil
				case "node4":
					return api.Hash{}, errors.New("unreachable")
				}
				t.Errorf("%s was asked", n.Name)
				return api.Hash{}, nil
			}
			conf.OnDivergence = func(node string, index uint64) { reported = append(reported, node) }
		})
		diverged, err := ctl.Compare(t.Context())
		if err != nil || !slices.Equal(diverged, []string{"node3"}) || !slices.Equal(reported, diverged) {
			t.Fatalf("got %v, %v, reported %v; want node3", diverged, err, reported)
		}
		l := lead(t, c, ctl, 2)
		l.pass(25 * time.Second)
		l.stop()
		if len(reported) < 3 {
			t.Fatalf("got %d reports: the loop does not compare", len(reported))
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
	if _, err := ctl.Compare(t.Context()); err == nil {
		t.Fatal("nobody to ask, and no error")
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
