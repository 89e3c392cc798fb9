package cluster

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of joining.
const (
	joinBytesMax   = 64 << 10 // of one message from a caller without a certificate
	joinTimeout    = 60 * time.Second
	joinRateAll    = 20 // attempts a second, from everywhere
	joinRateHost   = 2  // attempts a second, from one address
	joinBurst      = 10
	joinHostsMax   = 4096 // addresses remembered
	tokenPrefix    = "debvisor1-"
	tokenSecret    = 32 // bytes
	tokenLengthMax = 512
	// DefaultPort is the port of a node when none is named.
	DefaultPort = "7443"
)

// token is what a join token says: its name, its secret, and which CA the
// cluster has.
type token struct {
	name   string
	secret []byte
	pin    [sha256.Size]byte
}

func tokenEncoding() *base32.Encoding {
	return base32.StdEncoding.WithPadding(base32.NoPadding)
}

func (t token) String() string {
	raw := append([]byte{byte(len(t.name))}, t.name...)
	raw = append(append(raw, t.secret...), t.pin[:]...)
	return tokenPrefix + strings.ToLower(tokenEncoding().EncodeToString(raw))
}

func parseToken(text string) (token, error) {
	bad := func() (token, error) {
		return token{}, api.Invalid("token", "is not a join token").Allow("what debvisor node token printed, whole").Do("copy it again, or make a new one")
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok || len(rest) > tokenLengthMax {
		return bad()
	}
	raw, err := tokenEncoding().DecodeString(strings.ToUpper(rest))
	if err != nil || len(raw) == 0 || len(raw) != 1+int(raw[0])+tokenSecret+sha256.Size {
		return bad()
	}
	n := 1 + int(raw[0])
	t := token{name: string(raw[1:n]), secret: raw[n : n+tokenSecret]}
	copy(t.pin[:], raw[n+tokenSecret:])
	return t, nil
}

func secretHash(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// NewToken makes a join token that lives for life (0: api.JoinTokenLife). It
// returns the entry that makes it valid, for the caller to propose in the
// user's name, and the text to hand out, which is kept nowhere.
func (s *Server) NewToken(life time.Duration, witness bool) (fsm.Entry, string, error) {
	if life == 0 {
		life = api.JoinTokenLife
	}
	secret := make([]byte, tokenSecret)
	if _, err := rand.Read(secret); err != nil {
		return fsm.Entry{}, "", fmt.Errorf("make token: %w", err)
	}
	t := token{name: "t-" + strings.ReplaceAll(uuid.NewString(), "-", "")[:12], secret: secret, pin: pin(s.trust.ca)}
	e := fsm.CreateToken.Entry(fsm.TokenCreate{Name: t.name, Hash: secretHash(secret), Expires: time.Now().Add(life).UTC(), Witness: witness})
	return e, t.String(), nil
}

// JoinOptions is what a node that joins needs to know.
type JoinOptions struct {
	Token   string // TOKEN@HOST or TOKEN@HOST:PORT
	Name    string // of the node, a DNS label
	Zone    string // failure zone; may be empty
	Witness bool   // votes and runs no guests
}

// Join makes a data directory a node of an existing cluster. The node at HOST
// must show the CA that the token pins. It blocks until that node answered, ctx
// ends or a minute has passed. Open then starts the node. It refuses a
// directory that holds or held a node, and a port that is in use.
func Join(ctx context.Context, cfg Config, o JoinOptions) (Identity, error) {
	text, host, ok := strings.Cut(o.Token, "@")
	if !ok || host == "" {
		return Identity{}, api.Invalid("token", "names no host").Allow("TOKEN@HOST or TOKEN@HOST:PORT")
	}
	t, err := parseToken(text)
	if err != nil {
		return Identity{}, err
	}
	if err := apiError(api.CheckName("name", o.Name)); err != nil {
		return Identity{}, err
	}
	if err := cfg.checkAddress(); err != nil {
		return Identity{}, err
	}
	d, form, err := prepareDir(cfg)
	if err != nil {
		return Identity{}, err
	}
	defer d.close()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	in := &rpc.Joining{Token: t.name, Secret: hex.EncodeToString(t.secret), Name: o.Name,
		Address: cfg.advertised(), Zone: o.Zone, Witness: o.Witness, Version: cfg.Version}
	key, err := d.attempt(t, in)
	if err != nil {
		return Identity{}, err
	}
	joined, ca, err := askJoin(ctx, withPort(host), t, in)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{ClusterID: joined.ClusterID, NodeID: in.NodeID, Name: o.Name, LogStore: form}
	for _, m := range joined.Members {
		id.Members = append(id.Members, Member(m))
	}
	if _, err := certificateOf(joined.Certificate, key, ca); err != nil {
		return Identity{}, fmt.Errorf("join: %w", err)
	}
	if err := d.write(fileCA, encodeCertificate(ca.Raw)); err != nil {
		return Identity{}, err
	}
	if err := d.writeKeyPair(key, joined.Certificate); err != nil {
		return Identity{}, err
	}
	if err := d.writeJSON(fileGossip, rpc.GossipKeys{Keys: joined.GossipKeys}); err != nil {
		return Identity{}, err
	}
	if err := d.writeJSON(fileIdentity, id); err != nil {
		return Identity{}, err
	}
	return id, d.remove(fileJoining)
}

// joinAttempt is what a join is made of that was begun and not finished. A
// token admits one node with one key: to go on after a crash, the next attempt
// with the token must be the same.
type joinAttempt struct {
	TokenHash string `json:"token_hash"`
	NodeID    string `json:"node_id"`
	Name      string `json:"name"`
	Key       []byte `json:"key"` // PEM
	Request   []byte `json:"request"`
}

// attempt takes up the join that was begun with the token under the same name,
// or begins one, and completes the request with it.
func (d *dataDir) attempt(t token, in *rpc.Joining) (crypto.Signer, error) {
	var a joinAttempt
	if d.readJSON(fileJoining, &a) == nil && a.TokenHash == secretHash(t.secret) && a.Name == in.Name {
		if key, err := decodeKey(a.Key); err == nil {
			in.NodeID, in.Request = a.NodeID, a.Request
			return key, nil
		}
	}
	key, request, err := newRequest()
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	a = joinAttempt{TokenHash: secretHash(t.secret), NodeID: uuid.NewString(), Name: in.Name, Key: text, Request: request}
	in.NodeID, in.Request = a.NodeID, a.Request
	return key, d.writeJSON(fileJoining, a)
}

func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), DefaultPort)
}

