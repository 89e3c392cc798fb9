package libvirt

import (
	"io"
	"sync"

	"github.com/debvisor/debvisor/api"
)

// guards is the guards that this process has started and that have not ended.
type guards struct {
	mu   sync.Mutex // guards byID; a nil value is about to be started
	byID map[string]*guard
}

// add starts a guard for the guest unless it has one: then it is frozen.
func (g *guards) add(id string, start func() (*guard, error)) (*guard, error) {
	g.mu.Lock()
	if g.byID == nil {
		g.byID = map[string]*guard{}
	}
	if _, taken := g.byID[id]; taken {
		g.mu.Unlock()
		return nil, api.Errorf(api.CodeConflict, "its file systems are frozen already").Do("wait until they thaw, or thaw them")
	}
	g.byID[id] = nil
	g.mu.Unlock()
	started, err := start()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		delete(g.byID, id)
		return nil, err
	}
	g.byID[id] = started
	return started, nil
}

// drop forgets the guard.
func (g *guards) drop(id string, one *guard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byID[id] == one {
		delete(g.byID, id)
	}
}

// dismiss tells the guard that its guest was thawed.
func (g *guards) dismiss(id string) {
	g.mu.Lock()
	one := g.byID[id]
	delete(g.byID, id)
	g.mu.Unlock()
	if one != nil {
		_, _ = io.WriteString(one.input, guardDone)
		_ = one.input.Close()
		<-one.ended
	}
}

func (g *guards) has(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, taken := g.byID[id]
	return taken
}
