package sim

import (
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// record is what is stored of one guest.
type record struct {
	Spec      plugins.DomainSpec
	State     string
	Reason    string
	StartedAt time.Time
	Drift     []string   `json:",omitempty"`
	Copies    []diskCopy `json:",omitempty"`
	Memory    string     `json:",omitempty"` // what a test made the guest remember

	FrozenUntil time.Time `json:",omitzero"` // file systems of the guest are frozen until then

	Boot string `json:",omitempty"` // name of the disk that the guest has booted from

	// What waits of the spec that Update was given last, and the disks that the
	// guest still has although that spec does not name them.
	Pending []string           `json:",omitempty"`
	Held    []plugins.DiskSpec `json:",omitempty"`
	Retry   bool               `json:",omitempty"` // the guest has yet to let go of Held
}

func (r *record) executing() bool {
	return r.State == api.InstanceRunning || r.State == api.InstancePaused
}

func (r *record) with(state, reason string) *record {
	out := *r
	out.State, out.Reason = state, reason
	return &out
}

// ended is the record after the guest's end, which also ends its drift: the
// next start is from a new definition.
func (r *record) ended(state, reason string) *record {
	out := r.with(state, reason)
	out.Memory, out.FrozenUntil = "", time.Time{}
	out.StartedAt, out.Drift, out.Copies, out.Pending, out.Held, out.Retry = time.Time{}, nil, nil, nil, nil, false
	return out
}

// booted reports whether the guest answers by now.
func (r *record) booted(bootTime time.Duration) bool {
	return r.executing() && time.Since(r.StartedAt) >= bootTime
}

func (r *record) domain(bootTime time.Duration) plugins.Domain {
	d := plugins.Domain{
		ID: r.Spec.ID, Name: r.Spec.Name, Gen: r.Spec.Gen, SpecRevision: r.Spec.SpecRevision,
		State: r.State, Reason: r.Reason, StartedAt: r.StartedAt, Acceleration: "none",
		Drift: slices.Clone(r.Drift), Pending: slices.Clone(r.Pending), Unsettled: r.Retry, Holding: len(r.Held) > 0,
	}
	if r.booted(bootTime) {
		d.Addresses = addresses(r.Spec.NICs)
	}
	return d
}

// addresses derives one address per interface from its MAC, so that it is the
// same on every start.
func addresses(nics []plugins.NICSpec) []string {
	var out []string
	for _, n := range nics {
		if hw, err := net.ParseMAC(n.MAC); err == nil && len(hw) == 6 && len(out) < api.AddressesMax {
			out = append(out, fmt.Sprintf("10.%d.%d.%d", hw[3], hw[4], hw[5]))
		}
	}
	return out
}
