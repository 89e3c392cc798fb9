package httpd

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// PassphraseMin is the shortest passphrase of a backup, in bytes.
const PassphraseMin = 12

type noInput struct{}

type backupBody struct {
	Passphrase string `json:"passphrase" minLength:"12" doc:"opens the backup again; nobody can restore it"`
}

type activateBody struct {
	Version uint32 `json:"version" doc:"cluster version to activate; there is no way back"`
}

func (s *Server) registerCluster() error {
	right := func(v authz.Verb) authz.Right {
		return authz.Right{Verb: v, Kind: authz.KindCluster, Scope: authz.ScopeCluster}
	}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/cluster", right: right(authz.Read), answer: api.ClusterStatus{},
			summary: "Show the cluster as this node sees it", about: "It answers without a leader, too."},
			func(x *exchange, _ *noInput) error {
				status, err := s.cfg.Status(x.ctx())
				if err != nil {
					return err
				}
				x.index(status.Index)
				return x.answer(http.StatusOK, status)
			}),
		handle(s, route{method: http.MethodPost, path: "/v1/cluster/activate", right: right(authz.Update), change: true,
			body: activateBody{}, bytes: VerbBytesMax, status: http.StatusNoContent, summary: "Activate a cluster version"},
			func(x *exchange, in *clusterCreateInput) error {
				var body activateBody
				if err := x.decode(&body); err != nil {
					return err
				}
				return x.change(in.Plan, fsm.ActivateVersion.Entry(fsm.VersionActivate{Version: body.Version}), x.nothing)
			}),
		handle(s, route{method: http.MethodPost, path: "/v1/cluster/backup", right: right(authz.Backup), body: backupBody{}, bytes: VerbBytesMax,
			media: "application/octet-stream", summary: "Back up the whole replicated state",
			about: "The file is complete only if the trailer X-Debvisor-Complete says true."}, (*exchange).backup),
		handle(s, route{method: http.MethodGet, path: "/v1/version", right: authz.Right{Verb: authz.Read, Kind: authz.KindCluster, Scope: authz.ScopeSelf},
			answer: api.Version{}, summary: "Show what this node runs"},
			func(x *exchange, _ *noInput) error {
				return x.answer(http.StatusOK, api.Version{Version: s.cfg.Version, API: apiVersion, Node: s.cfg.Node,
					ClusterVersion: s.cfg.Cluster.State().Read().ClusterVersion()})
			}),
		handle(s, route{method: http.MethodGet, path: "/v1/openapi.json", right: authz.Right{Verb: authz.Read, Kind: authz.KindSchema, Scope: authz.ScopeSelf},
			media: "application/json", summary: "Describe this API (OpenAPI 3.1)"},
			func(x *exchange, _ *noInput) error { return x.send(http.StatusOK, s.document) }),
		handle(s, route{method: http.MethodGet, path: "/metrics", right: authz.Right{Verb: authz.Read, Kind: authz.KindMetrics, Scope: authz.ScopeCluster},
			media: "text/plain", summary: "Metrics of this node, for Prometheus"},
			func(x *exchange, _ *noInput) error { s.metricsHandler().ServeHTTP(x.w, x.r); return nil }))
}

// backup streams an encrypted backup. A failure after its first byte breaks
// the connection.
func (x *exchange) backup(*noInput) error {
	var body backupBody
	if err := x.decode(&body); err != nil {
		return err
	}
	if len(body.Passphrase) < PassphraseMin {
		return api.Invalid("passphrase", "has %d bytes", len(body.Passphrase)).Allow("at least %d", PassphraseMin)
	}
	x.leaveSlot()
	leave, err := x.s.uploads.enter()
	if err != nil {
		return err
	}
	defer leave()
	h := x.w.Header()
	h.Set("Trailer", completeTrailer)
	h.Set("Content-Type", "application/octet-stream")
	if err := x.s.cfg.Backup(x.ctx(), &patient{x}, body.Passphrase); err != nil {
		h.Del("Trailer")
		return err
	}
	h.Set(completeTrailer, "true")
	return nil
}

const completeTrailer = "X-Debvisor-Complete"

// healthAnswer is what the health endpoints say.
type healthAnswer struct {
	Status string `json:"status"`
}

func (s *Server) registerHealth() error {
	right := authz.Right{Verb: authz.Read, Kind: authz.KindHealth, Scope: authz.ScopePublic}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/health/live", right: right, answer: healthAnswer{}, summary: "Whether the process answers"},
			func(x *exchange, _ *noInput) error { return x.answer(http.StatusOK, healthAnswer{"live"}) }),
		handle(s, route{method: http.MethodGet, path: "/health/ready", right: right, answer: healthAnswer{}, summary: "Whether the node serves, or why not"},
			func(x *exchange, _ *noInput) error {
				reasons := s.cfg.Ready()
				if len(reasons) == 0 {
					return x.answer(http.StatusOK, healthAnswer{"ready"})
				}
				p := problemOf(api.Errorf(api.CodeUnavailable, "not ready: %s", strings.Join(reasons, "; ")), x.requestID)
				p.Reasons = reasons
				x.problem(p)
				return nil
			}))
}

// servePanel serves what is not the API: the panel, or a page that says how to
// get it.
func (s *Server) servePanel(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Panel != nil {
		s.cfg.Panel.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if r.URL.Path != "/" {
		w.WriteHeader(http.StatusNotFound)
	}
	_, _ = w.Write([]byte("<!doctype html><title>debvisor</title><h1>debvisor</h1>" +
		"<p>This binary was built without the panel. Build it with <code>make build</code>, with Node installed.</p>" +
		"<p>The API is at <code>/v1</code>; <code>/v1/openapi.json</code> describes it.</p>\n"))
}

// ageSeconds is a duration as the Age header wants it.
func ageSeconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
