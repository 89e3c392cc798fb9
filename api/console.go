package api

import "time"

// The kinds of consoles.
const (
	ConsoleSerial = "serial"
	ConsoleVNC    = "vnc"
)

// ConsoleMoved is the status with which a WebSocket of a console is closed
// because the VM runs on another node now: open it again.
const ConsoleMoved = 4001

// Limits of tickets and of what is read of a console's log.
const (
	TicketLife      = 30 * time.Second
	LogPatternMax   = 512     // bytes of a pattern
	LogLinesDefault = 100     // lines of an answer
	LogLinesMax     = 10000   // lines of an answer, when asked for
	LogLineBytesMax = 4096    // of one line; a longer one is cut into several
	LogAnswerMax    = 1 << 20 // bytes of the lines of an answer
)

// ConsoleTicket opens one console, once, without a key. It is bound to the key
// that asked for it, to the VM, to the kind of console, and to the node that
// issued it and keeps its hash in memory; every other node asks that one.
type ConsoleTicket struct {
	Ticket  string    `json:"ticket"` // send it as the subprotocol debvisor.ticket.TICKET, or as the query ticket=TICKET
	Kind    string    `json:"kind"`
	Path    string    `json:"path"` // of the WebSocket, on any node
	Node    string    `json:"node"` // that issued it
	Expires time.Time `json:"expires"`
}

// LogQuery selects lines of a console's log.
type LogQuery struct {
	Tail int    `json:"tail,omitzero"` // the last lines that match; 0: LogLinesDefault
	Grep string `json:"grep,omitzero"` // RE2 pattern that a line must match; empty: every line
}

// ConsoleLog is what the log of a guest's serial console holds, oldest first.
type ConsoleLog struct {
	Node      string   `json:"node"`
	Lines     []string `json:"lines"`
	Truncated bool     `json:"truncated"` // older lines match too
}
