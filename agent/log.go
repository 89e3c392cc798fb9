package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/debvisor/debvisor/api"
)

// logBytesMax is how much of a console's log is looked at.
const logBytesMax = 16 << 20

// ConsoleLog finds lines in the log of the serial console of a VM that this
// node owns. Errors as for Console; a bad pattern is CodeInvalid.
func (a *Agent) ConsoleLog(ctx context.Context, vmID string, q api.LogQuery) (*api.ConsoleLog, error) {
	if err := a.runsHere(vmID); err != nil {
		return nil, err
	}
	if a.config.Logs == nil {
		return nil, api.Errorf(api.CodeConflict, "the hypervisor of node %s keeps no console logs", a.config.Name)
	}
	log, err := a.config.Logs.ConsoleLog(ctx, vmID)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	out, err := searchLog(ctx, io.LimitReader(log, logBytesMax), q)
	if err != nil {
		return nil, err
	}
	out.Node = a.config.Name
	return out, nil
}

// searchLog keeps the last lines that match. The patterns are RE2: no input
// makes them slow.
func searchLog(ctx context.Context, r io.Reader, q api.LogQuery) (*api.ConsoleLog, error) {
	if q.Tail == 0 {
		q.Tail = api.LogLinesDefault
	}
	if q.Tail < 0 || q.Tail > api.LogLinesMax {
		return nil, api.Invalid("tail", "is %d", q.Tail).Allow("1 to %d", api.LogLinesMax)
	}
	if len(q.Grep) > api.LogPatternMax {
		return nil, api.Invalid("grep", "has %d bytes", len(q.Grep)).Allow("at most %d", api.LogPatternMax)
	}
	pattern, err := regexp.Compile(q.Grep)
	if err != nil {
		return nil, api.Invalid("grep", "is no pattern: %v", err).Allow("a regular expression as in https://github.com/google/re2/wiki/Syntax")
	}
	out, size := &api.ConsoleLog{Lines: []string{}}, 0
	for lines := bufio.NewReaderSize(r, api.LogLineBytesMax); ; {
		raw, err := lines.ReadSlice('\n')
		if line := cleanLine(raw); len(raw) > 0 && pattern.MatchString(line) {
			out.Lines = append(out.Lines, line)
			size += len(line)
			for len(out.Lines) > q.Tail || size > api.LogAnswerMax {
				size -= len(out.Lines[0])
				out.Lines, out.Truncated = out.Lines[1:], true
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if !errors.Is(err, io.EOF) {
				return nil, err
			}
			return out, ctx.Err()
		}
	}
}

// cleanLine is a line as text: what a guest prints may be anything.
func cleanLine(raw []byte) string {
	line := strings.ToValidUTF8(strings.TrimRight(string(raw), "\r\n"), string(utf8.RuneError))
	// A carriage return begins the line anew, as progress bars do.
	if at := strings.LastIndexByte(line, '\r'); at >= 0 {
		line = line[at+1:]
	}
	return line
}
