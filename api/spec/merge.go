package spec

import (
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// Merge returns a copy of desired that can be put in place of current: it
// keeps what the kernel has written and a file does not say. current must be
// of the same kind.
func Merge(desired, current api.Object) api.Object {
	out := copyOf(desired)
	head, have := out.Head(), current.Head()
	head.ID, head.Created, head.Modified = have.ID, have.Created, have.Modified
	head.CreatedAt, head.ModifiedAt = have.CreatedAt, have.ModifiedAt
	switch out := out.(type) {
	case *api.Config:
		if current, ok := current.(*api.Config); ok {
			out.Region, out.ClusterID = current.Region, current.ClusterID
		}
	case *api.Volume:
		if current, ok := current.(*api.Volume); ok {
			out.OwnerVM = current.OwnerVM
		}
	case *api.VM:
		if current, ok := current.(*api.VM); ok {
			mergeDisks(out, current)
			mergeNICs(out, current)
		}
	}
	return out
}

// mergeDisks keeps the volumes that the kernel made, unless the disk is now
// described differently: the kernel then has to say what that means.
func mergeDisks(out, current *api.VM) {
	for i := range out.Disks {
		d := &out.Disks[i]
		for _, have := range current.Disks {
			same := have.Name == d.Name && have.Image == d.Image && have.SizeBytes == d.SizeBytes && poolOf(have.Pool) == poolOf(d.Pool)
			if d.Volume == "" && same && have.Volume == current.Name+"-"+have.Name {
				d.Volume = have.Volume
			}
		}
	}
}

func mergeNICs(out, current *api.VM) {
	for i := range out.NICs {
		if i >= len(current.NICs) {
			break
		}
		n, have := &out.NICs[i], &current.NICs[i]
		if n.MAC == "" {
			n.MAC = have.MAC
		}
		if n.Network == have.Network {
			n.Addresses = mergeAddresses(n.Addresses, have.Addresses)
		}
	}
}

// mergeAddresses keeps the addresses that the kernel chose: those of a kind
// that the file does not name. IPv4 comes first, as in every row.
func mergeAddresses(named, have []string) []string {
	var out []string
	for _, six := range []bool{false, true} {
		of := func(text string) bool { return strings.Contains(text, ":") == six }
		if i := slices.IndexFunc(named, of); i >= 0 {
			out = append(out, named[i])
		} else if i := slices.IndexFunc(have, of); i >= 0 {
			out = append(out, have[i])
		}
	}
	return out
}

func copyOf(o api.Object) api.Object {
	var out api.Object
	switch o := o.(type) {
	case *api.Config:
		c := *o
		out = &c
	case *api.Tenant:
		c := *o
		out = &c
	case *api.Pool:
		c := *o
		out = &c
	case *api.Network:
		c := *o
		out = &c
	case *api.Firewall:
		c := *o
		c.Rules = slices.Clone(o.Rules)
		out = &c
	case *api.Image:
		c := *o
		out = &c
	case *api.Volume:
		c := *o
		out = &c
	case *api.VM:
		c := *o
		c.Disks, c.NICs = slices.Clone(o.Disks), slices.Clone(o.NICs)
		out = &c
	default:
		return o // a kind that no file declares has nothing to merge
	}
	out.Head().Labels = maps.Clone(out.Head().Labels)
	return out
}

// spellOut returns a copy in which every default is written out, so that
// leaving one out and writing it are the same.
func spellOut(o api.Object) api.Object {
	out := copyOf(o)
	switch out := out.(type) {
	case *api.Config:
		*out = out.WithDefaults()
	case *api.Volume:
		or(&out.Format, api.FormatQCOW2)
	case *api.Firewall:
		for i := range out.Rules {
			unsaid(&out.Rules[i].Protocol, api.ProtocolAny)
		}
	case *api.VM:
		for i := range out.NICs {
			unsaid(&out.NICs[i].Model, api.NICVirtio)
			unsaid(&out.NICs[i].Link, api.LinkUp)
		}
		or(&out.Power, api.PowerOn)
		or(&out.Firmware, "bios")
		or(&out.HA, api.HANone)
		for i := range out.Disks {
			or(&out.Disks[i].Bus, "virtio")
			or(&out.Disks[i].Cache, "none")
			or(&out.Disks[i].Pool, defaultPool)
		}
	}
	return out
}

const defaultPool = "local"

func poolOf(name string) string {
	or(&name, defaultPool)
	return name
}

func or(s *string, otherwise string) {
	if *s == "" {
		*s = otherwise
	}
}

// unsaid leaves a default out, where a difference would be longer than it is
// worth.
func unsaid(s *string, fallback string) {
	if *s == fallback {
		*s = ""
	}
}
