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
