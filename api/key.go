package api

import "time"

// Roles that exist so far.
const RoleAdmin = "admin"

// APIKey lets a program or a person in. Only a hash of the secret is stored.
type APIKey struct {
	Meta
	Hash    string    `json:"hash,omitzero"` // SHA-256 of the secret part, hexadecimal; the secret has 256 random bits; never sent to clients
	Role    string    `json:"role"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	By      string    `json:"by,omitzero"`
}

// Validate implements Object.
func (k *APIKey) Validate() error {
	var p problems
	k.check(&p, false)
	checkOneOf(&p, "role", k.Role, RoleAdmin)
	if len(k.Hash) != 64 {
		p.add("hash", "has %d characters", len(k.Hash)).Allow("64 hexadecimal digits")
	}
	return p.err()
}

// JoinToken admits one node once. Only a hash is stored.
type JoinToken struct {
	Meta
	Hash    string    `json:"hash,omitzero"` // SHA-256 of the secret, hexadecimal
	Expires time.Time `json:"expires"`
	Witness bool      `json:"witness,omitzero"` // admits a witness only
	By      string    `json:"by,omitzero"`
}

// Bounds of join tokens.
const (
	JoinTokenLife = 15 * time.Minute
	JoinTokensMax = 256
	APIKeysMax    = 100000
)

// Validate implements Object.
func (t *JoinToken) Validate() error {
	var p problems
	t.check(&p, false)
	if len(t.Hash) != 64 {
		p.add("hash", "has %d characters", len(t.Hash)).Allow("64 hexadecimal digits")
	}
	if t.Expires.IsZero() {
		p.add("expires", "is missing").Allow("a time")
	}
	return p.err()
}
