package cluster_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/cluster"
)

// impostorStreams lets a raft transport speak with a node's certificate.
type impostorStreams struct {
	net.Listener
	dial func(ctx context.Context) (net.Conn, error)
}

func (s impostorStreams) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.dial(ctx)
}

// A replica without a vote that claims a voter's ID is not heard: neither its
// votes nor its term count.
func TestRaftMessagesClaimTheNodeOfTheirConnection(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	l := c.waitLeader()
	evil := newNode(t, "evil", nil)
	c.join(evil, false)
	trans := raft.NewNetworkTransport(impostorStreams{listen(t, "127.0.0.1:0"), func(ctx context.Context) (net.Conn, error) {
		return evil.DialNode(ctx, l.Self().ID, cluster.ProtocolRaft)
	}}, 1, 5*time.Second, io.Discard)
	defer func() { _ = trans.Close() }()
	term := l.Stats().Term
	id, address := raft.ServerID(l.Self().ID), raft.ServerAddress(l.Self().Address)
	forged := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.Self().ID), Addr: []byte(address)}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "claims another node") {
			t.Errorf("%s in another's name: got %v", what, err)
		}
	}
	refused("a vote", trans.RequestVote(id, address, &raft.RequestVoteRequest{RPCHeader: forged, Term: term + 5, LastLogIndex: 1 << 40, LastLogTerm: term + 4}, &raft.RequestVoteResponse{}))
	refused("a heartbeat", trans.AppendEntries(id, address, &raft.AppendEntriesRequest{RPCHeader: forged, Term: term + 5}, &raft.AppendEntriesResponse{}))
	refused("a transfer", trans.TimeoutNow(id, address, &raft.TimeoutNowRequest{RPCHeader: forged}, &raft.TimeoutNowResponse{}))
	nameless := raft.RPCHeader{ProtocolVersion: 3}
	refused("a heartbeat without a name", trans.AppendEntries(id, address, &raft.AppendEntriesRequest{RPCHeader: nameless, Term: term + 5}, &raft.AppendEntriesResponse{}))
	snapshot := &raft.InstallSnapshotRequest{RPCHeader: forged, SnapshotVersion: 1, Term: term + 5, Size: 4}
	refused("a snapshot", trans.InstallSnapshot(id, address, snapshot, &raft.InstallSnapshotResponse{}, strings.NewReader("junk")))
	if now := l.Stats().Term; now != term || !l.IsLeader() {
		t.Errorf("term %d became %d", term, now)
	}
	c.must(l, tenant("still-leads"))
}
