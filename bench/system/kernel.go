package system

import (
	"context"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// openUnderlay is no overlay: host to host.
func openUnderlay(_ context.Context, name string, _ *Config) (*System, error) {
	s, err := newHosts(name)
	if err != nil {
		return s, err
	}
	s.A, s.B = End{s.Hosts[0].Namespace, s.Hosts[0].Addr4()}, End{s.Hosts[1].Namespace, s.Hosts[1].Addr4()}
	s.MTU, s.Detail = 1500, "host to host, without containers"
	return s, nil
}

// openByHand is a VXLAN of the kernel, as a person makes it with ip and bridge.
func openByHand(_ context.Context, name string, _ *Config) (*System, error) {
	s, err := newHosts("byhand")
	if err != nil {
		return s, err
	}
	s.Name, s.Detail = name, "a VXLAN device on each host, with FDB, neighbour and route by hand"
	for i := range s.Hosts {
		if err := s.attach(i, subnets(i), 1450); err != nil {
			return s, err
		}
	}
	return s, lab.KernelVXLAN(s.Hosts, lab.VXLANConfig{MTU: s.MTU})
}
