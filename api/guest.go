package api

import "time"

// What may be asked of a guest's agent, as it is written into Instance.GuestCall.
const (
	GuestPassword = "set-password"
	GuestFreeze   = "freeze"
	GuestThaw     = "thaw"
	GuestTime     = "set-time"
)

// Limits of what is asked of a guest's agent.
const (
	GuestPasswordMax    = 256
	GuestAccountMax     = 64
	GuestFilesystemsMax = 64
	GuestFreezeDefault  = 30 * time.Second // until the file systems thaw by themselves
	GuestFreezeMax      = 10 * time.Minute
)

// GuestCall is something that somebody asked of the guest's agent. It is
// written before it is done, and never says what was set.
type GuestCall struct {
	Call    string    `json:"call"`             // set-password, freeze, thaw, set-time
	Account string    `json:"account,omitzero"` // of the guest, with set-password
	By      string    `json:"by,omitzero"`
	At      time.Time `json:"at"`
}

// GuestInfo is what a guest's agent says of its guest. The guest may say
// anything: texts are cut and cleaned, and nothing is decided by them.
type GuestInfo struct {
	AgentVersion string            `json:"agent_version,omitzero"`
	Hostname     string            `json:"hostname,omitzero"`
	OS           string            `json:"os,omitzero"` // "Debian GNU/Linux 12 (bookworm)"
	Kernel       string            `json:"kernel,omitzero"`
	Frozen       bool              `json:"frozen,omitzero"` // its file systems are
	Time         time.Time         `json:"time,omitzero"`   // of its clock
	Addresses    []string          `json:"addresses,omitzero"`
	Filesystems  []GuestFilesystem `json:"filesystems,omitzero"`
}

// GuestFilesystem is a file system that is mounted in a guest.
type GuestFilesystem struct {
	Mount      string `json:"mount"`
	Device     string `json:"device,omitzero"`
	Type       string `json:"type,omitzero"`
	TotalBytes int64  `json:"total_bytes,omitzero"`
	UsedBytes  int64  `json:"used_bytes,omitzero"`
}

// GuestPasswordSet asks for another password of an account of the guest.
type GuestPasswordSet struct {
	Account  string `json:"account"`
	Password string `json:"password"`
}

// Validate refuses what no agent would be asked. It never repeats the password.
func (s *GuestPasswordSet) Validate() error {
	var p problems
	if s.Account == "" || len(s.Account) > GuestAccountMax {
		p.add("account", "has %d bytes", len(s.Account)).Allow("1 to %d", GuestAccountMax)
	}
	for _, r := range s.Account {
		if r <= ' ' || r == ':' || r > '~' {
			p.add("account", "has the character %U", r).Allow("printable ASCII without space and ':'")
			break
		}
	}
	if s.Password == "" || len(s.Password) > GuestPasswordMax {
		p.add("password", "has %d bytes", len(s.Password)).Allow("1 to %d", GuestPasswordMax)
	}
	for _, r := range s.Password {
		if !showable(r) {
			p.add("password", "has a character that cannot be typed").Allow("printable text in UTF-8")
			break
		}
	}
	return p.err()
}

// GuestFreezing is the answer to a freeze or thaw.
type GuestFreezing struct {
	Filesystems int           `json:"filesystems"`       // that were frozen or thawed
	Limit       time.Duration `json:"limit_ns,omitzero"` // after which they thaw by themselves
}

// GuestRequest is one call of a guest's agent.
type GuestRequest struct {
	Call     string            `json:"call,omitzero"`     // as in GuestCall; empty: only tell about the guest
	Limit    time.Duration     `json:"limit_ns,omitzero"` // of a freeze
	Password *GuestPasswordSet `json:"password,omitzero"`
}

// GuestAnswer is what came of it.
type GuestAnswer struct {
	Info     *GuestInfo     `json:"info,omitzero"`
	Freezing *GuestFreezing `json:"freezing,omitzero"`
}
