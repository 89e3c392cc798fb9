// Package gossip tells which nodes seem to be up. It adapts
// hashicorp/memberlist to the cluster's one port: packets over UDP on the same
// port number, encrypted with the cluster's keyring, and streams over the
// TLS port, where only nodes get in.
//
// What it says is a hint. Membership, ownership and every deadline that
// matters are decided in the replicated state; gossip speeds up what is shown
// and stops new placements early.
package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
)

// Limits of gossip.
const (
	MetaBytesMax = memberlist.MetaMaxSize // 512: what a node tells about itself
	updateWait   = 5 * time.Second        // for a change of the meta to leave
	goodbyesMax  = 16                     // streams that carry a goodbye at once
	MembersMax   = 2 * api.NodesMax       // kept, the departed included
)

// The states of a member.
const (
	StateAlive  = "alive"
	StateFailed = "failed" // it stopped answering
	StateLeft   = "left"   // it said goodbye
)

// Meta is what a node tells about itself, at most MetaBytesMax as JSON.
type Meta struct {
	Name    string            `json:"n"`          // the node's name
	Version string            `json:"v,omitzero"` // of its binary
	Tags    map[string]string `json:"t,omitzero"`
	Leaving bool              `json:"l,omitzero"` // set by Close: memberlist does not tell why a member is gone
}

// Member is a node as gossip sees it.
type Member struct {
	ID      string    `json:"id"`
	Address string    `json:"address"` // host:port
	State   string    `json:"state"`
	Meta    Meta      `json:"meta"`
	Since   time.Time `json:"since"` // of the state, by this node's clock
}

// Config is what gossip needs.
type Config struct {
	ID        string   // of this node, its identity everywhere
	Meta      Meta     // what it tells about itself
	Advertise string   // host:port with an IP address that others reach
	Keys      [][]byte // 32 bytes each, the one to encrypt with first
	// Streams yields connections from other nodes, already authenticated. Its
	// address is where the packets are received, too.
	Streams net.Listener
	// Dial opens an authenticated stream to the node at an address.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Known reports whether an ID is a node of the cluster. Others are ignored,
	// however many somebody invents.
	Known  func(id string) bool
	Logger hclog.Logger
	// LocalTiming suits tests on one machine.
	LocalTiming bool
}

// Gossip is this node's place in the gossip. Its methods are safe for
// concurrent use.
type Gossip struct {
	cfg       Config
	list      *memberlist.Memberlist
	keyring   *memberlist.Keyring
	transport *transport

	mu      sync.Mutex // guards what follows
	meta    []byte
	members map[string]Member
	goodbye map[string]bool // IDs of members that said goodbye since they came
	changed chan struct{}
	closed  bool
}

// Start begins to listen. It knows nobody before Join.
func Start(cfg Config) (*Gossip, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	meta, err := encodeMeta(cfg.Meta)
	if err != nil {
		return nil, err
	}
	if len(cfg.Keys) == 0 {
		return nil, api.Invalid("keys", "are missing").Allow("at least one")
	}
	g := &Gossip{cfg: cfg, meta: meta, members: map[string]Member{}, goodbye: map[string]bool{}, changed: make(chan struct{})}
	if g.keyring, err = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]); err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	if g.transport, err = newTransport(cfg); err != nil {
		return nil, err
	}
	if g.list, err = memberlist.Create(g.config()); err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip: %w", err), g.transport.Shutdown())
	}
	return g, nil
}

func (g *Gossip) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	if g.cfg.LocalTiming {
		c = memberlist.DefaultLocalConfig()
		c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 100*time.Millisecond, 100*time.Millisecond, 2
	}
	c.Name = g.cfg.ID
	c.Transport = g.transport
	c.Keyring = g.keyring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.Delegate, c.Events, c.Alive = delegate{g}, delegate{g}, delegate{g}
	c.RequireNodeNames = true
	c.AdvertiseAddr, c.AdvertisePort = g.transport.ip.String(), g.transport.port
	c.BindPort = g.transport.port
	c.LogOutput = nil
	c.Logger = log.New(&lines{g.cfg.Logger}, "", 0)
	return c
}

func encodeMeta(m Meta) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode meta: %w", err)
	}
	if len(b) > MetaBytesMax {
		return nil, api.Errorf(api.CodeLimit, "what the node tells about itself has %d bytes", len(b)).Allow("at most %d", MetaBytesMax)
	}
	return b, nil
}

// Peer is a node to get in touch with.
type Peer struct {
	ID      string
	Address string // host:port with an IP address
}

// Join gets in touch with others and learns from them whom they know. It
// returns how many answered; none is an error.
func (g *Gossip) Join(peers []Peer) (int, error) {
	addresses := make([]string, 0, len(peers))
	for _, p := range peers {
		if p.ID != g.cfg.ID {
			addresses = append(addresses, p.ID+"/"+p.Address)
		}
	}
	if len(addresses) == 0 {
		return 0, nil
	}
	n, err := g.list.Join(addresses)
	if err != nil && n == 0 {
		return 0, fmt.Errorf("join gossip: %w", err)
	}
	return n, nil
}

// Members are the nodes that gossip has heard of, this one included, by ID.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Alive reports whether a node seems to be up.
func (g *Gossip) Alive(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[id].State == StateAlive
}

