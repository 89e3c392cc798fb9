// Package httpd serves the HTTP API: resources, verbs, streams, consoles,
// health and metrics, described by one OpenAPI document.
//
// Every route is registered through one function that takes the right it
// demands; the key is checked and the right asked for before a handler runs.
// Handlers hold no state: reads come from the node's replica after a barrier,
// changes are entries that Apply decides on.
package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humamux"
	"github.com/gorilla/mux"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of the API.
const (
	HeaderBytesMax      = 32 << 10         // request line and headers
	HeaderTimeout       = 10 * time.Second // until the headers have arrived
	BodyTimeout         = 30 * time.Second // until a JSON body has arrived
	UploadIdleMax       = time.Minute      // between two reads of an upload
	WriteIdleMax        = 30 * time.Second // of a client that does not read its answer
	ObjectBytesMax      = fsm.EntrySizeMax // body of one object
	VerbBytesMax        = 16 << 10         // body of a verb
	ApplyBytesMax       = 16 << 20         // body of an apply
	JSONDepthMax        = 64               // nesting of a body
	PageDefault         = 100              // objects of a list
	PageMax             = 50_000           // objects of a list, when asked for
	PageBytesMax        = 64 << 20         // a longer page ends early, with a cursor
	HistoryDefault      = 50               // records of a history or audit page
	HistoryMax          = 1000             // records of a history or audit page, when asked for
	LabelsMax           = 16               // label selectors of one request
	WaitMax             = 10 * time.Minute // of a blocking query
	WaitDefault         = 5 * time.Minute  // of a blocking query that names no time
	RequestsMax         = 2048             // at once, those that wait or stream not counted
	WaitsMax            = 10_000           // blocking queries at once
	StreamsMax          = 2000             // event streams and consoles at once
	UploadsMax          = 8                // image uploads and backups at once
	AppliesMax          = 2                // large applies being read at once
	ProposeTimeout      = 30 * time.Second // of one change
	ReadTimeout         = 15 * time.Second // of the barrier before a read, and of min_index
	StaleLimit          = 5 * time.Second  // without the leader; then no key is trusted for stale reads
	Heartbeat           = 10 * time.Second // of event streams
	rightsCheckInterval = 1 * time.Second  // of open streams
	ListAtRecordsMax    = 20_000           // records that a list at an index goes back through
	apiVersion          = "v1"
	debvisorIndexHeader = "X-Debvisor-Index"
)

// Cluster is this node's part of the replicated state.
type Cluster interface {
	// State is the local replica.
	State() *fsm.FSM
	// Propose commits an entry. On return the local replica has applied it.
	Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error)
	// ReadIndex is an index that the local replica must reach for a
	// linearizable read that begins now.
	ReadIndex(ctx context.Context) (uint64, error)
}

// Journal is the history of the replicated state.
type Journal interface {
	// At is the object's row as it was at index, nil when there was none. known
	// is false when the journal has no change of the object: what the tables
	// hold now was there then, too. CodeGone below Floor.
	At(ctx context.Context, kind, key string, index uint64) (row json.RawMessage, known bool, err error)
	// History lists the records that changed an object, newest first, below
	// the index before (0: from the newest), at most limit.
	History(ctx context.Context, kind, key string, before uint64, limit int) ([]api.Record, error)
	// Range lists the records after an index and up to through, oldest first,
	// at most limit. CodeGone below Floor, CodeUnavailable where records are
	// still missing.
	Range(ctx context.Context, after, through uint64, limit int) ([]api.Record, error)
	// Floor is the index of the last record that retention dropped.
	Floor() uint64
	// Verify recomputes the chain of hashes. The error names the first bad record.
	Verify(ctx context.Context, progress func(records uint64)) (api.AuditReport, error)
}

// Images stores the bytes of an image that is in the catalogue.
type Images interface {
	// Import reads the image from offset to its end and verifies size and
	// checksum. What has arrived when r fails is kept for a while. CodeConflict
	// says that another offset is where to go on.
	Import(ctx context.Context, image *api.Image, offset int64, r io.Reader) error
	// Arrived tells how much of the image this node has.
	Arrived(ctx context.Context, image *api.Image) (int64, error)
	// OpenImage reads the image from offset on, from whichever node has it, and tells
	// how long it is in all. CodeUnavailable says that no node that is up has it.
	OpenImage(ctx context.Context, image *api.Image, offset int64) (r io.ReadCloser, sizeBytes int64, err error)
}

// Deprecation says since when a route should not be used, and until when it
// answers (RFC 9745, RFC 8594).
type Deprecation struct {
	Since  time.Time
	Sunset time.Time // zero: not decided
	Link   string    // what to use instead; may be empty
}

