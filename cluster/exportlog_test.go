package cluster

import (
	"io"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// OpenLog opens the Raft log of a data directory.
func OpenLog(dir, form string) (raft.LogStore, io.Closer, error) {
	return openLog(&dataDir{path: dir}, form, hclog.NewNullLogger())
}
