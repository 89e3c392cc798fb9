package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
)

// filePlace is the file of the data directory that keeps what init, join or
// restore were told, so that the agent need not be told again.
const filePlace = "place.json"

const listenDefault = "0.0.0.0:" + cluster.DefaultPort

// keptPlace is where a node was made to live.
type keptPlace struct {
	Listen    string `json:"listen"`
	Advertise string `json:"advertise"`
	Witness   bool   `json:"witness,omitzero"`
}

// keep writes the place into the data directory.
func (p *placeFlags) keep() error {
	raw, err := json.MarshalIndent(keptPlace{p.listen, p.advertise, p.witness}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode place: %w", err)
	}
	return writeSecret(filepath.Join(p.dataDir, filePlace), string(raw))
}

// settlePlace fills in what neither the configuration nor a flag says, from
// what the node was made with.
func (c *nodeConfig) settlePlace() error {
	name := filepath.Join(c.DataDir, filePlace)
	var made keptPlace
	raw, err := os.ReadFile(name)
	switch {
	case absent(err):
	case err != nil:
		return fmt.Errorf("read place: %w", err)
	default:
		if err := json.Unmarshal(raw, &made); err != nil {
			return api.Errorf(api.CodeUnavailable, "%s is damaged: %v", name, err).Do("delete it, and give --listen and --advertise")
		}
	}
	moved := c.Listen != "" && c.Listen != made.Listen
	c.Listen = cmp.Or(c.Listen, made.Listen, listenDefault)
	c.Witness = c.Witness || made.Witness
	if c.Advertise != "" {
		return nil
	}
	c.Advertise = made.Advertise
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || !moved {
		return nil
	}
	// It listens elsewhere than it was made to: others follow the port, and the
	// address where one is named.
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host, _, err = net.SplitHostPort(made.Advertise)
		if err != nil {
			return api.Invalid("advertise", "is missing").Allow("host:port where other nodes reach this one")
		}
	}
	c.Advertise = net.JoinHostPort(host, port)
	return nil
}
