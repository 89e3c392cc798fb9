package api

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Limits of what every object carries.
const (
	NameLengthMax       = 63
	LabelsMax           = 64
	LabelKeyLengthMax   = 63
	LabelValueLengthMax = 255
	TextLengthMax       = 1024
)

// DefaultTenant owns what is made without naming a tenant.
const DefaultTenant = "default"

// Meta is the head of every object. The kernel writes ID, Created, Modified,
// CreatedAt and ModifiedAt; a user writes Name, Tenant and Labels.
type Meta struct {
	ID         string            `json:"id,omitzero"`
	Name       string            `json:"name"`
	Tenant     string            `json:"tenant,omitzero"`
	Labels     map[string]string `json:"labels,omitzero"`
	Created    uint64            `json:"created,omitzero"`  // log index of the first write
	Modified   uint64            `json:"modified,omitzero"` // log index of the last write; the revision for compare-and-set
	CreatedAt  time.Time         `json:"created_at,omitzero"`
	ModifiedAt time.Time         `json:"modified_at,omitzero"`
}

// Head returns the object's own Meta, so that generic code reaches it.
func (m *Meta) Head() *Meta { return m }

// Object is what every kind is, seen through a pointer to its struct.
type Object interface {
	Head() *Meta
	// Validate checks the object on its own. It returns an *Error with every
	// problem, or nil.
	Validate() error
}

// Key joins a tenant and a name into the key of a tenant-scoped object.
func Key(tenant, name string) string { return tenant + "/" + name }

// SplitKey is the reverse of Key; a key without a slash has no tenant.
func SplitKey(key string) (tenant, name string) {
	if t, n, ok := strings.Cut(key, "/"); ok {
		return t, n
	}
	return "", key
}

// CheckName reports whether s is a lower-case DNS label (RFC 1123): 1 to 63 of
// a-z, 0-9 and "-", with no "-" at either end.
func CheckName(field, s string) *Error {
	const allowed = "1 to 63 of a-z, 0-9 and '-', not at either end"
	if s == "" {
		return Invalid(field, "is missing").Allow(allowed)
	}
	if len(s) > NameLengthMax {
		return Invalid(field, "has %d characters", len(s)).Allow(allowed)
	}
	for i := range len(s) {
		c := s[i]
		inner := i > 0 && i < len(s)-1
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && inner) {
			return Invalid(field, "%q is not a DNS label", s).Allow(allowed)
		}
	}
	return nil
}

func (m *Meta) check(p *problems, tenantScope bool) {
	p.addErr(CheckName("name", m.Name))
	if tenantScope {
		p.addErr(CheckName("tenant", m.Tenant))
	} else if m.Tenant != "" {
		p.add("tenant", "this kind belongs to no tenant").Allow("leave it out")
	}
	checkLabels(p, "labels", m.Labels)
}

func checkLabels(p *problems, field string, labels map[string]string) {
	if len(labels) == 0 {
		return // the usual case, in the path of every write
	}
	if len(labels) > LabelsMax {
		p.add(field, "has %d labels", len(labels)).Allow("at most %d", LabelsMax)
		return
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if len(k) == 0 || len(k) > LabelKeyLengthMax || strings.Trim(k, labelKeyChars) != "" {
			p.add(field, "label key %q", k).Allow("1 to %d of a-z, 0-9, '-', '_', '.', '/'", LabelKeyLengthMax)
		}
		checkText(p, field+"."+k, labels[k], LabelValueLengthMax)
	}
}

const labelKeyChars = "abcdefghijklmnopqrstuvwxyz0123456789-_./"

// checkText refuses control characters and direction overrides, which would
// let a stored text change how a terminal or page shows what surrounds it.
func checkText(p *problems, field, s string, lengthMax int) {
	if len(s) > lengthMax {
		p.add(field, "has %d bytes", len(s)).Allow("at most %d", lengthMax)
		return
	}
	for _, r := range s {
		if !showable(r) {
			p.add(field, "has the character %U", r).Allow("printable text in UTF-8")
			return
		}
	}
}

func showable(r rune) bool {
	return r >= ' ' && r != 0x7f && r != 0xFFFD && (r < 0x80 || r > 0x9f) && (r < 0x202A || r > 0x202E) && (r < 0x2066 || r > 0x2069)
}

// CleanText makes s fit for a text field of lengthMax bytes: what such a field
// refuses becomes a space, and what is too long is cut. It is for texts that
// come from a machine and tell why something is so, which nobody could mend.
func CleanText(s string, lengthMax int) string {
	s = strings.Map(func(r rune) rune {
		if showable(r) {
			return r
		}
		return ' '
	}, s)
	if len(s) <= lengthMax {
		return s
	}
	return strings.ToValidUTF8(s[:lengthMax], "") // a rune may have been cut in two
}

// MatchLabels reports whether labels has every pair of selector. An empty
// selector matches everything.
func MatchLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
