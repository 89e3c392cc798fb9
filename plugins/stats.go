package plugins

import (
	"context"
	"time"
)

// Meter reads what a machine and its guests use.
type Meter interface {
	// Sample reads the counters of the machine and of every executing domain of
	// ours, ordered by ID. However many domains there are, the hypervisor is
	// asked once, and a guest that hangs holds up nobody: what cannot be read of
	// it is zero.
	Sample(ctx context.Context) (Sample, error)
}

// Sample is one reading. What grows is counted from some beginning; it falls
// back when that beginning is a new one: a guest that was started again, a
// machine that booted.
type Sample struct {
	Node    NodeCounters
	Domains []DomainCounters
}

// NodeCounters are those of the machine.
type NodeCounters struct {
	CPUs                 int
	CPUBusy, CPUTotal    time.Duration // of all processors together
	Load                 float64       // processes that want to run, averaged over a minute
	MemoryBytes          int64         //
	MemoryAvailableBytes int64         // that programs could still get
	Disk                 DiskCounters  // of all disks together
	NIC                  NICCounters   // of all real interfaces together
}

// DomainCounters are those of one guest.
type DomainCounters struct {
	ID             string
	CPUTime        time.Duration // of all its processors together, and of its emulator
	MemoryBytes    int64         // that the guest has been given
	MemoryRSSBytes int64         // that it takes of the machine's
	Disks          []DiskCounters
	NICs           []NICCounters
}

// DiskCounters are those of a disk. Times are spent waiting for it; they
// overlap where it does several things at once.
type DiskCounters struct {
	Name                  string // as the guest's definition calls it: vda
	ReadBytes, WriteBytes int64
	Reads, Writes         int64
	ReadTime, WriteTime   time.Duration
}

// NICCounters are those of an interface, as its owner sees them: what it
// received came to the guest.
type NICCounters struct {
	Name                         string // on the machine: vnet0
	ReceivedBytes, SentBytes     int64
	ReceivedPackets, SentPackets int64
	ReceivedDropped, SentDropped int64
}