// Changed returns a channel that closes when a member changes next.
func (g *Gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// SetMeta changes what the node tells about itself.
func (g *Gossip) SetMeta(m Meta) error {
	meta, err := encodeMeta(m)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.meta = meta
	g.mu.Unlock()
	if err := g.list.UpdateNode(updateWait); err != nil {
		return fmt.Errorf("spread meta: %w", err)
	}
	return nil
}

// SetKeys replaces the keyring: packets are encrypted with the first key and
// accepted under any.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return api.Invalid("keys", "are missing").Allow("at least one")
	}
	for _, k := range keys {
		if err := g.keyring.AddKey(k); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	if err := g.keyring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	for _, have := range g.keyring.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return slices.Equal(k, have) }) {
			if err := g.keyring.RemoveKey(have); err != nil {
				return fmt.Errorf("gossip keys: %w", err)
			}
		}
	}
	return nil
}

// Close says goodbye within timeout (0: without), and stops. A member that
// cannot be dialled and is not known to have failed yet may hold it up for
// memberlist's TCP timeout (10 s).
func (g *Gossip) Close(timeout time.Duration) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.mu.Unlock()
	var err error
	if timeout > 0 {
		g.sayLeaving(timeout)
		err = g.list.Leave(timeout)
	}
	return errors.Join(err, g.list.Shutdown())
}

// sayLeaving tells the others that what follows is no failure: in the meta,
// and over streams, because packets may be lost or overtake one another.
func (g *Gossip) sayLeaving(timeout time.Duration) {
	deadline := time.Now().Add(timeout)
	var streams errgroup.Group
	streams.SetLimit(goodbyesMax)
	for _, n := range g.list.Members() {
		if n.Name == g.cfg.ID {
			continue
		}
		streams.Go(func() error {
			if time.Now().After(deadline) {
				return nil
			}
			if err := g.list.SendReliable(n, []byte(g.cfg.ID)); err != nil {
				g.cfg.Logger.Debug("goodbye not heard", "node", n.Name, "error", err)
			}
			return nil
		})
	}
	_ = streams.Wait() // a goodbye that is not heard shows as a failure
	var m Meta
	g.mu.Lock()
	if json.Unmarshal(g.meta, &m) == nil {
		m.Leaving = true
		if meta, err := encodeMeta(m); err == nil {
			g.meta = meta
		}
	}
	g.mu.Unlock()
	if err := g.list.UpdateNode(max(time.Millisecond, time.Until(deadline))); err != nil {
		g.cfg.Logger.Debug("nobody heard the goodbye", "error", err)
	}
}

// note records news of a member. It never blocks.
func (g *Gossip) note(n *memberlist.Node, state string) {
	m := Member{ID: n.Name, Address: n.Address(), State: state, Since: time.Now()}
	if json.Unmarshal(n.Meta, &m.Meta) != nil {
		m.Meta = Meta{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	have, known := g.members[m.ID]
	if !known && len(g.members) >= MembersMax {
		return
	}
	switch {
	case state == StateAlive && have.State != StateAlive:
		delete(g.goodbye, m.ID)
	case state == StateFailed && (m.Meta.Leaving || g.goodbye[m.ID]):
		m.State = StateLeft
	}
	g.members[m.ID] = m
	g.announce()
}

// heardGoodbye records that a member leaves, or has left. It never blocks.
func (g *Gossip) heardGoodbye(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, known := g.members[id]
	if !known {
		return
	}
	g.goodbye[id] = true
	if m.State == StateFailed {
		m.State = StateLeft
		g.members[id] = m
		g.announce()
	}
}

// announce wakes those who wait for a change. The caller holds g.mu.
func (g *Gossip) announce() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// delegate is what memberlist calls. It must not block and copies what it keeps.
type delegate struct{ g *Gossip }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(limit int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	if len(d.g.meta) > limit {
		return nil
	}
	return slices.Clone(d.g.meta)
}

// NotifyMsg implements memberlist.Delegate: what members send one another is
// the ID of the one that leaves.
func (d delegate) NotifyMsg(id []byte) { d.g.heardGoodbye(string(id)) }

// GetBroadcasts implements memberlist.Delegate.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (delegate) MergeRemoteState([]byte, bool) {}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.g.note(n, StateAlive) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.g.note(n, StateAlive) }

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.g.note(n, StateFailed) }

// NotifyAlive implements memberlist.AliveDelegate: an ID that the state does
// not know is ignored.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.g.cfg.ID || d.g.cfg.Known == nil || d.g.cfg.Known(n.Name) {
		return nil
	}
	return fmt.Errorf("node %s is not a member", n.Name)
}

// lines passes memberlist's log lines on, by their level.
type lines struct{ logger hclog.Logger }

var _ io.Writer = (*lines)(nil)

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	text := strings.TrimSpace(string(b))
	switch {
	case strings.Contains(text, "[ERR]"), strings.Contains(text, "[WARN]"):
		l.logger.Warn("gossip", "text", text)
	default:
		l.logger.Debug("gossip", "text", text)
	}
	return len(b), nil
}

func splitAddress(address string) (net.IP, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, api.Invalid("advertise", "is %q", address).Allow("host:port")
	}
	n, err := strconv.Atoi(port)
	if err != nil || n <= 0 || n > 65535 {
		return nil, 0, api.Invalid("advertise", "is %q", address).Allow("host:port")
	}
	ip := net.ParseIP(host)
	if ip == nil {
		resolved, err := net.ResolveIPAddr("ip", host)
		if err != nil {
			return nil, 0, fmt.Errorf("resolve %s: %w", host, err)
		}
		ip = resolved.IP
	}
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return ip, n, nil
}
