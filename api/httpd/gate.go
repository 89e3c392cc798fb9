package httpd

import (
	"net/http"
	"sync/atomic"

	"github.com/debvisor/debvisor/api"
)

// gate lets a bounded number of requests through at once.
type gate struct {
	name string
	max  int64
	open *atomic.Int64
}

func newGate(name string, limit int64) gate {
	return gate{name: name, max: limit, open: &atomic.Int64{}}
}

// enter returns how to leave again, or a refusal with CodeLimit (429).
func (g gate) enter() (leave func(), err error) {
	if g.open.Add(1) > g.max {
		g.open.Add(-1)
		return nil, &statusError{http.StatusTooManyRequests, api.Errorf(api.CodeLimit, "this node serves %d %s at once", g.max, g.name).
			Do("wait a moment and repeat it, or ask another node")}
	}
	return func() { g.open.Add(-1) }, nil
}
