package control

import "time"

// Clock is the time that the loops go by.
type Clock interface {
	// Now is the wall clock, for what is compared with stamps in the state.
	Now() time.Time
	// Elapsed is the time since some moment before the program started. It
	// never goes back and counts while the machine sleeps. Leases go by it.
	Elapsed() time.Duration
}

// systemClock is the clock of the machine.
type systemClock struct{ start time.Time }

// SystemClock is the clock of the machine; on Linux Elapsed is CLOCK_BOOTTIME.
func SystemClock() Clock { return systemClock{start: time.Now()} }

// Now implements Clock.
func (systemClock) Now() time.Time { return time.Now() }
