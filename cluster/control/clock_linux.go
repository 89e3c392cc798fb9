package control

import (
	"time"

	"golang.org/x/sys/unix"
)

// Elapsed implements Clock.
func (systemClock) Elapsed() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("read CLOCK_BOOTTIME: " + err.Error()) // every kernel that runs Go has it
	}
	return time.Duration(ts.Nano())
}
