package plugins

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Migrator moves executing guests between this machine and another one with
// the same adapter. The two ends talk over streams that the caller opens
// between the nodes; they need no listener on the network and no address of
// each other.
//
// A guest is never executed by two machines: it arrives paused, and goes on only
// when Continue is called, at one end. Which end that is, is not for the
// adapters to decide.
type Migrator interface {
	// Describe tells what an executing guest uses of this machine. A guest that
	// does not run is CodeConflict; so is one with something that cannot move, and
	// the error names all of it.
	Describe(ctx context.Context, id string) (GuestUse, error)

	// Send moves the guest and blocks until it is decided what became of it. Once
	// the guest has stopped here and has arrived, paused, it calls
	// Departure.Commit; nil means that the guest is the other machine's, and Send
	// returns nil with the guest here dead or about to be stopped for good by the
	// caller. Any other error, from Commit too, means that the guest stays: it
	// goes on executing here, or is paused until Continue. With ErrUndecided from
	// Commit it is left paused. The end of ctx gives up before Commit is called,
	// and not after it.
	Send(ctx context.Context, d Departure) error

	// Receive is the other end of Send, on its control stream. It blocks until
	// the guest has arrived, paused, with the mark that Arrival says. After an
	// error nothing of the guest executes here; a definition and files may be
	// left for Hypervisor.Remove. Files of Arrival must exist.
	Receive(ctx context.Context, a Arrival, control net.Conn) error

	// Join carries another stream of a guest that Receive is receiving, until the
	// stream ends. It closes it. A guest that is not being received, or a channel
	// that it did not ask for, is CodeConflict.
	Join(ctx context.Context, id, channel string, conn net.Conn) error

	// Continue makes a paused guest execute. One that runs is no error; one with
	// another Gen, or that does not execute, is CodeConflict. It also ends what is
	// left of a Send that was not decided.
	Continue(ctx context.Context, id string, gen uint64) error
}

// ErrUndecided is returned by Departure.Commit when it cannot be known whether
// the commit holds.
var ErrUndecided = errors.New("it is not known whether the guest was handed on")

// GuestUse is what an executing guest uses of its machine.
type GuestUse struct {
	Gen          uint64
	SpecRevision uint64
	Files        []FileUse // volumes and images
	NICs         []NICSpec
}

// FileUse is a volume or an image that a guest uses.
type FileUse struct {
	Path     string // as Storage named it
	Writable bool
}

// Departure is a guest about to leave.
type Departure struct {
	ID            string
	Gen           uint64        // of the guest here
	Copy          []string      // paths of the volumes that are copied along; the others are seen by both machines
	DowntimeLimit time.Duration // that the hypervisor aims at
	BandwidthMax  int64         // bytes a second; 0: no limit
	AutoConverge  bool

	Control net.Conn                                                       // to Receive at the other end; the caller closes it
	Dial    func(ctx context.Context, channel string) (net.Conn, error)    // opens a stream to Join at the other end
	Tell    func(p Progress)                                               // about once a second, from Send's goroutine
	Commit  func(ctx context.Context, downtime func() time.Duration) error // see Send; downtime: since the guest stopped here
}

// Progress is how far a migration is.
type Progress struct {
	TotalBytes int64 // to be copied, as far as is known
	LeftBytes  int64
}

// Arrival is a guest about to arrive.
type Arrival struct {
	ID        string
	ClusterID string
	Name      string // TENANT.NAME
	Gen       uint64 // of the mark that it gets here
	// Files says where the volumes and images are that the guest uses at the
	// other end: their paths there, and what they are here.
	Files  map[string]Source
	Copy   []string // paths at the other end of the volumes that are filled by the migration
	Seed   *api.CloudInit
	SeedID string
}
