package httpd

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of tickets.
const (
	TicketsMax       = 4096             // that a node keeps at once
	TicketsPerKeyMax = 64               // of one key
	GuessesMax       = 10               // bad tickets of one address in GuessWindow; then it is refused unheard
	GuessWindow      = time.Minute      //
	guessersMax      = 4096             // addresses that are remembered; beyond, all others share one count
	redeemTimeout    = 10 * time.Second // for the node that issued a ticket to answer
	ticketPrefix     = "dvt_"
	// ticketProtocol carries a ticket where a browser opens a WebSocket, as
	// keyProtocol does a key; it stays out of the address, and so out of logs.
	ticketProtocol = "debvisor.ticket."
)

// TicketClaim shows a ticket to the node that issued it. It carries the hash
// of the secret only.
type TicketClaim struct {
	Hash string `json:"hash"`
	Kind string `json:"kind"` // of the console that is opened with it
	VM   string `json:"vm"`   // key of the VM that it is opened of
}

// TicketGrant is what a good ticket stands for.
type TicketGrant struct {
	Key      string `json:"key"`      // API key that asked for the ticket
	Revision uint64 `json:"revision"` // of that key, then
	VM       string `json:"vm"`       // ID
}

type ticket struct {
	TicketGrant
	kind    string
	vm      string // key
	expires time.Time
}

// tickets are those that this node has issued. They are in its memory and
// nowhere else: a ticket lives for seconds, and writing each into the log twice
// would cost the cluster more than a console is worth. A restart ends them.
type tickets struct {
	mu      sync.Mutex // guards below
	live    map[string]ticket
	guesses map[netip.Addr]guesses
}

type guesses struct {
	count int
	since time.Time
}

func newTickets() *tickets {
	return &tickets{live: map[string]ticket{}, guesses: map[netip.Addr]guesses{}}
}

func hashTicket(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// issue keeps the ticket and returns its secret.
func (t *tickets) issue(k ticket, now time.Time) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := 0
	for hash, other := range t.live {
		if !now.Before(other.expires) {
			delete(t.live, hash)
		} else if other.Key == k.Key {
			mine++
		}
	}
	if len(t.live) >= TicketsMax || mine >= TicketsPerKeyMax {
		return "", withStatus(http.StatusTooManyRequests, api.Errorf(api.CodeLimit, "there are too many unused tickets").
			Allow("%d of a key, %d of a node", TicketsPerKeyMax, TicketsMax).Do("use them, or wait %v", api.TicketLife))
	}
	secret := rand.Text() + rand.Text()
	t.live[hashTicket(secret)] = k
	return secret, nil
}

func badTicket() *api.Error {
	return api.Errorf(api.CodeUnauthenticated, "the ticket is unknown, used or expired").Do("ask for another one: a ticket is good once, for %v", api.TicketLife)
}

func foreignTicket() *api.Error {
	return api.Errorf(api.CodeForbidden, "the ticket is for another console").Do("ask for a ticket for this VM and this kind of console")
}

// redeem uses a ticket up, also where it is shown at the wrong door.
func (t *tickets) redeem(claim TicketClaim, now time.Time) (TicketGrant, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, known := t.live[claim.Hash]
	delete(t.live, claim.Hash)
	switch {
	case !known || !now.Before(k.expires):
		return TicketGrant{}, badTicket()
	case k.kind != claim.Kind || k.vm != claim.VM:
		return TicketGrant{}, foreignTicket()
	}
	return k.TicketGrant, nil
}

// hears reports whether an address may show another ticket.
func (t *tickets) hears(from netip.Addr, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.guesses[t.guesser(from)]; g.count >= GuessesMax && now.Sub(g.since) < GuessWindow {
		return withStatus(http.StatusTooManyRequests, api.Errorf(api.CodeLimit, "%d bad tickets came from this address", g.count).
			Allow("%d in %v", GuessesMax, GuessWindow).Do("wait %v", GuessWindow))
	}
	return nil
}

// guessed counts a bad ticket.
func (t *tickets) guessed(from netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.guesser(from)
	if _, known := t.guesses[at]; !known && len(t.guesses) >= guessersMax {
		for other, g := range t.guesses {
			if now.Sub(g.since) >= GuessWindow {
				delete(t.guesses, other)
			}
		}
	}
	g := t.guesses[at]
	if now.Sub(g.since) >= GuessWindow {
		g = guesses{since: now}
	}
	g.count++
	t.guesses[at] = g
}

