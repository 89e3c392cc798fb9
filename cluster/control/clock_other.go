//go:build !linux

package control

import "time"

// Elapsed implements Clock with the monotonic clock that the system offers.
// Nodes run on Linux only; elsewhere this serves tests.
func (c systemClock) Elapsed() time.Duration { return time.Since(c.start) }
