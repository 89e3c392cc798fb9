package libvirt

import (
	"context"
	"fmt"
	"sync"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/plugins"
)

// Events implements plugins.Hypervisor. It has a connection of its own: the
// library delivers all events of a connection through one goroutine, and a
// reader that gives up must not leave subscriptions behind.
func (h *Hypervisor) Events(ctx context.Context) (<-chan plugins.Event, error) {
	c, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	own, err := dial(ctx, h.config.Socket)
	if err != nil {
		return nil, err
	}
	sources, err := subscribe(ctx, own)
	if err != nil {
		own.close()
		return nil, err
	}
	q := plugins.NewHints()
	var readers sync.WaitGroup
	for _, source := range sources {
		readers.Go(func() {
			for e := range source {
				h.hint(ctx, c, q, e)
			}
		})
	}
	out := make(chan plugins.Event)
	while, cancel := context.WithCancel(ctx)
	readers.Go(func() { // a broken connection ends the delivery
		defer cancel()
		select {
		case <-while.Done():
		case <-own.raw.dead:
		case <-c.raw.dead:
		}
	})
	go func() {
		defer close(out)
		defer readers.Wait()
		defer own.close()
		defer cancel()
		q.Deliver(while, out)
	}()
	return out, nil
}

// notice is one event of libvirt.
type notice struct {
	id, change string
	gone       bool // the definition went: nobody can be asked whose it was
}

// subscribe asks for lifecycle events and for those that change a running
// guest's hardware. The channels close with the connection.
func subscribe(ctx context.Context, c *conn) ([]<-chan notice, error) {
	found := make(chan []<-chan notice, 1) // the call may go on after this returned
	// The subscriptions live until the connection closes, not until ctx ends:
	// the library would try to cancel them one by one.
	forever := context.WithoutCancel(ctx)
	err := c.call(ctx, func(l *libvirt.Libvirt) error {
		lifecycle, err := l.LifecycleEvents(forever)
		if err != nil {
			return err
		}
		out := []<-chan notice{convert(lifecycle, c.raw.dead, func(e libvirt.DomainEventLifecycleMsg) notice {
			return notice{id: idOf(e.Dom), change: lifecycleName(e.Event), gone: e.Event == int32(libvirt.DomainEventUndefined)}
		})}
		for _, kind := range []libvirt.DomainEventID{
			libvirt.DomainEventIDDeviceAdded, libvirt.DomainEventIDDeviceRemoved, libvirt.DomainEventIDBalloonChange,
			libvirt.DomainEventIDMetadataChange, libvirt.DomainEventIDReboot, libvirt.DomainEventIDIoError,
		} {
			events, err := l.SubscribeEvents(forever, kind, nil)
			if err != nil {
				return fmt.Errorf("subscribe to event %d: %w", kind, err)
			}
			out = append(out, convert(events, c.raw.dead, otherNotice))
		}
		found <- out
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

// convert passes events on until the connection is dead; then it takes what is
// left and drops it, whether anybody reads or not.
func convert[E any](in <-chan E, dead <-chan struct{}, to func(E) notice) <-chan notice {
	out := make(chan notice)
	go func() {
		defer close(out)
		for e := range in {
			select {
			case out <- to(e):
			case <-dead:
			}
		}
	}()
	return out
}

func idOf(d libvirt.Domain) string { return uuid.UUID(d.UUID).String() }

func lifecycleName(event int32) string {
	return nameOf(event, "defined", "undefined", "started", "suspended", "resumed", "stopped", "shutting down", "suspended by guest", "crashed")
}

func otherNotice(event any) notice {
	switch e := event.(type) {
	case *libvirt.DomainEventCallbackDeviceAddedMsg:
		return notice{id: idOf(e.Dom), change: "device added"}
	case *libvirt.DomainEventCallbackDeviceRemovedMsg:
		return notice{id: idOf(e.Msg.Dom), change: "device removed"}
	case *libvirt.DomainEventCallbackBalloonChangeMsg:
		return notice{id: idOf(e.Msg.Dom), change: "memory changed"}
	case *libvirt.DomainEventCallbackMetadataChangeMsg:
		return notice{id: idOf(e.Dom), change: "metadata changed"}
	case *libvirt.DomainEventCallbackRebootMsg:
		return notice{id: idOf(e.Msg.Dom), change: "rebooted"}
	case *libvirt.DomainEventCallbackIOErrorMsg:
		return notice{id: idOf(e.Msg.Dom), change: "i/o error"}
	}
	return notice{}
}

// hint passes on what concerns a domain of ours. One that was never seen is
// looked at, because others may have defined it with our mark.
func (h *Hypervisor) hint(ctx context.Context, c *conn, q *plugins.Hints, n notice) {
	if n.id == "" {
		return
	}
	h.mu.Lock()
	_, ours := h.ours[n.id]
	h.mu.Unlock()
	if !ours && (n.gone || ctx.Err() != nil) {
		return
	}
	if !ours {
		f, err := h.look(ctx, c, n.id)
		if err != nil || f == nil {
			return
		}
		h.remember(n.id)
	}
	q.Add(plugins.Event{ID: n.id, Change: n.change})
}