// checkAddress refuses an address that other nodes could not dial, and a port
// in use, before the token is spent.
func (c Config) checkAddress() error {
	address := c.advertised()
	host, port, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	if err != nil || host == "" || port == "" || port == "0" || ip != nil && ip.IsUnspecified() {
		return api.Invalid("advertise", "is %q", address).Allow("host:port that other nodes can dial")
	}
	if c.Listener != nil {
		return nil
	}
	l, err := bind(c.Listen)
	if err != nil {
		return err
	}
	return l.Close()
}

// askJoin asks a node until it answers or refuses. Every attempt is the same
// request, so that a lost answer costs nothing.
func askJoin(ctx context.Context, address string, t token, in *rpc.Joining) (*rpc.Joined, *x509.Certificate, error) {
	probe, ca, err := dialPinned(ctx, address, t.pin)
	if err != nil {
		return nil, nil, err
	}
	_ = probe.Close() // it was only to see the CA, with an error that explains
	conn, err := rpc.Connect(func(ctx context.Context) (net.Conn, error) {
		c, _, err := dialPinned(ctx, address, t.pin)
		return c, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("join: %w", err)
	}
	defer func() { _ = conn.Close() }() // the answer is in
	for {
		out, err := rpc.CallJoin(ctx, conn, in)
		if err == nil {
			return out, ca, nil
		}
		code := api.CodeOf(err)
		if code != api.CodeNoLeader && code != api.CodeUnknown && code != api.CodeLimit {
			return nil, nil, err
		}
		if !waitFor(ctx, joinPause) {
			return nil, nil, err
		}
	}
}

const joinPause = 500 * time.Millisecond

// joinLimiter bounds attempts to join, in all and for each address.
type joinLimiter struct {
	mu    sync.Mutex // guards what follows
	all   *rate.Limiter
	hosts map[string]*rate.Limiter
}

func (l *joinLimiter) allow(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil || len(l.hosts) >= joinHostsMax {
		l.hosts = map[string]*rate.Limiter{}
	}
	if l.all == nil {
		l.all = rate.NewLimiter(joinRateAll, joinRateAll)
	}
	h := l.hosts[host]
	if h == nil {
		h = rate.NewLimiter(joinRateHost, joinBurst)
		l.hosts[host] = h
	}
	return h.Allow() && l.all.Allow()
}

// joinService answers nodes that have no certificate yet.
type joinService struct{ s *Server }

// Join implements rpc.JoinServer. Any node answers; the leader decides.
func (j joinService) Join(ctx context.Context, in *rpc.Joining) (*rpc.Joined, error) {
	s := j.s
	if !s.joins.allow(rpc.RemoteHost(ctx)) {
		return nil, api.Errorf(api.CodeLimit, "too many attempts to join").Allow("%d a second", joinRateHost).Do("wait a few seconds")
	}
	leader, err := s.findLeader(ctx)
	if err != nil {
		return nil, err
	}
	if leader.ID == s.identity.NodeID {
		return s.admit(ctx, in)
	}
	client, err := s.peers.to(leader.ID)
	if err != nil {
		return nil, err
	}
	return client.Join(ctx, in)
}

// Join implements rpc.NodeServer: another node passes on what a joiner sent.
func (v service) Join(ctx context.Context, in *rpc.Joining) (*rpc.Joined, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	return v.s.admit(ctx, in)
}

// admit lets a node in: it consumes the token, signs the certificate, and adds
// the node to Raft without a vote.
func (s *Server) admit(ctx context.Context, in *rpc.Joining) (*rpc.Joined, error) {
	if !s.IsLeader() {
		return nil, errNoLeader("this node does not lead yet")
	}
	secret, err := hex.DecodeString(in.Secret)
	if err != nil || len(secret) != tokenSecret {
		return nil, api.Invalid("token", "has no secret")
	}
	if err := s.knownToken(in, secret); err != nil {
		return nil, err
	}
	a, err := s.authority()
	if err != nil {
		return nil, err
	}
	p := Peer{ID: in.NodeID, Name: in.Name, Address: in.Address}
	if _, err := s.signFor(a, in.Request, p); err != nil {
		return nil, err // refused before the token is spent
	}
	e := fsm.JoinNode.Entry(fsm.NodeJoin{ID: in.NodeID, Name: in.Name, Address: in.Address, Zone: in.Zone, Witness: in.Witness, TokenHash: secretHash(secret)})
	e.By, e.RequestID = "join_token:"+in.Token, joinRequestID(secret, in)
	outcome, err := s.Propose(ctx, e)
	if err == nil && outcome.Err != nil {
		err = outcome.Err
	}
	if err != nil {
		return nil, err
	}
	der, err := s.issue(ctx, a, in.Request, p)
	if err != nil {
		return nil, err
	}
	if err := s.AddNonvoter(ctx, p); err != nil {
		return nil, err
	}
	s.logger.Info("a node joined", "node", p.Name, "id", p.ID, "address", p.Address)
	return s.welcome(der)
}

// knownToken refuses a token that nobody made, without an entry in the log: a
// stranger must not be able to fill it. A token that was used is let through
// for the request that used it, whose answer may have been lost.
func (s *Server) knownToken(in *rpc.Joining, secret []byte) error {
	for t := range fsm.JoinTokens.By(s.state.Read(), "hash", secretHash(secret)) {
		if t.Name == in.Token {
			return nil
		}
	}
	if s.state.Remembers(joinRequestID(secret, in)) {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "the join token is unknown or was used").Do("make a new one with: debvisor node token")
}

// joinRequestID binds the use of a token to one node and its key, so that a
// repeated request gets the first answer and a stolen token a refusal.
func joinRequestID(secret []byte, in *rpc.Joining) string {
	h := sha256.New()
	for _, part := range [][]byte{secret, []byte(in.NodeID), in.Request} {
		h.Write(part)
		h.Write([]byte{0})
	}
	return "join-" + hex.EncodeToString(h.Sum(nil))
}

// welcome is what an admitted node is told.
func (s *Server) welcome(certificate []byte) (*rpc.Joined, error) {
	out := &rpc.Joined{ClusterID: s.identity.ClusterID, CA: s.trust.ca.Raw, Certificate: certificate, Time: time.Now().UTC()}
	for n := range fsm.Nodes.All(s.state.Read()) {
		out.Members = append(out.Members, rpc.Member{ID: n.ID, Name: n.Name, Address: n.Address})
	}
	keys, err := s.gossipKeys()
	out.GossipKeys = keys
	return out, err
}
