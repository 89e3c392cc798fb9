package sim

import "time"

// Wave is the course of what a guest uses.
func Wave(age time.Duration, phase float64) float64 { return wave(age, phase) }
