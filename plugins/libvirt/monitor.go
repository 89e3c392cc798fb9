package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
)

// Pace and bounds of QEMU's own jobs.
const (
	jobPatience  = 35 * time.Minute // with one answer of QEMU: it answers nothing while it writes a guest's memory
	jobPollMin   = 20 * time.Millisecond
	jobPollMax   = time.Second
	monitorMax   = 4 << 20 // bytes of an answer, as in libvirt
	jobConcluded = "concluded"
)

// monitor asks the QEMU of a guest directly, for what libvirt 9.0 has no call:
// snapshots of running disks without memory, and those with memory that leave
// out the disks of the firmware. Neither changes what libvirt knows of a guest.
type monitor struct {
	conn   *conn
	handle libvirt.Domain
}

// monitor opens a connection of its own, so that a QEMU that answers nothing
// for minutes holds up no other call. The caller closes it.
func (h *Hypervisor) monitor(ctx context.Context, f *found) (*monitor, error) {
	c, err := dial(ctx, h.config.Socket)
	if err != nil {
		return nil, err
	}
	c.patience = jobPatience
	return &monitor{conn: c, handle: f.handle}, nil
}

func (m *monitor) close() { m.conn.close() }

// ask carries out a command of the QEMU machine protocol.
func (m *monitor) ask(ctx context.Context, command string, arguments, into any) error {
	in := map[string]any{"execute": command}
	if arguments != nil {
		in["arguments"] = arguments
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	var text string
	err = m.conn.call(ctx, func(l *libvirt.Libvirt) (err error) {
		text, err = l.QEMUDomainMonitorCommand(m.handle, string(raw), 0)
		return err
	})
	if err != nil {
		return err
	}
	return decodeAnswer(command, text, into)
}

// decodeAnswer reads what QEMU answered.
func decodeAnswer(command, text string, into any) error {
	if len(text) > monitorMax {
		return api.Errorf(api.CodeUnavailable, "QEMU answered %s with %d bytes", command, len(text))
	}
	var out struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return api.Errorf(api.CodeUnavailable, "QEMU's answer to %s is not understood: %v", command, err)
	}
	switch {
	case out.Error != nil:
		return api.Errorf(api.CodeInvalid, "QEMU refused %s: %s", command, api.CleanText(out.Error.Desc, api.TextLengthMax))
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(out.Return, into); err != nil {
		return api.Errorf(api.CodeUnavailable, "QEMU's answer to %s is not understood: %v", command, err)
	}
	return nil
}

// job is one of QEMU's jobs.
type job struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Error  string `json:"error"`
}

// find returns the job of that ID; nil: there is none.
func (m *monitor) find(ctx context.Context, id string) (*job, error) {
	var jobs []job
	if err := m.ask(ctx, "query-jobs", nil, &jobs); err != nil {
		return nil, err
	}
	for i := range jobs {
		if jobs[i].ID == id {
			return &jobs[i], nil
		}
	}
	return nil, nil
}

// finish waits until the job has ended, takes it away, and returns its error.
// A job that is not there is no error.
func (m *monitor) finish(ctx context.Context, id string) error {
	for pause := jobPollMin; ; pause = min(2*pause, jobPollMax) {
		j, err := m.find(ctx, id)
		if err != nil || j == nil {
			return err
		}
		if j.Status == jobConcluded {
			if err := m.ask(ctx, "job-dismiss", map[string]string{"id": id}, nil); err != nil {
				return err
			}
			if j.Error != "" {
				return api.Errorf(api.CodeInvalid, "QEMU: %s", api.CleanText(j.Error, api.TextLengthMax))
			}
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// block is a node of QEMU's graph of block devices.
type block struct {
	Name     string `json:"node-name"`
	Driver   string `json:"drv"`
	File     string `json:"file"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		Snapshots []imageSnapshot `json:"snapshots"`
	} `json:"image"`
}

// imageSnapshot is a snapshot within a qcow2 image, as QEMU and qemu-img show it.
type imageSnapshot struct {
	Name        string `json:"name"`
	MemoryBytes int64  `json:"vm-state-size"`
}

func (b *block) snapshot(name string) *imageSnapshot {
	for i := range b.Image.Snapshots {
		if b.Image.Snapshots[i].Name == name {
			return &b.Image.Snapshots[i]
		}
	}
	return nil
}

// blocks finds the nodes of qcow2 files by their paths.
func (m *monitor) blocks(ctx context.Context) (map[string]*block, error) {
	var all []block
	if err := m.ask(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &all); err != nil {
		return nil, err
	}
	out := map[string]*block{}
	for i := range all {
		if b := &all[i]; b.Driver == api.FormatQCOW2 {
			out[b.File] = b
		}
	}
	return out, nil
}
