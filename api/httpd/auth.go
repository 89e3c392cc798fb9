package httpd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

const (
	keyPrefix    = "dvk_"
	secretLength = 52 // 32 random bytes in base32 without padding
	// keyProtocol carries the key where a browser opens a WebSocket, since it
	// can set no other header: as the subprotocol keyProtocol+KEY, beside
	// streamProtocol, which is the one that is agreed on.
	keyProtocol    = "debvisor.key."
	streamProtocol = "debvisor"
)

// principal is who asks.
type principal struct {
	key     string // name of the API key; empty: nobody
	roles   []string
	tenants []string // in which the roles count; empty: everywhere
	auth    fsm.Auth
}

func principalOf(key *api.APIKey) principal {
	return principal{key: key.Name, roles: []string{key.Role}, tenants: key.Tenants, auth: fsm.Auth{Key: key.Name, Revision: key.Modified}}
}

// admin reports whether no rule stands in the caller's way.
func (p principal) admin() bool {
	return len(p.tenants) == 0 && slices.Contains(p.roles, api.RoleAdmin)
}

func (p principal) by() string { return "key:" + p.key }

func badKey() *api.Error {
	return api.Errorf(api.CodeUnauthenticated, "no valid API key").Do("send Authorization: Bearer dvk_NAME_SECRET with a key that is neither expired nor revoked")
}

// authenticate finds out who asks. The key is looked up by the hash of its
// secret, which costs the same for every key and leaks nothing of others.
func (x *exchange) authenticate() error {
	given, browser, err := givenKey(x.r)
	if err != nil {
		return err
	}
	if browser && !x.s.ownOrigin(x.r) {
		return api.Errorf(api.CodeForbidden, "pages of this origin may not open streams").Do("open the panel of this cluster")
	}
	rest, ok := strings.CutPrefix(given, keyPrefix)
	cut := strings.LastIndexByte(rest, '_')
	if !ok || cut < 1 || len(rest)-cut-1 != secretLength || cut > api.NameLengthMax {
		return badKey()
	}
	name, sum := rest[:cut], sha256.Sum256([]byte(rest[cut+1:]))
	hash := hex.EncodeToString(sum[:])
	for key := range fsm.APIKeys.By(x.s.cfg.Cluster.State().Read(), "hash", hash) {
		if subtle.ConstantTimeCompare([]byte(key.Name), []byte(name)) == 1 && opens(key, hash) && live(key) {
			if !x.from(key) {
				return api.Errorf(api.CodeForbidden, "the key may not be used from this address").On(api.KindAPIKey, key.Name).
					Do("use it from one of the networks that it was made for")
			}
			x.who = principalOf(key)
			x.warnOfEnd(key)
			return nil
		}
	}
	// Right after its start a node may not know a key that is good.
	if x.s.cfg.LeaderContact() > StaleLimit {
		return api.Errorf(api.CodeUnavailable, "this node has not heard from the leader and cannot check the key").Do("ask another node, or try again in a moment")
	}
	return badKey()
}

// opens reports whether a secret with that hash opens the key: the present one,
// or for some days the one before the last rotation.
func opens(key *api.APIKey, hash string) bool {
	if subtle.ConstantTimeCompare([]byte(key.Hash), []byte(hash)) == 1 {
		return true
	}
	return subtle.ConstantTimeCompare([]byte(key.PreviousHash), []byte(hash)) == 1 && time.Now().Before(key.PreviousExpires)
}

// from reports whether the key may be used from where the request came.
func (x *exchange) from(key *api.APIKey) bool {
	if len(key.Addresses) == 0 {
		return true
	}
	peer := x.peer()
	return slices.ContainsFunc(key.Addresses, func(text string) bool {
		network, err := netip.ParsePrefix(text)
		return err == nil && network.Contains(peer)
	})
}

// headerKeyExpires says when the key of the request ends, in its last days.
const headerKeyExpires = "X-Debvisor-Key-Expires"

func (x *exchange) warnOfEnd(key *api.APIKey) {
	if !key.Expires.IsZero() && time.Until(key.Expires) < api.KeyWarning {
		x.w.Header().Set(headerKeyExpires, key.Expires.UTC().Format(time.RFC3339))
	}
}

func live(key *api.APIKey) bool { return key.Expires.IsZero() || time.Now().Before(key.Expires) }

// givenKey is the key that the request carries; browser says that it came as a
// WebSocket's subprotocol.
func givenKey(r *http.Request) (key string, browser bool, err error) {
	switch values := r.Header.Values("Authorization"); len(values) {
	case 0:
	case 1:
		scheme, rest, ok := strings.Cut(values[0], " ")
		if !ok || !strings.EqualFold(scheme, "Bearer") {
			return "", false, badKey()
		}
		return rest, false, nil
	default:
		return "", false, badKey()
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if key, ok := strings.CutPrefix(strings.TrimSpace(p), keyProtocol); ok {
				return key, true, nil
			}
		}
	}
	return "", false, badKey()
}

// stillIn reports whether the key that the request came with is still good in
// a view.
func (x *exchange) stillIn(view *fsm.View) error {
	if x.who.key == "" {
		return nil
	}
	key := fsm.APIKeys.Get(view, x.who.key)
	if key == nil || key.Modified != x.who.auth.Revision || !live(key) {
		return badKey()
	}
	return nil
}

// keyWatch closes when the row of the key changes.
func (x *exchange) keyWatch(view *fsm.View) <-chan struct{} {
	return fsm.APIKeys.WatchKey(view, x.who.key)
}

// ownOrigin reports whether a browser's page comes from this host, or from one
// that the configuration names.
func (s *Server) ownOrigin(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) != 1 {
		return false
	}
	scheme, host, ok := strings.Cut(origins[0], "://")
	if !ok || scheme != "https" {
		return false
	}
	for _, allowed := range append([]string{r.Host}, s.cfg.Origins...) {
		if strings.EqualFold(host, allowed) {
			return true
		}
	}
	return false
}

// upgrade reports whether the request asks for a WebSocket.
func upgrade(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// checkOrigin refuses a WebSocket that a foreign page opens. A program sends
// no Origin, and has shown a key that no page can send by itself.
func (x *exchange) checkOrigin() error {
	if x.r.Header.Get("Origin") == "" && len(x.r.Header.Values("Origin")) == 0 || x.s.ownOrigin(x.r) {
		return nil
	}
	return withStatus(http.StatusForbidden, api.Errorf(api.CodeForbidden, "pages of this origin may not open streams").Do("open the panel of this cluster"))
}
