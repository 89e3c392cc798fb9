//go:build !linux

package main

import "context"

// checkHost says that nodes run on Linux only.
func checkHost(context.Context, examination) []check {
	return []check{{Name: "host", State: checkSkipped, Detail: "nodes run on Linux only"}}
}
