package fsm

import (
	"time"

	"github.com/debvisor/debvisor/api"
)

// KeyCreate is the body of api_key.create.
type KeyCreate struct {
	Name      string    `json:"name"`
	Hash      string    `json:"hash"`
	Role      string    `json:"role"`
	Tenants   []string  `json:"tenants,omitzero"`
	Addresses []string  `json:"addresses,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
}

// CreateKey adds an API key.
var CreateKey = transition("api_key.create", APIKeys, createKey).forUsers()

func createKey(tx *Tx, in KeyCreate) (*api.APIKey, *api.Error) {
	k := api.APIKey{Meta: api.Meta{Name: in.Name}, Hash: in.Hash, Role: in.Role, Tenants: in.Tenants, Addresses: in.Addresses, Expires: in.Expires, By: tx.By}
	if err := k.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindAPIKey, in.Name)
	}
	if APIKeys.Get(tx, in.Name) != nil {
		return nil, api.Errorf(api.CodeConflict, "exists already").On(api.KindAPIKey, in.Name).Do("choose another name")
	}
	if err := wantRole(tx, "role", in.Role); err != nil {
		return nil, err.On(api.KindAPIKey, in.Name)
	}
	for _, t := range in.Tenants {
		if err := wantTenant(tx, t); err != nil {
			return nil, err.At("tenants").On(api.KindAPIKey, in.Name)
		}
	}
	if APIKeys.Len(tx) >= api.APIKeysMax {
		return nil, api.Errorf(api.CodeLimit, "%d keys exist", api.APIKeysMax).On(api.KindAPIKey, in.Name)
	}
	return APIKeys.put(tx, k), nil
}

// KeyRotate is the body of api_key.rotate.
type KeyRotate struct {
	Name    string    `json:"name"`
	Hash    string    `json:"hash"`             // of the new secret
	Expires time.Time `json:"expires,omitzero"` // of the key from now on; zero: never
	Overlap int64     `json:"overlap,omitzero"` // nanoseconds in which the old secret still works; 0: not at all
}

// RotateKey gives an API key a new secret. The one before works on for the
// overlap, as long as the key had to live at most; one still older ends now.
var RotateKey = transition("api_key.rotate", APIKeys, func(tx *Tx, in KeyRotate) (*api.APIKey, *api.Error) {
	have := APIKeys.Get(tx, in.Name)
	if have == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindAPIKey, in.Name)
	}
	if in.Overlap < 0 || in.Overlap > int64(api.KeyOverlap) {
		return nil, api.Invalid("overlap", "is %v", time.Duration(in.Overlap)).Allow("0 to %v", api.KeyOverlap).On(api.KindAPIKey, in.Name)
	}
	if in.Hash == have.Hash || first(APIKeys.By(tx, "hash", in.Hash)) != nil {
		return nil, api.Errorf(api.CodeConflict, "has this secret already").On(api.KindAPIKey, in.Name)
	}
	if !in.Expires.IsZero() && !in.Expires.After(tx.Time) {
		return nil, api.Invalid("expires", "has passed").On(api.KindAPIKey, in.Name)
	}
	k := *have
	k.PreviousHash, k.PreviousExpires = "", time.Time{}
	if until := tx.Time.Add(time.Duration(in.Overlap)); in.Overlap > 0 {
		if !have.Expires.IsZero() && have.Expires.Before(until) {
			until = have.Expires
		}
		k.PreviousHash, k.PreviousExpires = have.Hash, until
	}
	k.Hash, k.Expires = in.Hash, in.Expires
	if err := k.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindAPIKey, in.Name)
	}
	return APIKeys.put(tx, k), nil
}).forUsers()

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
	if !key.Admin() {
		APIKeys.delete(tx, in.Name)
		return nil
	}
	for other := range APIKeys.All(tx) {
		if other.Name != in.Name && other.Admin() && (other.Expires.IsZero() || other.Expires.After(tx.Time)) {
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
