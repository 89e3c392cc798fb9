package gossip_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/gossip"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func start(t *testing.T, id string, change func(*gossip.Config)) (*gossip.Gossip, gossip.Peer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := gossip.Config{ID: id, Meta: gossip.Meta{Name: "name-" + id}, Advertise: l.Addr().String(), Keys: [][]byte{key(1)}, Streams: l, LocalTiming: true,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}}
	if change != nil {
		change(&cfg)
	}
	g, err := gossip.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close(0) })
	return g, gossip.Peer{ID: id, Address: l.Addr().String()}
}

func eventually(t *testing.T, g *gossip.Gossip, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := g.Changed()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("not in time: %s; members %+v", what, g.Members())
		}
	}
}

func state(g *gossip.Gossip, id string) string {
	for _, m := range g.Members() {
		if m.ID == id {
			return m.State
		}
	}
	return ""
}

func TestMembersFindEachOtherAndTellGoodbyeFromFailure(t *testing.T) {
	t.Parallel()
	a, pa := start(t, "a", nil)
	b, _ := start(t, "b", nil)
	c, _ := start(t, "c", nil)
	for _, g := range []*gossip.Gossip{b, c} {
		if n, err := g.Join([]gossip.Peer{pa}); err != nil || n != 1 {
			t.Fatalf("join: %d %v", n, err)
		}
	}
	eventually(t, a, "a sees b and c", func() bool { return a.Alive("b") && a.Alive("c") })
	if err := b.SetMeta(gossip.Meta{Name: "renamed"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "b's new meta", func() bool { return a.Members()[1].Meta.Name == "renamed" })
	if err := b.Close(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "b left", func() bool { return state(a, "b") == gossip.StateLeft })
	if err := c.Close(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "c failed", func() bool { return state(a, "c") == gossip.StateFailed })
}

// TestGoodbyeNeedsNoPacketToArrive loses the news of the meta: the goodbye goes
// over a stream, and counts although no packet told it.
func TestGoodbyeNeedsNoPacketToArrive(t *testing.T) {
	t.Parallel()
	a, pa := start(t, "a", nil)
	b, _ := start(t, "b", func(c *gossip.Config) { c.Meta.Tags = map[string]string{"fill": strings.Repeat("x", 430)} })
	if _, err := b.Join([]gossip.Peer{pa}); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "a sees b", func() bool { return a.Alive("b") })
	meta := a.Members()[1].Meta
	for meta.Leaving = false; len(meta.Name) < gossip.MetaBytesMax; meta.Name += "x" { // so full that "leaving" does not fit
		if b.SetMeta(meta) != nil {
			break
		}
	}
	if err := b.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "b left", func() bool { return state(a, "b") == gossip.StateLeft })
	if a.Members()[1].Meta.Leaving {
		t.Fatal("the meta told it: nothing was shown")
	}
}

func TestWithoutTheKeyOrMembershipNobodyGetsIn(t *testing.T) {
	t.Parallel()
	a, pa := start(t, "a", func(c *gossip.Config) { c.Known = func(id string) bool { return id == "b" } })
	stranger, _ := start(t, "b", func(c *gossip.Config) { c.Keys = [][]byte{key(9)} })
	if _, err := stranger.Join([]gossip.Peer{pa}); err == nil {
		t.Fatal("a node without the key joined")
	}
	invented, _ := start(t, "x", nil)
	_, _ = invented.Join([]gossip.Peer{pa}) // it has the key and is no member: it may or may not get an answer
	conn, err := net.Dial("udp", pa.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	junk := make([]byte, 1200)
	for range 200 {
		_, _ = rand.Read(junk)
		_, _ = conn.Write(junk)
	}
	b, _ := start(t, "b", nil)
	if _, err := b.Join([]gossip.Peer{pa}); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "the member got in", func() bool { return a.Alive("b") })
	if state(a, "x") != "" {
		t.Fatal("an invented member is listed")
	}
}

func TestKeysRotateWithoutALoss(t *testing.T) {
	t.Parallel()
	a, pa := start(t, "a", nil)
	b, _ := start(t, "b", nil)
	if _, err := b.Join([]gossip.Peer{pa}); err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
		for _, g := range []*gossip.Gossip{a, b} {
			if err := g.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.SetMeta(gossip.Meta{Name: "after"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "news under the new key", func() bool { return a.Members()[1].Meta.Name == "after" })
	late, _ := start(t, "c", nil)
	if _, err := late.Join([]gossip.Peer{pa}); err == nil {
		t.Fatal("the old key still opens")
	}
}

func TestMetaIsBounded(t *testing.T) {
	t.Parallel()
	a, _ := start(t, "a", nil)
	err := a.SetMeta(gossip.Meta{Name: strings.Repeat("x", 600)})
	if api.CodeOf(err) != api.CodeLimit {
		t.Fatal(fmt.Sprint("meta of 600 bytes: ", err))
	}
}
