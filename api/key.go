package api

import "time"

// Bounds of API keys.
const (
	KeyLife         = 90 * 24 * time.Hour // unless whoever makes it says otherwise
	KeyWarning      = 14 * 24 * time.Hour // before its end a key's answers say when it ends
	KeyOverlap      = 7 * 24 * time.Hour  // in which the old secret of a rotated key still works
	KeyTenantsMax   = 64
	KeyAddressesMax = 64
)

// APIKey lets a program or a person in. Only hashes of its secrets are stored.
type APIKey struct {
	Meta
	Hash            string    `json:"hash,omitzero"` // SHA-256 of the secret part, hexadecimal; the secret has 256 random bits; never sent to clients
	Role            string    `json:"role"`
	Tenants         []string  `json:"tenants,omitzero"`          // in which the role counts; empty: in all, and in what belongs to none
	Addresses       []string  `json:"addresses,omitzero"`        // networks from which it may be used; empty: from everywhere
	Expires         time.Time `json:"expires,omitzero"`          // zero: never
	PreviousHash    string    `json:"previous_hash,omitzero"`    // of the secret before the last rotation
	PreviousExpires time.Time `json:"previous_expires,omitzero"` // until when that one works
	By              string    `json:"by,omitzero"`
}

// Validate implements Object.
func (k *APIKey) Validate() error {
	var p problems
	k.check(&p, false)
	p.addErr(CheckName("role", k.Role))
	if len(k.Hash) != 64 {
		p.add("hash", "has %d characters", len(k.Hash)).Allow("64 hexadecimal digits")
	}
	if len(k.Tenants) > KeyTenantsMax {
		p.add("tenants", "has %d names", len(k.Tenants)).Allow("at most %d", KeyTenantsMax)
	}
	for _, t := range k.Tenants {
		p.addErr(CheckName("tenants", t))
	}
	if len(k.Addresses) > KeyAddressesMax {
		p.add("addresses", "has %d networks", len(k.Addresses)).Allow("at most %d", KeyAddressesMax)
	}
	checkNetworks(&p, "addresses", k.Addresses)
	return p.err()
}

// Admin reports whether the key may do everything.
func (k *APIKey) Admin() bool {
	return k.Role == RoleAdmin && len(k.Tenants) == 0 && len(k.Addresses) == 0
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

// Seal is a secret of the cluster itself (CA key, gossip keyring) as
// ciphertext, sealed to a key that voters receive when they join.
type Seal struct {
	Meta
	Ciphertext []byte `json:"ciphertext"`
	KeyID      string `json:"key_id,omitzero"` // which sealing key opens it

	// Of the seal "ca", which is written last when the secrets are changed:
	Holders []string `json:"holders,omitzero"` // IDs of the nodes that were given the sealing key
	Covers  uint64   `json:"covers,omitzero"`  // nodes removed after this log index may know the secrets
}

// SealSizeMax is the largest ciphertext of a seal, in bytes.
const SealSizeMax = 64 << 10

// Validate implements Object.
func (s *Seal) Validate() error {
	var p problems
	p.addErr(CheckName("name", s.Name))
	if len(s.Ciphertext) == 0 || len(s.Ciphertext) > SealSizeMax {
		p.add("ciphertext", "has %d bytes", len(s.Ciphertext)).Allow("1 to %d", SealSizeMax)
	}
	if len(s.Holders) > NodesMax {
		p.add("holders", "has %d entries", len(s.Holders)).Allow("at most %d", NodesMax)
	}
	return p.err()
}

// Certificate is one that the cluster's CA issued, kept until it expires. Its
// name is the serial number in hexadecimal.
type Certificate struct {
	Meta
	Role     string    `json:"role"`    // node
	Subject  string    `json:"subject"` // ID of the node
	NotAfter time.Time `json:"not_after"`
}

// Validate implements Object.
func (c *Certificate) Validate() error {
	var p problems
	checkOneOf(&p, "role", c.Role, "node")
	checkText(&p, "subject", c.Subject, NameLengthMax)
	return p.err()
}

// RemovedNode remembers a node that may not come back. Its name is the ID of
// the node.
type RemovedNode struct {
	Meta
	Node   string `json:"node"` // its former name
	Reason string `json:"reason,omitzero"`
	By     string `json:"by,omitzero"`
}

// Validate implements Object.
func (r *RemovedNode) Validate() error {
	var p problems
	checkText(&p, "reason", r.Reason, TextLengthMax)
	return p.err()
}
