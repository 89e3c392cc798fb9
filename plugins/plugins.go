// Package plugins holds the contracts between an agent and the machine it runs
// on. Each contract has at most eight methods. Adapters live in packages below
// this one and do not know each other; package plugintest checks that an
// adapter keeps its contract.
//
// Rules for all of them: every method may be called from several goroutines,
// returns promptly when its context ends, is idempotent where its comment does
// not say otherwise, and reports failures that a person can act on as
// *api.Error.
package plugins

import (
	"context"
	"io"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Hypervisor runs guests on this machine. It touches domains that carry the
// debvisor mark with this cluster's ID and no others.
type Hypervisor interface {
	// Probe measures the machine. It blocks until the hypervisor answers; an
	// error means that it cannot be used now.
	Probe(ctx context.Context) (Probe, error)

	// Domains lists every domain that carries this cluster's mark, in any
	// state, ordered by ID, each as it is now.
	Domains(ctx context.Context) ([]Domain, error)

	// Start defines the domain, replacing the inactive definition that it may
	// have, and starts its guest. A domain that executes already with the same
	// Gen is left alone and is no error; with another Gen it is CodeConflict.
	Start(ctx context.Context, spec DomainSpec) error

	// Stop ends the guest: first by asking it (ACPI) and waiting for grace,
	// then by force; with a grace of zero by force at once. The definition
	// stays. An unknown or stopped domain is no error.
	Stop(ctx context.Context, id string, grace time.Duration) error

	// Remove deletes the definition of a stopped domain and what belongs to
	// it (seed, firmware variables, console log), not its volumes. An unknown
	// domain is no error; one that executes is CodeConflict.
	Remove(ctx context.Context, id string) error

	// Events delivers a hint whenever a domain of ours changed, at most a
	// second late. The channel closes when the connection breaks or ctx ends;
	// the caller lists anew and calls again. Hints may repeat, may be merged. There
	// is none about a guest that ended while the hypervisor was away, nor about one
	// that ends before a daemon that came back has taken it up again, which may be
	// after it lists it as running: list again for some seconds after connecting.
	Events(ctx context.Context) (<-chan Event, error)

	// Console opens the serial console of an executing guest, beginning with
	// what the log kept of its output if replay is true. Closing ends it.
	Console(ctx context.Context, id string, replay bool) (io.ReadWriteCloser, error)

	// Close lets go of the connection. Guests go on.
	Close() error
}

// Probe is what a hypervisor found on its machine.
type Probe struct {
	Info     api.HypervisorInfo
	Capacity api.Capacity
	// CPUModels are those that guests can be given, in order: levels of x86-64, and
	// models by the hypervisor's own names. At most api.CPUModelsMax.
	CPUModels []string
}

// Domain is one guest as the hypervisor sees it now.
type Domain struct {
	ID           string // UUID; the VM's ID
	Name         string
	Gen          uint64 // from our mark
	SpecRevision uint64 // from our mark
	State        string // api.InstanceRunning, InstancePaused, InstanceStopped or InstanceFailed (crashed)
	Reason       string // as the hypervisor names it: "shutdown", "destroyed", "crashed", …
	StartedAt    time.Time
	Acceleration string
	Addresses    []string // that the hypervisor knows without asking the guest long
	Drift        []string // what was changed behind our back: "memory_bytes: 512 MiB, wanted 256 MiB"
	Pending      []string // what of the spec that Update was given last waits for the next start, or for the guest
	Unsettled    bool     // the guest has yet to do its part of an update: call Update again
	Holding      bool     // the guest still has a disk that the spec no longer names
}

// Event says that a domain may have changed.
type Event struct {
	ID     string
	Change string // as the hypervisor names it, for logs
}

// Source is where a disk's bytes are. It only ever comes from a Storage.
type Source struct {
	Path   string // absolute
	Format string // qcow2 or raw; always explicit
}

// Storage keeps volumes and images in one kind of pool on this machine.
type Storage interface {
	// Status measures the pool and makes it where it is missing. No method makes
	// the directory of a shared pool: a file system that is not mounted here is
	// CodeUnavailable.
	Status(ctx context.Context, pool PoolSpec) (api.PoolStatus, error)

	// CreateVolume makes the volume, or finds the one of that ID. With Image it is
	// a linked clone of an image that is in the same pool (else CodeNotFound).
	// Nothing is left behind by a failure.
	CreateVolume(ctx context.Context, pool PoolSpec, volume VolumeSpec) (Stored, error)

	// DeleteVolume removes it. An unknown volume is no error.
	DeleteVolume(ctx context.Context, pool PoolSpec, id string) error

	// ImportImage stores what r yields, which must have exactly the size and
	// checksum of image (else CodeInvalid and nothing is stored). A qcow2 with a
	// backing or data file, or one that is not what its format says, is
	// CodeInvalid. An image that is there already is found, without reading r.
	ImportImage(ctx context.Context, pool PoolSpec, image ImageSpec, r io.Reader) (Stored, error)

	// OpenImage reads the file of a stored image, or CodeNotFound.
	OpenImage(ctx context.Context, pool PoolSpec, id string) (io.ReadCloser, error)

	// DeleteImage removes it. An unknown image is no error; one with linked
	// clones is CodeConflict.
	DeleteImage(ctx context.Context, pool PoolSpec, id string) error

	// List tells everything stored in the pool, ordered by kind and ID. A file
	// that cannot be used is in it, with its Damage; all other methods treat it
	// as an error.
	List(ctx context.Context, pool PoolSpec) ([]Stored, error)
}

// PoolSpec is a pool with its place on this machine resolved.
type PoolSpec struct {
	Name         string
	Path         string // absolute directory
	Shared       bool   // several machines see the same files there
	ReserveBytes int64
}

// VolumeSpec is a volume to be made.
type VolumeSpec struct {
	ID        string // UUID; names the file
	SizeBytes int64  // 0 with an image: the image's virtual size
	Format    string
	Image     string // ID of an image in the same pool; empty: blank
}

// ImageSpec is an image to be stored.
type ImageSpec struct {
	ID        string
	Format    string
	SHA256    string
	SizeBytes int64
}

// Stored is a volume or an image in a pool.
type Stored struct {
	Kind      string // api.KindVolume or api.KindImage
	ID        string
	Source    Source
	SizeBytes int64 // virtual
	UsedBytes int64
	Damage    string // why the file cannot be used; empty: it can. The sizes are not known then
	FileBytes int64  // of an image: the length of its file
}
