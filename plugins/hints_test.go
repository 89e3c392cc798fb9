package plugins_test

import (
	"context"
	"testing"

	"github.com/debvisor/debvisor/plugins"
)

func TestSlowReaderGetsTheLastHintOfEachDomainInOrder(t *testing.T) {
	t.Parallel()
	h := plugins.NewHints()
	for _, e := range []plugins.Event{{ID: "a", Change: "started"}, {ID: "b", Change: "started"}, {ID: "a", Change: "stopped"}} {
		h.Add(e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan plugins.Event), make(chan struct{})
	go func() {
		defer close(done)
		h.Deliver(ctx, out)
	}()
	for _, want := range []plugins.Event{{ID: "a", Change: "stopped"}, {ID: "b", Change: "started"}} {
		if got := <-out; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	h.Add(plugins.Event{ID: "c"}) // which nobody takes
	cancel()
	<-done
}
