// Package cluster tests whole clusters made of real processes of the built
// binary: what the README promises, what survives killed, paused, partitioned
// and full nodes, what is linearizable, and what bad input gets.
//
// The tests start `debvisor dev` or single agents, talk to them through the
// command line and the HTTP API like any user, and break them by signal,
// network namespace and full file system. They need Linux. Those that need
// root fail instead of being skipped when they run as root.
//
// DEBVISOR_BINARY names a binary to test; otherwise the suite builds one.
package cluster
