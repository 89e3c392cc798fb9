package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/debvisor/debvisor/api"
)

// The kinds of change that are undone.
const (
	undoLink    = "link"    // Device was made: remove it
	undoAddress = "address" // Value was added to Device: remove it
	undoVLAN    = "vlan"    // VLAN was added to Device, its own end where Self: remove it
	undoSetting = "setting" // Device is a file below /proc/sys/net: write Value
	undoDown    = "down"    // Device was set up: set it down
)

// undo brings back one thing as it was.
type undo struct {
	Kind   string `json:"kind"`
	Device string `json:"device"`
	Value  string `json:"value,omitzero"`
	VLAN   uint16 `json:"vlan,omitzero"`
	Self   bool   `json:"self,omitzero"`
}

// trial is a change that may have cut the machine off. It is on disk before
// anything is changed.
type trial struct {
	Bridge   string `json:"bridge"`
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"` // of what it was made for
	Undo     []undo `json:"undo"`   // in the order of the changes
}

// memory is what must not be forgotten about changes, in one file.
type memory struct {
	Trial    *trial            `json:"trial,omitzero"`
	Proven   map[string]string `json:"proven,omitzero"`   // bridge to the digest of what did not cut the machine off
	Reverted map[string]uint64 `json:"reverted,omitzero"` // bridge to the revision that did
	Carried  map[string][]undo `json:"carried,omitzero"`  // bridge to what Remove has to undo on devices of others
}

const (
	memoryFile     = "changes.json"
	memoryTemp     = "changes.new"
	memoryBytesMax = 1 << 20
)

// load reads the memory. A machine without one has nothing to remember.
func (n *Network) load() error {
	n.memory = memory{Proven: map[string]string{}, Reverted: map[string]uint64{}, Carried: map[string][]undo{}}
	raw, err := n.root.ReadFile(memoryFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(raw) > memoryBytesMax {
		err = fmt.Errorf("has %d bytes", len(raw))
	}
	if err == nil {
		err = json.Unmarshal(raw, &n.memory)
	}
	if err != nil {
		return fmt.Errorf("memory of network changes %s: %w; delete the file once the network of this machine is known to be as it should", n.root.Name()+"/"+memoryFile, err)
	}
	return nil
}

// save makes the memory durable.
func (n *Network) save() (err error) {
	raw, err := json.Marshal(&n.memory)
	if err != nil {
		return err
	}
	f, err := n.root.OpenFile(memoryTemp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keep network changes: %w", err)
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = n.root.Rename(memoryTemp, memoryFile)
	}
	if err == nil {
		var dir *os.File
		if dir, err = n.root.Open("."); err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("keep network changes: %w", err)
	}
	return nil
}

// recover undoes a trial that a process before this one left open: nobody
// knows whether the machine could still be reached. The change may be tried
// again, which ends by itself if it cuts the machine off.
func (n *Network) recover() error {
	t := n.memory.Trial
	if t == nil {
		return nil
	}
	n.logger.Warn("taking back a network change that was never confirmed", "bridge", t.Bridge)
	if err := n.undo(t.Undo); err != nil {
		return err
	}
	n.memory.Trial = nil
	return n.save()
}

// Settle implements plugins.Network.
func (n *Network) Settle(ctx context.Context, keep bool) error {
	if err := ctx.Err(); err != nil && keep {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.memory.Trial
	if t == nil {
		return nil
	}
	if keep {
		n.memory.Proven[t.Bridge] = t.Digest
		delete(n.memory.Reverted, t.Bridge)
		for _, u := range t.Undo {
			if u.Kind == undoVLAN && !slices.Contains(n.memory.Carried[t.Bridge], u) {
				n.memory.Carried[t.Bridge] = append(n.memory.Carried[t.Bridge], u)
			}
		}
		n.logger.Info("network change confirmed", "bridge", t.Bridge)
	} else {
		n.logger.Error("network change taken back: it cut this node off", "bridge", t.Bridge)
		if err := errors.Join(n.stopServer(t.Bridge), n.undo(t.Undo)); err != nil {
			return err
		}
		n.memory.Reverted[t.Bridge] = t.Revision
		delete(n.memory.Proven, t.Bridge)
	}
	n.memory.Trial = nil
	return n.save()
}

// undo brings back how things were, the last change first. What is gone
// already, as after a reboot, is no error; the rest is done whatever fails.
func (n *Network) undo(list []undo) error {
	var all error
	for _, u := range slices.Backward(list) {
		if err := n.undoOne(u); err != nil {
			all = errors.Join(all, fmt.Errorf("take back %s of %s: %w", u.Kind, u.Device, err))
		}
	}
	return all
}

func (n *Network) undoOne(u undo) error {
	if u.Kind == undoSetting {
		return n.within(func() error { return writeSetting(u.Device, u.Value) })
	}
	link, err := n.find(u.Device)
	if err != nil || link == nil {
		return err
	}
	switch u.Kind {
	case undoLink:
		if link.Attrs().Alias != n.alias && link.Attrs().Alias != "" {
			return nil // somebody else's by now
		}
		return n.handle.LinkDel(link)
	case undoDown:
		return n.handle.LinkSetDown(link)
	case undoAddress:
		address, err := netlink.ParseAddr(u.Value)
		if err != nil {
			return err
		}
		return absent(n.handle.AddrDel(link, address))
	case undoVLAN:
		return absent(n.handle.BridgeVlanDel(link, u.VLAN, false, false, u.Self, !u.Self))
	}
	return api.Errorf(api.CodeInternal, "unknown kind of change %q", u.Kind)
}