// guesser is under what an address is counted: one host may have all of an
// IPv6 network.
func (t *tickets) guesser(from netip.Addr) netip.Addr {
	if from.Is6() {
		if prefix, err := from.Prefix(64); err == nil {
			from = prefix.Addr()
		}
	}
	if _, known := t.guesses[from]; !known && len(t.guesses) >= guessersMax {
		return netip.Addr{}
	}
	return from
}

// RedeemTicket uses a ticket of this node up, for another node that was shown
// it.
func (s *Server) RedeemTicket(claim TicketClaim) (TicketGrant, error) {
	return s.tickets.redeem(claim, time.Now())
}

type ticketInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
}

type ticketBody struct {
	Kind string `json:"kind" enum:"serial,vnc" doc:"of console: serial or vnc"`
}

// issueTicket answers with a ticket for a console that the caller may open.
func (x *exchange) issueTicket(in *ticketInput) error {
	var body ticketBody
	if err := x.decode(&body); err != nil {
		return err
	}
	paths := map[string]string{api.ConsoleSerial: "console", api.ConsoleVNC: "vnc"}
	if paths[body.Kind] == "" {
		return api.Invalid("kind", "is %.64q", body.Kind).Allow("%s, %s", api.ConsoleSerial, api.ConsoleVNC)
	}
	vm, _, err := x.placedVM(in.Name)
	if err != nil {
		return err
	}
	now := time.Now()
	k := ticket{TicketGrant: TicketGrant{Key: x.who.key, Revision: x.who.auth.Revision, VM: vm.ID}, kind: body.Kind,
		vm: api.Key(x.tenant, in.Name), expires: now.Add(api.TicketLife)}
	secret, err := x.s.tickets.issue(k, now)
	if err != nil {
		return err
	}
	path := "/v1/vms/" + in.Name + "/" + paths[body.Kind]
	if x.tenant != api.DefaultTenant {
		path += "?tenant=" + x.tenant
	}
	return x.answer(http.StatusCreated, api.ConsoleTicket{Ticket: ticketPrefix + x.s.cfg.Node + "_" + secret, Kind: body.Kind,
		Path: path, Node: x.s.cfg.Node, Expires: k.expires.UTC()})
}

// givenTicket is the ticket that a request carries, or "".
func givenTicket(r *http.Request) string {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if t, ok := strings.CutPrefix(strings.TrimSpace(p), ticketProtocol); ok {
				return t
			}
		}
	}
	return r.URL.Query().Get("ticket")
}

// admitTicket takes a ticket for the key that asked for it. A key that comes
// along must be that one. What the key may do is asked as for any request.
func (x *exchange) admitTicket(text string) error {
	if len(x.r.Header.Values("Authorization")) > 0 {
		if err := x.authenticate(); err != nil {
			return err
		}
	}
	now := time.Now()
	if err := x.s.tickets.hears(x.peer(), now); err != nil {
		return err
	}
	grant, err := x.redeem(text)
	if err != nil {
		if code := api.CodeOf(err); code == api.CodeUnauthenticated || code == api.CodeForbidden {
			x.s.tickets.guessed(x.peer(), now)
		}
		return err
	}
	if x.who.key != "" && x.who.key != grant.Key {
		x.s.tickets.guessed(x.peer(), now)
		return api.Errorf(api.CodeForbidden, "the ticket is of another key").Do("open the console with the ticket alone, or with a ticket of this key")
	}
	key := fsm.APIKeys.Get(x.s.cfg.Cluster.State().Read(), grant.Key)
	if key == nil || key.Modified != grant.Revision || !live(key) || !x.from(key) {
		return badTicket()
	}
	x.who = principalOf(key)
	x.ticketVM = grant.VM
	return nil
}

// redeem uses the ticket up at the node that it names.
func (x *exchange) redeem(text string) (TicketGrant, error) {
	rest, ok := strings.CutPrefix(text, ticketPrefix)
	node, secret, cut := strings.Cut(rest, "_")
	if !ok || !cut || len(secret) != secretLength || api.CheckName("node", node) != nil {
		return TicketGrant{}, badTicket()
	}
	tenant := cmp.Or(x.r.URL.Query().Get("tenant"), api.DefaultTenant)
	claim := TicketClaim{Hash: hashTicket(secret), Kind: x.route.console, VM: api.Key(tenant, mux.Vars(x.r)["name"])}
	if node == x.s.cfg.Node {
		return x.s.RedeemTicket(claim)
	}
	if x.s.cfg.Redeem == nil || fsm.Nodes.Get(x.s.cfg.Cluster.State().Read(), node) == nil {
		return TicketGrant{}, badTicket()
	}
	ctx, cancel := context.WithTimeout(x.ctx(), redeemTimeout)
	defer cancel()
	return x.s.cfg.Redeem(ctx, node, claim)
}
