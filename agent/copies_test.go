package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
)

// TestCopiesTakeTurns: two of one pool run at once, one tenant does not take all
// places from another, and who waits is told why.
func TestCopiesTakeTurns(t *testing.T) {
	t.Parallel()
	var c copies
	limits := func(string) copyLimits { return copyLimits{node: 3, pool: 2} }
	take := func(pool, tenant string, tell func(string)) func() {
		t.Helper()
		release, err := c.take(t.Context(), pool, tenant, limits, tell)
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	quiet := func(string) { t.Error("a copy that has a place was told to wait") }
	first, second := take("a", "busy", quiet), take("a", "busy", quiet)

	order, told := make(chan string, 3), make(chan string, 3)
	var wg sync.WaitGroup
	wait := func(tenant string) {
		wg.Go(func() {
			release, err := c.take(t.Context(), "a", tenant, limits, func(why string) { told <- why })
			if err != nil {
				t.Error(err)
				return
			}
			order <- tenant
			release()
		})
		if why := <-told; !strings.Contains(why, "2 of 2 copies run on pool a") {
			t.Errorf("told %q", why)
		}
	}
	wait("busy")
	wait("other") // came later, and copies less
	third := take("b", "busy", quiet)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.take(ctx, "b", "busy", limits, func(why string) {
		if !strings.Contains(why, "3 of 3 copies run on this node") {
			t.Errorf("told %q", why)
		}
	}); err == nil {
		t.Error("a copy over the limit of the node got a place")
	}
	first()
	if tenant := <-order; tenant != "other" {
		t.Errorf("the place went to tenant %s", tenant)
	}
	second()
	third()
	wg.Wait()
	if c.running != 0 || c.inPool("a") != 0 || len(c.waiting) != 0 {
		t.Errorf("places are lost: %+v", &c)
	}
}

func TestClaimsAreAllOrNothing(t *testing.T) {
	t.Parallel()
	var c claims
	release, holder := c.take("one", "x", "y")
	if release == nil || holder != "" {
		t.Fatal("a free volume was not claimed")
	}
	if r, holder := c.take("two", "z", "y"); r != nil || holder != "one" {
		t.Errorf("a claimed volume was claimed again, from %q", holder)
	}
	release()
	if r, _ := c.take("three", "z", "y"); r == nil {
		t.Error("what was given back, and what a refused claim named, is not free")
	}

	read, err := c.share(t.Context(), "reader", "x")
	also, err2 := c.share(t.Context(), "reader", "x")
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	read()
	if r, holder := c.take("four", "x"); r != nil || holder != "reader" {
		t.Errorf("what is read was claimed, from %q", holder)
	}
	also()
	alone, _ := c.take("five", "x")
	if alone == nil {
		t.Fatal("what nobody reads any more was not claimed")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.share(ended, "reader", "x"); err == nil {
		t.Error("what is claimed was read")
	}
	shared := make(chan error, 1)
	go func() {
		r, err := c.share(t.Context(), "reader", "x")
		if err == nil {
			r()
		}
		shared <- err
	}()
	alone()
	if err := <-shared; err != nil {
		t.Error(err)
	}
}
