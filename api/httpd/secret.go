package httpd

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type tokenBody struct {
	Witness bool `json:"witness,omitempty" doc:"admit a voter that runs no VMs only"`
}

type keyBody struct {
	Name      string    `json:"name" maxLength:"63"`
	Role      string    `json:"role" maxLength:"63" doc:"a built-in role, or one of your own"`
	Tenants   []string  `json:"tenants,omitempty" maxItems:"64" doc:"in which the role counts; left out: in all, and in what belongs to none"`
	Addresses []string  `json:"addresses,omitempty" maxItems:"64" doc:"networks from which the key may be used, as 10.0.0.0/8; left out: from everywhere"`
	Expires   time.Time `json:"expires,omitzero" doc:"left out: 90 days from now"`
	Forever   bool      `json:"forever,omitempty" doc:"the key does not expire"`
}

type rotateBody struct {
	OverlapSeconds *int64    `json:"overlap_seconds,omitempty" minimum:"0" maximum:"604800" doc:"how long the old secret works on; left out: 7 days"`
	Expires        time.Time `json:"expires,omitzero" doc:"of the key from now on; left out: 90 days from now"`
	Forever        bool      `json:"forever,omitempty" doc:"the key does not expire"`
}

func (s *Server) registerSecrets() error {
	right := func(v authz.Verb, kind string) authz.Right {
		return authz.Right{Verb: v, Kind: kind, Scope: authz.ScopeCluster}
	}
	return errors.Join(
		handle(s, route{method: http.MethodPost, path: "/v1/join_tokens", right: right(authz.Create, api.KindToken), change: true,
			body: tokenBody{}, bytes: VerbBytesMax, answer: api.Secret{}, status: http.StatusCreated, summary: "Make a token that admits one node",
			about: "The token is shown once and is good for 15 minutes."}, (*exchange).createToken),
		handle(s, route{method: http.MethodPost, path: "/v1/api_keys", right: right(authz.Create, api.KindAPIKey), change: true,
			body: keyBody{}, bytes: VerbBytesMax, answer: api.Secret{}, status: http.StatusCreated, summary: "Make an API key",
			about: "The key is shown once."}, (*exchange).createKey),
		handle(s, route{method: http.MethodPost, path: "/v1/api_keys/{name}/rotate", right: right(authz.Update, api.KindAPIKey), change: true,
			body: rotateBody{}, bytes: VerbBytesMax, answer: api.Secret{}, summary: "Give an API key a new secret",
			about: "The key is shown once. The old secret works on for seven days unless said otherwise."}, (*exchange).rotateKey),
		handle(s, route{method: http.MethodDelete, path: "/v1/join_tokens/{name}", right: right(authz.Delete, api.KindToken), change: true,
			status: http.StatusNoContent, summary: "Withdraw a join token"},
			func(x *exchange, in *namedInput) error {
				return x.change(in.Plan, fsm.DeleteToken.Entry(fsm.Named{Name: in.Name}), x.nothing)
			}),
		handle(s, route{method: http.MethodDelete, path: "/v1/api_keys/{name}", right: right(authz.Delete, api.KindAPIKey), change: true,
			status: http.StatusNoContent, summary: "Revoke an API key", about: "From the answer on it changes nothing, and its streams end within a second."},
			func(x *exchange, in *namedInput) error {
				if err := x.grantsAs(in.Name); err != nil {
					return err
				}
				return x.change(in.Plan, fsm.DeleteKey.Entry(fsm.Named{Name: in.Name}), x.nothing)
			}))
}

// NewSecret makes the secret part of a key or token, 256 random bits, and the
// hash that is stored of it.
func NewSecret() (secret, hash string) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails: the program ends instead
	secret = strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
	return secret, HashSecret(secret)
}

// HashSecret is what is stored of a secret.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// FormatKey is an API key as users hold it.
func FormatKey(name, secret string) string { return keyPrefix + name + "_" + secret }

// createToken makes a join token. Its secret differs in every attempt, so a
// repeated request makes another token; the first one expires unused.
func (x *exchange) createToken(in *clusterCreateInput) error {
	var body tokenBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	entry, token, err := x.s.cfg.Token(api.JoinTokenLife, body.Witness)
	if err != nil {
		return err
	}
	entry.RequestID = fmt.Sprintf("%s/%x", x.requestID, sha256.Sum256([]byte(token)))[:len(x.requestID)+9]
	return x.change(in.Plan, entry, func(out fsm.Outcome) error {
		return x.answer(http.StatusCreated, api.Secret{Name: out.Key, Token: token})
	})
}

func (x *exchange) createKey(in *clusterCreateInput) error {
	var body keyBody
	if err := x.decode(&body); err != nil {
		return err
	}
	if err := api.CheckName("name", body.Name); err != nil {
		return err
	}
	expires, err := keyEnd(body.Expires, body.Forever)
	if err != nil {
		return err
	}
	if err := x.grants(body.Role, body.Tenants); err != nil {
		return err
	}
	secret, hash := NewSecret()
	entry := fsm.CreateKey.Entry(fsm.KeyCreate{Name: body.Name, Hash: hash, Role: body.Role, Tenants: body.Tenants, Addresses: body.Addresses, Expires: expires})
	entry.RequestID = x.requestID + "/" + hash[:8]
	return x.change(in.Plan, entry, func(fsm.Outcome) error {
		return x.answer(http.StatusCreated, api.Secret{Name: body.Name, Key: FormatKey(body.Name, secret)})
	})
}

// keyEnd is when a key expires; zero: never.
func keyEnd(asked time.Time, forever bool) (time.Time, error) {
	switch {
	case forever && !asked.IsZero():
		return asked, api.Invalid("expires", "does not go with forever").Allow("one of the two")
	case forever:
		return time.Time{}, nil
	case asked.IsZero():
		return time.Now().Add(api.KeyLife).UTC().Truncate(time.Second), nil
	case !asked.After(time.Now()):
		return asked, api.Invalid("expires", "has passed").Allow("a time to come, or nothing")
	}
	return asked.UTC(), nil
}

// rotateKey gives a key a new secret; the old one works on for a while.
func (x *exchange) rotateKey(in *namedInput) error {
	var body rotateBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	expires, err := keyEnd(body.Expires, body.Forever)
	if err != nil {
		return err
	}
	if err := x.grantsAs(in.Name); err != nil {
		return err
	}
	overlap := int64(api.KeyOverlap)
	if body.OverlapSeconds != nil {
		if *body.OverlapSeconds < 0 || *body.OverlapSeconds > int64(api.KeyOverlap/time.Second) {
			return api.Invalid("overlap_seconds", "is %d", *body.OverlapSeconds).Allow("0 to %d", int64(api.KeyOverlap/time.Second))
		}
		overlap = *body.OverlapSeconds * int64(time.Second)
	}
	secret, hash := NewSecret()
	entry := fsm.RotateKey.Entry(fsm.KeyRotate{Name: in.Name, Hash: hash, Expires: expires, Overlap: overlap})
	entry.RequestID = x.requestID + "/" + hash[:8]
	return x.change(in.Plan, entry, func(fsm.Outcome) error {
		return x.answer(http.StatusOK, api.Secret{Name: in.Name, Key: FormatKey(in.Name, secret)})
	})
}