// Config is what the API serves.
type Config struct {
	Cluster    Cluster
	Journal    Journal
	Consoles   Consoles
	Guests     Guests // nil: guests' agents cannot be asked
	Stats      Stats
	Images     Images
	Foreign    func(ctx context.Context, node string) (api.ForeignDomains, error) // guests that debvisor does not manage; nil: nobody knows
	Status     func(ctx context.Context) (*api.ClusterStatus, error)
	Ready      func() []string // reasons why this node does not serve; none when it does
	Placements func(view *fsm.View, vms []*api.VM) []api.PlannedPlacement
	// Moves tells where the running guest of a VM would migrate to, or with the
	// candidates of the decision why nowhere; nil: nobody knows before it is tried.
	Moves   func(view *fsm.View, vm *api.VM, args api.MigrateArgs) api.Decision
	Balance func(view *fsm.View, now time.Time, movesMax int) api.Balance
	Backup  func(ctx context.Context, w io.Writer, passphrase string) error
	// Token makes a join token: the entry that makes it valid, and its text.
	Token func(life time.Duration, witness bool) (fsm.Entry, string, error)
	// Redeem shows a ticket to the node that issued it; nil: there is no other.
	Redeem   func(ctx context.Context, node string, claim TicketClaim) (TicketGrant, error)
	Registry prometheus.Gatherer // nil: the API's own metrics only
	Panel    http.Handler        // nil: a page that says how to build it
	// LeaderContact is the time since this node last knew the leader's state to
	// be its own; nil: always now.
	LeaderContact func() time.Duration
	Rules         []authz.Rule           // beside those of the roles
	Origins       []string               // hosts besides the node's own from which browsers may open WebSockets
	Deprecations  map[string]Deprecation // by "METHOD path", as in the OpenAPI document
	Node          string                 // name of this node
	Version       string                 // of the binary
	Shutdown      <-chan struct{}        // closes when streams and waits must end; nil: never
	Logger        hclog.Logger
}

// Server is the API as a handler.
type Server struct {
	cfg       Config
	book      *ruleBook
	log       hclog.Logger
	router    *mux.Router
	api       huma.API
	routes    []*route
	resources map[string]resourceOf // by kind
	metrics   *metrics
	document  []byte // OpenAPI
	fixed     fixedHeaders
	tickets   *tickets
	requests  gate
	waits     gate
	streams   gate
	uploads   gate
	applies   gate
}

// fixedHeaders are the values of headers that every answer has, made once.
type fixedHeaders struct{ version, sniff, cache, policy []string }

// New builds the API. It fails when a part is missing, and when a route is
// registered without a right.
func New(cfg Config) (*Server, error) {
	if cfg.Cluster == nil || cfg.Journal == nil || cfg.Consoles == nil || cfg.Stats == nil || cfg.Images == nil || cfg.Status == nil ||
		cfg.Ready == nil || cfg.Placements == nil || cfg.Balance == nil || cfg.Backup == nil || cfg.Token == nil {
		return nil, errors.New("http api: a part of its configuration is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.LeaderContact == nil {
		cfg.LeaderContact = func() time.Duration { return 0 }
	}
	book := &ruleBook{extra: cfg.Rules}
	if _, err := compile(nil, cfg.Rules); err != nil {
		return nil, fmt.Errorf("http api: %w", err)
	}
	s := &Server{cfg: cfg, book: book, log: cfg.Logger, router: mux.NewRouter().SkipClean(true), resources: resources(),
		metrics: newMetrics(), tickets: newTickets(), requests: newGate("requests", RequestsMax), waits: newGate("blocking queries", WaitsMax),
		streams: newGate("streams", StreamsMax), uploads: newGate("uploads and backups", UploadsMax), applies: newGate("large applies", AppliesMax)}
	s.fixed = fixedHeaders{version: []string{cfg.Version}, sniff: []string{"nosniff"}, cache: []string{"no-store"},
		policy: []string{"default-src 'none'; frame-ancestors 'none'"}}
	for _, g := range []gate{s.requests, s.waits, s.streams, s.uploads, s.applies} {
		s.metrics.watchGate(g)
	}
	s.api = humamux.New(s.router, s.humaConfig())
	if err := s.register(); err != nil {
		return nil, fmt.Errorf("http api: %w", err)
	}
	var err error
	if s.document, err = json.Marshal(s.api.OpenAPI()); err != nil {
		return nil, fmt.Errorf("http api: encode openapi: %w", err)
	}
	s.router.NotFoundHandler = http.HandlerFunc(s.notFound)
	s.router.MethodNotAllowedHandler = http.HandlerFunc(s.methodNotAllowed)
	return s, nil
}

// Walk calls visit for every route of the router, as methods and path.
func (s *Server) Walk(visit func(method, path string)) error {
	return s.router.Walk(func(r *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := r.GetPathTemplate()
		if err != nil {
			return fmt.Errorf("route without a path: %w", err)
		}
		methods, err := r.GetMethods()
		if err != nil {
			return fmt.Errorf("route %s without methods: %w", path, err)
		}
		for _, m := range methods {
			visit(m, path)
		}
		return nil
	})
}

// Right is what a route demands, and whether such a route exists.
func (s *Server) Right(method, path string) (authz.Right, bool) {
	for _, r := range s.routes {
		if r.method == method && r.path == path {
			return r.right, true
		}
	}
	return authz.Right{}, false
}

// NewServer wraps a handler in an http.Server with the API's limits.
func NewServer(h http.Handler, log hclog.Logger) *http.Server {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    HeaderBytesMax,
		ErrorLog:          log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
}

// isAPI reports whether a path belongs to the API rather than the panel.
func isAPI(path string) bool {
	return path == "/v1" || strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/health") || strings.HasPrefix(path, "/metrics")
}
