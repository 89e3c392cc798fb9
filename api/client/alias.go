package client

import "github.com/debvisor/debvisor/api"

// The answers that have no kind of their own, under the names that callers of
// this package look for.
type (
	ClusterStatus = api.ClusterStatus // answer of Status
	Member        = api.Member        // one node of a ClusterStatus
)
