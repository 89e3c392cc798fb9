package api

// Region is one debvisor cluster. Each cluster knows itself alone; the
// row named in Config.Region is the cluster that answers.
type Region struct {
	Meta
	Description string `json:"description,omitzero"`
}

// Validate implements Object.
func (r *Region) Validate() error {
	var p problems
	r.check(&p, false)
	checkText(&p, "description", r.Description, TextLengthMax)
	return p.err()
}
