package api

// Tenant is an isolated group of objects. Deleting one is refused while
// objects belong to it.
type Tenant struct {
	Meta
	Description string `json:"description,omitzero"`
}

// Validate implements Object.
func (t *Tenant) Validate() error {
	var p problems
	t.check(&p, false)
	checkText(&p, "description", t.Description, TextLengthMax)
	return p.err()
}
