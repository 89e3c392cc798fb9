package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/cluster/journal"
	"github.com/debvisor/debvisor/fsm"
)

// newAPI makes the HTTP API of the node.
func (n *node) newAPI(registry *prometheus.Registry) (*httpd.Server, error) {
	s, err := httpd.New(httpd.Config{
		Cluster:       replica{n.server},
		Journal:       history{n.server.Journal(), n.server},
		Consoles:      consoles{n},
		Guests:        guestAgents{n},
		Stats:         nodeStatistics{n},
		Redeem:        n.redeemTicket,
		Images:        imageStore{n},
		Foreign:       n.ForeignDomains,
		Status:        n.clusterStatus,
		Ready:         n.unready,
		Placements:    plannedPlacements,
		Moves:         decidedMove,
		Balance:       proposedBalance,
		Backup:        n.server.Backup,
		Token:         n.server.NewToken,
		Registry:      registry,
		LeaderContact: n.leaderContact,
		Node:          n.server.Self().Name,
		Version:       version,
		Shutdown:      n.stopping,
		Logger:        n.logger.Named("http"),
	})
	if err != nil {
		return nil, fmt.Errorf("prepare the API: %w", err)
	}
	return s, nil
}

// serveAPI answers until the listener closes.
func (n *node) serveAPI() error {
	err := n.http.Serve(n.server.HTTP())
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve the API: %w", err)
}

// leaderContact is the time since this node heard of its leader.
func (n *node) leaderContact() time.Duration {
	stats := n.server.Stats()
	if stats.Leader.ID == "" || !n.caughtUp.Load() {
		return time.Hour // nothing is trusted for stale reads, and a key may be good that is not known
	}
	return stats.LastContact
}

// history is the journal as the API reads it.
type history struct {
	*journal.Journal
	server *cluster.Server
}

// At implements httpd.Journal.
func (h history) At(ctx context.Context, kind, key string, index uint64) (json.RawMessage, bool, error) {
	m, err := h.Journal.At(ctx, kind, key, index)
	return m.Row, m.Known, err
}

// Verify implements httpd.Journal.
func (h history) Verify(ctx context.Context, progress func(records uint64)) (api.AuditReport, error) {
	v, err := h.server.VerifyJournal(ctx, progress)
	return api.AuditReport{Records: v.Records, Done: err == nil, First: v.First, Last: v.Last, Head: v.Head}, err
}

// imageStore stores uploaded images on this node.
type imageStore struct{ n *node }

// Import implements httpd.Images.
func (s imageStore) Import(ctx context.Context, image *api.Image, offset int64, r io.Reader) error {
	return s.n.agent.ImportImage(ctx, image, offset, r)
}

// Arrived implements httpd.Images.
func (s imageStore) Arrived(ctx context.Context, image *api.Image) (int64, error) {
	return s.n.agent.ArrivedImage(ctx, image)
}

// OpenImage implements httpd.Images: here, or on a peer that has it.
func (s imageStore) OpenImage(ctx context.Context, image *api.Image, offset int64) (io.ReadCloser, int64, error) {
	self, view := s.n.server.Self().Name, s.n.server.State().Read()
	r, size, err := s.n.agent.OpenImageAt(ctx, image.ID, offset)
	if err == nil || api.CodeOf(err) != api.CodeNotFound {
		return r, size, err
	}
	err = api.Errorf(api.CodeUnavailable, "no node that is up has its bytes").On(api.KindImage, api.Key(image.Tenant, image.Name)).
		Do("bring a node back that has them, or upload them")
	for replica := range fsm.Replicas.By(view, "of_id", image.ID) {
		peer := fsm.Nodes.Get(view, replica.Node)
		if replica.Node == self || replica.State != api.ReplicaReady || peer == nil || peer.Lease != api.NodeLive {
			continue
		}
		if size = cmp.Or(image.SizeBytes, replica.FileBytes); size == 0 {
			continue
		}
		if r, err = s.n.fetchImageAt(ctx, replica.Node, imageRequest{ID: image.ID, Offset: offset}); err == nil {
			return r, size, nil
		}
	}
	return nil, 0, err
}

// imageRequest is the argument of tunnelImage.
type imageRequest struct {
	ID     string `json:"id"`
	Offset int64  `json:"offset,omitzero"`
}

// fetchImage reads an image from the node of that name. The reader fails when
// that node has not sent all.
func (n *node) fetchImage(ctx context.Context, from, imageID string) (io.ReadCloser, error) {
	return n.fetchImageAt(ctx, from, imageRequest{ID: imageID})
}

func (n *node) fetchImageAt(ctx context.Context, from string, in imageRequest) (io.ReadCloser, error) {
	conn, err := n.tunnels.dial(ctx, from, tunnelImage, in)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &pieceReader{conn: conn, stop: stop}, nil
}

// serveImage is the tunnel service that sends an image to another node.
func (n *node) serveImage(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var in imageRequest
	if err := json.Unmarshal(argument, &in); err != nil || in.Offset < 0 {
		return nil, api.Invalid("argument", "is no image")
	}
	image, _, err := n.agent.OpenImageAt(ctx, in.ID, in.Offset)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, conn net.Conn) {
		defer image.Close()
		if err := sendPieces(conn, image); err != nil {
			n.logger.Warn("an image was not sent to its end", "image", in.ID, "error", err)
		}
	}, nil
}

// unready is why this node should get no requests, if it should not.
func (n *node) unready() []string {
	reasons := n.server.Unready()
	if !n.caughtUp.Load() {
		reasons = append(reasons, "the node has not caught up with the leader since its start")
	}
	select {
	case <-n.stopping:
		return append(reasons, "the node is stopping")
	default:
	}
	row := fsm.Nodes.Get(n.server.State().Read(), n.server.Self().Name)
	if row != nil && !row.Witness && row.Hypervisor.Driver != "" && !row.Hypervisor.Healthy {
		reasons = append(reasons, "hypervisor: "+row.Hypervisor.Reason)
	}
	return reasons
}
