package fsm

import (
	"slices"

	"github.com/debvisor/debvisor/api"
)

func checkRole(tx *Tx, before, after *api.Role) *api.Error {
	if after == nil {
		return dropRole(tx, before)
	}
	if before == nil && Roles.Len(tx) >= api.RolesMax {
		return api.Errorf(api.CodeLimit, "%d roles exist", api.RolesMax).Allow("at most %d", api.RolesMax)
	}
	for _, name := range after.Inherits {
		if err := wantRole(tx, "inherits", name); err != nil {
			return err
		}
		if path := inheritance(tx, name, after.Name, nil); path != nil {
			return api.Invalid("inherits", "%q inherits this role itself: %v", name, append([]string{after.Name}, path...)).
				Do("take the role out of one of them")
		}
	}
	return nil
}

// inheritance is the way from a role to another one over what is inherited;
// nil: there is none.
func inheritance(tx *Tx, from, to string, seen []string) []string {
	seen = append(seen, from)
	if from == to {
		return seen
	}
	role := Roles.Get(tx, from)
	if role == nil {
		return nil // built in: inherits nothing
	}
	for _, next := range role.Inherits {
		if slices.Contains(seen, next) {
			continue
		}
		if path := inheritance(tx, next, to, slices.Clone(seen)); path != nil {
			return path
		}
	}
	return nil
}

// wantRole refuses a role that is neither built in nor stored.
func wantRole(tx *Tx, field, name string) *api.Error {
	if slices.Contains(api.BuiltInRoles(), name) || Roles.Get(tx, name) != nil {
		return nil
	}
	return missing(field, api.KindRole, name)
}

func dropRole(tx *Tx, role *api.Role) *api.Error {
	for k := range APIKeys.By(tx, "role", role.Name) {
		return api.Errorf(api.CodeConflict, "key %s has it", k.Name).Do("revoke the key, or make another one first")
	}
	for r := range Roles.By(tx, "inherits", role.Name) {
		return api.Errorf(api.CodeConflict, "role %s inherits it", r.Name).Do("change that role first")
	}
	return nil
}
