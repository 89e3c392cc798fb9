package bridge

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// verifyEvery is how often the rules are compared with what was applied,
// while nothing is to be changed.
const verifyEvery = 10 * time.Second

// rules is what was applied last.
type rules struct {
	mu       sync.Mutex // one change at a time; guards below
	applied  string     // as written for nft; empty: nothing yet
	listed   [sha256.Size]byte
	verified time.Time
	follows  error     // why connections cannot be followed; nil: they can
	asked    time.Time // when that was found out
}

// Protect implements plugins.Network.
func (n *Network) Protect(ctx context.Context, p plugins.Protection) error {
	if err := checkProtection(p); err != nil {
		return err
	}
	text := ruleset(n.table, p)
	empty := text == ruleset(n.table, plugins.Protection{})
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	r := &n.rules
	if r.applied == text {
		if empty || time.Since(r.verified) < verifyEvery {
			return nil
		}
		if sum, err := n.listing(ctx); err == nil && sum == r.listed {
			r.verified = time.Now()
			return nil
		}
		n.logger.Warn("the rules were changed by others: applying them again", "table", n.table)
	}
	if empty && !n.filters(ctx) {
		r.applied = text
		return nil
	}
	if stateful(p) {
		if err := n.followsLocked(ctx); err != nil {
			return err
		}
	}
	if _, err := n.nft(ctx, text, "-f", "-"); err != nil {
		r.applied = ""
		return err
	}
	r.applied, r.verified = text, time.Now()
	var err error
	if r.listed, err = n.listing(ctx); err != nil {
		r.applied = "" // the next call applies them again, which does no harm
		return err
	}
	n.logger.Debug("rules applied", "table", n.table, "ports", len(p.Ports))
	return nil
}

// filters reports whether there are rules of ours. Without nft nobody made
// any.
func (n *Network) filters(ctx context.Context) bool {
	families, err := n.families(ctx)
	return err == nil && len(families) > 0
}

// families are those in which we have a table.
func (n *Network) families(ctx context.Context) ([]string, error) {
	out, err := n.nft(ctx, "", "list", "tables")
	if err != nil {
		return nil, err
	}
	var have []string
	for _, family := range []string{"bridge", "inet"} {
		if strings.Contains(out, "table "+family+" "+n.table+"\n") {
			have = append(have, family)
		}
	}
	return have, nil
}

// listing is a digest of our tables as the kernel has them.
func (n *Network) listing(ctx context.Context) (sum [sha256.Size]byte, err error) {
	families, err := n.families(ctx)
	if err != nil {
		return sum, err
	}
	var all strings.Builder
	for _, family := range families {
		out, err := n.nft(ctx, "", "list", "table", family, n.table)
		if err != nil {
			return sum, err
		}
		all.WriteString(out)
	}
	return sha256.Sum256([]byte(all.String())), nil
}

// followsLocked asks the kernel whether it follows connections over bridges,
// and loads what it needs for that if it has it. The answer is kept for a
// minute.
func (n *Network) followsLocked(ctx context.Context) error {
	r := &n.rules
	if !r.asked.IsZero() && time.Since(r.asked) < time.Minute {
		return r.follows
	}
	probe := "table bridge " + n.table + "-probe {\n\tchain probe {\n\t\tct state established accept\n\t}\n}\n"
	_, err := n.nft(ctx, probe, "-c", "-f", "-")
	switch {
	case err == nil:
		r.follows = nil
	case api.CodeOf(err) == api.CodeUnavailable:
		r.follows = err
	default:
		r.follows = api.Errorf(api.CodeUnavailable, "the kernel cannot follow connections over bridges").
			Do("load the kernel module nf_conntrack_bridge, which Debian's kernels have")
		n.logger.Debug("connections over bridges cannot be followed", "error", err)
	}
	r.asked = time.Now()
	return r.follows
}
