package libvirt

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/kdomanski/iso9660"
	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/api"
)

// seedVolume is the label by which cloud-init finds a NoCloud seed.
const seedVolume = "CIDATA"

type metaData struct {
	InstanceID    string `yaml:"instance-id"`
	LocalHostname string `yaml:"local-hostname"`
}

type userData struct {
	Hostname   string      `yaml:"hostname"`
	Users      []seedUser  `yaml:"users,omitempty"`
	Packages   []string    `yaml:"packages,omitempty"`
	WriteFiles []seedWrite `yaml:"write_files,omitempty"`
	RunCmd     [][]string  `yaml:"runcmd,omitempty"`
}

type seedUser struct {
	Name       string   `yaml:"name"`
	Shell      string   `yaml:"shell"`
	SSHKeys    []string `yaml:"ssh_authorized_keys,omitempty"`
	Sudo       string   `yaml:"sudo,omitempty"`
	LockPasswd bool     `yaml:"lock_passwd"`
	Passwd     string   `yaml:"passwd,omitempty"`
}

type seedWrite struct {
	Path        string `yaml:"path"`
	Content     string `yaml:"content"`
	Permissions string `yaml:"permissions"`
}

// buildSeed renders a NoCloud seed (an ISO 9660 image with user-data, meta-data
// and, if given, network-config). instanceID is what makes cloud-init run
// again when it changes; vm names the guest where no host name is set. Every
// value goes through a YAML encoder, so none can add a key.
func buildSeed(seed *api.CloudInit, instanceID, vm string) ([]byte, error) {
	files, err := seedFiles(seed, instanceID, vm)
	if err != nil {
		return nil, err
	}
	w, err := iso9660.NewWriter()
	if err != nil {
		return nil, fmt.Errorf("build seed: %w", err)
	}
	defer func() { _ = w.Cleanup() }()
	for _, f := range files {
		if err := w.AddFile(bytes.NewReader(f.content), f.name); err != nil {
			return nil, fmt.Errorf("build seed: %w", err)
		}
	}
	var out bytes.Buffer
	if err := w.WriteTo(&out, seedVolume); err != nil {
		return nil, fmt.Errorf("build seed: %w", err)
	}
	return out.Bytes(), nil
}

type seedDocument struct {
	name    string
	content []byte
}

func seedFiles(seed *api.CloudInit, instanceID, vm string) ([]seedDocument, error) {
	hostname := seed.Hostname
	if hostname == "" {
		_, hostname, _ = strings.Cut(vm, ".") // TENANT.NAME
		if hostname == "" {
			hostname = vm
		}
	}
	user := userData{Hostname: hostname, Packages: seed.Packages, RunCmd: seed.Commands}
	for _, u := range seed.Users {
		item := seedUser{Name: u.Name, Shell: "/bin/bash", SSHKeys: u.SSHKeys, LockPasswd: u.PasswordHash == "", Passwd: u.PasswordHash}
		if u.Sudo {
			item.Sudo = "ALL=(ALL) NOPASSWD:ALL"
		}
		user.Users = append(user.Users, item)
	}
	for _, f := range seed.Files {
		mode := f.Mode
		if mode == "" {
			mode = "0644"
		}
		user.WriteFiles = append(user.WriteFiles, seedWrite{Path: f.Path, Content: f.Content, Permissions: mode})
	}
	userText, err := yaml.Marshal(user)
	if err != nil {
		return nil, fmt.Errorf("encode user-data: %w", err)
	}
	metaText, err := yaml.Marshal(metaData{InstanceID: instanceID, LocalHostname: hostname})
	if err != nil {
		return nil, fmt.Errorf("encode meta-data: %w", err)
	}
	out := []seedDocument{
		{"user-data", append([]byte("#cloud-config\n"), userText...)},
		{"meta-data", metaText},
	}
	if seed.Network != "" {
		network, err := networkConfig(seed.Network)
		if err != nil {
			return nil, err
		}
		out = append(out, seedDocument{"network-config", network})
	}
	return out, nil
}

// networkConfig reads the user's document and writes it anew, so that what the
// guest gets is one well-formed YAML document.
func networkConfig(text string) ([]byte, error) {
	var document map[string]any
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		return nil, api.Invalid("cloud_init.network", "is not YAML: %v", err).Allow("a cloud-init network-config document")
	}
	out, err := yaml.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encode network-config: %w", err)
	}
	return out, nil
}
