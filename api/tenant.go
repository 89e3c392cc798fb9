package api

// Tenant is an isolated group of objects. Deleting one is refused while
// objects belong to it, or other tenants lie below it.
type Tenant struct {
	Meta
	Description string `json:"description,omitzero"`
	Parent      string `json:"parent,omitzero"` // tenant whose quota counts for this one as well; empty: none
	Quota       *Quota `json:"quota,omitzero"`  // nil: no bound of its own
}

// Validate implements Object.
func (t *Tenant) Validate() error {
	var p problems
	t.check(&p, false)
	checkText(&p, "description", t.Description, TextLengthMax)
	if t.Parent != "" {
		p.addErr(CheckName("parent", t.Parent))
		if t.Parent == t.Name {
			p.add("parent", "is the tenant itself").Allow("another tenant, or nothing")
		}
	}
	t.Quota.check(&p)
	return p.err()
}
