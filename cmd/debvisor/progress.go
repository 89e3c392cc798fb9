package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
)

const (
	progressEvery      = 100 * time.Millisecond // on a terminal
	progressPlainEvery = 10 * time.Second       // elsewhere, while nothing new is to be said
)

// progress shows how far long work is: one line that changes on a terminal,
// and a line for each new step elsewhere. It is safe for concurrent use.
type progress struct {
	a *app

	mu    sync.Mutex // guards what follows
	last  string
	shown time.Time
	open  bool // a line on the terminal awaits its end
}

func (a *app) progress() *progress { return &progress{a: a} }

// step says what is being done. The same text again is not repeated.
func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := clean(fmt.Sprintf(format, args...))
	if text == p.last {
		return
	}
	p.last = text
	p.write(text)
}

// bytes tells how much of total was moved.
func (p *progress) bytes(what string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	every := progressPlainEvery
	if p.a.terminal {
		every = progressEvery
	}
	if now := p.a.now(); done >= total || now.Sub(p.shown) >= every {
		p.shown = now
		percent := int64(100)
		if total > 0 {
			percent = 100 * done / total
		}
		if text := fmt.Sprintf("%s: %3d %% of %s", what, percent, api.FormatSize(total)); text != p.last {
			p.last = text
			p.write(text)
		}
	}
}

func (p *progress) write(text string) {
	if !p.a.terminal {
		p.a.notef("%s", text)
		return
	}
	fmt.Fprintf(p.a.errOut, "\r\x1b[K%s", clip(text, p.a.width-1))
	p.open = true
}

// end finishes the line on a terminal.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprintln(p.a.errOut)
		p.open = false
	}
}
