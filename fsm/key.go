package fsm

import (
	"time"

	"github.com/debvisor/debvisor/api"
)

// KeyCreate is the body of api_key.create.
type KeyCreate struct {
	Name    string    `json:"name"`
	Hash    string    `json:"hash"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires,omitzero"`
}

// CreateKey adds an API key.
var CreateKey = transition("api_key.create", APIKeys, createKey).forUsers()

func createKey(tx *Tx, in KeyCreate) (*api.APIKey, *api.Error) {
	k := api.APIKey{Meta: api.Meta{Name: in.Name}, Hash: in.Hash, Role: in.Role, Expires: in.Expires, By: tx.By}
	if err := k.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindAPIKey, in.Name)
	}
	if APIKeys.Get(tx, in.Name) != nil {
		return nil, api.Errorf(api.CodeConflict, "exists already").On(api.KindAPIKey, in.Name).Do("choose another name")
	}
	if APIKeys.Len(tx) >= api.APIKeysMax {
		return nil, api.Errorf(api.CodeLimit, "%d keys exist", api.APIKeysMax).On(api.KindAPIKey, in.Name)
	}
	return APIKeys.put(tx, k), nil
}

// Named is the body of deletions that are no compare-and-set.
type Named struct {
	Name string `json:"name"`
}

// DeleteKey revokes an API key. The last one that opens everything stays.
var DeleteKey = effect("api_key.delete", func(tx *Tx, in Named) *api.Error {
	key := APIKeys.Get(tx, in.Name)
	if key == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindAPIKey, in.Name)
	}
	for other := range APIKeys.All(tx) {
		if other.Name != in.Name && other.Role == api.RoleAdmin && (other.Expires.IsZero() || other.Expires.After(tx.Time)) {
			APIKeys.delete(tx, in.Name)
			return nil
		}
	}
	return api.Errorf(api.CodeConflict, "is the last admin key").On(api.KindAPIKey, in.Name).Do("create another one first")
}).forUsers()

// TokenCreate is the body of join_token.create.
type TokenCreate struct {
	Name    string    `json:"name"`
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
	Witness bool      `json:"witness,omitzero"`
}

// CreateToken adds a join token.
var CreateToken = transition("join_token.create", JoinTokens, func(tx *Tx, in TokenCreate) (*api.JoinToken, *api.Error) {
	t := api.JoinToken{Meta: api.Meta{Name: in.Name}, Hash: in.Hash, Expires: in.Expires, Witness: in.Witness, By: tx.By}
	if err := t.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindToken, in.Name)
	}
	if left := in.Expires.Sub(tx.Time); left <= 0 || left > 24*time.Hour {
		return nil, api.Invalid("expires", "is %v away", left.Round(time.Second)).Allow("up to 24h").On(api.KindToken, in.Name)
	}
	if JoinTokens.Get(tx, in.Name) != nil {
		return nil, api.Errorf(api.CodeConflict, "exists already").On(api.KindToken, in.Name)
	}
	trimTokens(tx)
	if JoinTokens.Len(tx) >= api.JoinTokensMax {
		return nil, api.Errorf(api.CodeLimit, "%d join tokens are open", api.JoinTokensMax).Do("delete some, or wait until they expire")
	}
	return JoinTokens.put(tx, t), nil
}).forUsers()

// DeleteToken withdraws a join token.
var DeleteToken = effect("join_token.delete", func(tx *Tx, in Named) *api.Error {
	if JoinTokens.Get(tx, in.Name) == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindToken, in.Name)
	}
	JoinTokens.delete(tx, in.Name)
	return nil
}).forUsers()

// TokensTrim is the body of join_token.trim.
type TokensTrim struct{}

// TrimTokens deletes join tokens that have expired.
var TrimTokens = effect("join_token.trim", func(tx *Tx, _ TokensTrim) *api.Error {
	trimTokens(tx)
	return nil
})

func trimTokens(tx *Tx) {
	var old []string
	for t := range JoinTokens.All(tx) {
		if !tx.Time.Before(t.Expires) {
			old = append(old, t.Name)
		}
	}
	for _, name := range old {
		JoinTokens.delete(tx, name)
	}
}
