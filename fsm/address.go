package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"

	"github.com/debvisor/debvisor/api"
)

// addressTries bounds the search for an address that nobody has. A subnet of
// up to 4,096 addresses is given out to the last one; in a larger one the
// search fails when it is nearly full.
const addressTries = 4096

// settleAddresses checks the addresses of the interfaces, and chooses those
// that the network has a subnet for and nobody named. The choice follows from
// the VM's ID, so that it is the same wherever the VM runs.
func settleAddresses(tx *Tx, before, vm *api.VM, nics []api.NIC) *api.Error {
	taken := map[string]bool{} // by interfaces of this VM
	for i := range nics {
		network := Networks.Get(tx, api.Key(vm.Tenant, nics[i].Network))
		if network == nil {
			continue // refused already
		}
		var had []string
		if before != nil && i < len(before.NICs) && before.NICs[i].Network == nics[i].Network {
			had = before.NICs[i].Addresses
		}
		s := addressing{tx: tx, vm: vm, network: network, position: i, had: had, taken: taken}
		settled, err := s.settle(nics[i].Addresses)
		if err != nil {
			err.Field = fmt.Sprintf("nics[%d].addresses", i)
			return err
		}
		nics[i].Addresses = settled
	}
	return nil
}

// addressing is the search for the addresses of one interface.
type addressing struct {
	tx       *Tx
	vm       *api.VM
	network  *api.Network
	position int
	had      []string
	taken    map[string]bool
}

// settle returns at most one address of each kind, IPv4 first.
func (s *addressing) settle(given []string) ([]string, *api.Error) {
	var out []string
	for _, four := range []bool{true, false} {
		text := ofKind(given, four)
		if text != "" {
			if err := checkAddress(s.network, text); err != nil {
				return nil, err
			}
			if other := s.holder(text); other != "" {
				return nil, api.Errorf(api.CodeConflict, "%s is used by %s", text, other).Do("choose another address, or leave it out to have one chosen")
			}
		} else {
			for _, subnet := range s.network.Prefixes() {
				if subnet.Addr().Is4() == four {
					if text = s.choose(subnet); text == "" {
						return nil, api.Errorf(api.CodeLimit, "no address of %s is free on network %s", subnet, s.network.Name).
							Do("widen the network's ranges, or make another network")
					}
				}
			}
		}
		if text != "" {
			s.taken[s.key(text)] = true
			out = append(out, text)
		}
	}
	return out, nil
}

// ofKind is the first IPv4 or IPv6 address of a list, or "".
func ofKind(list []string, four bool) string {
	for _, text := range list {
		if ip, err := netip.ParseAddr(text); err == nil && ip.Is4() == four {
			return text
		}
	}
	return ""
}

func (s *addressing) key(text string) string { return addressKey(s.vm.Tenant, s.network.Name, text) }

// holder names who has the address: another VM, or another interface of this
// one.
func (s *addressing) holder(text string) string {
	if s.taken[s.key(text)] {
		return "another interface of this VM"
	}
	for other := range VMs.By(s.tx, "address", s.key(text)) {
		if other.ID != s.vm.ID {
			return "vm " + other.Name
		}
	}
	return ""
}

// choose is the address that the interface had, or the first free one from a
// point that follows from the VM's ID.
func (s *addressing) choose(subnet netip.Prefix) string {
	if had := ofKind(s.had, subnet.Addr().Is4()); had != "" && checkAddress(s.network, had) == nil && s.holder(had) == "" {
		return had
	}
	spans := s.network.Spans(subnet)
	total := uint64(0)
	for _, span := range spans {
		total = sumTo(total, sizeOf(span))
	}
	if total == 0 {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%s", s.vm.ID, s.position, subnet))
	start := binary.BigEndian.Uint64(sum[:8]) % total
	for try := range min(total, addressTries) {
		offset := start + try
		if offset >= total || offset < start {
			offset -= total
		}
		text := nth(spans, offset).String()
		if checkAddress(s.network, text) == nil && s.holder(text) == "" {
			return text
		}
	}
	return ""
}

// sizeOf is how many addresses a span holds, at most 2^64-1. Both ends lie in
// one /64 or are IPv4.
func sizeOf(s api.Span) uint64 { return sumTo(low(s.Last)-low(s.First), 1) }

func sumTo(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// low is the last 64 bits of an address.
func low(ip netip.Addr) uint64 {
	raw := ip.As16()
	return binary.BigEndian.Uint64(raw[8:])
}

// nth is the address at a position in the spans, one after the other.
func nth(spans []api.Span, offset uint64) netip.Addr {
	for _, s := range spans {
		if size := sizeOf(s); offset >= size {
			offset -= size
			continue
		}
		raw := s.First.As16()
		binary.BigEndian.PutUint64(raw[8:], low(s.First)+offset)
		ip := netip.AddrFrom16(raw)
		if s.First.Is4() {
			ip = ip.Unmap()
		}
		return ip
	}
	return netip.Addr{}
}

func addressKey(tenant, network, text string) string { return api.Key(tenant, network) + "/" + text }

func addressesOf(v *api.VM) []string {
	var out []string
	for i := range v.NICs {
		for _, text := range v.NICs[i].Addresses {
			out = append(out, addressKey(v.Tenant, v.NICs[i].Network, text))
		}
	}
	return out
}
