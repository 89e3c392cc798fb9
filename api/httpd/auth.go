package httpd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
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
	key   string // name of the API key; empty: nobody
	roles []string
	auth  fsm.Auth
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
		same := subtle.ConstantTimeCompare([]byte(key.Name), []byte(name)) & subtle.ConstantTimeCompare([]byte(key.Hash), []byte(hash))
		if same == 1 && live(key) {
			x.who = principal{key: key.Name, roles: []string{key.Role}, auth: fsm.Auth{Key: key.Name, Revision: key.Modified}}
			return nil
		}
	}
	// Right after its start a node may not know a key that is good.
	if x.s.cfg.LeaderContact() > StaleLimit {
		return api.Errorf(api.CodeUnavailable, "this node has not heard from the leader and cannot check the key").Do("ask another node, or try again in a moment")
	}
	return badKey()
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
