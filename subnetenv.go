package overlayd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
)

// SubnetEnv is what subnet.env tells a container runtime about this host.
type SubnetEnv struct {
	// Networks are the overlay networks, at most one per family.
	Networks []netip.Prefix
	// Subnets are the subnets that the node holds, at most one per family.
	Subnets []netip.Prefix
	// MTU is the inner MTU in bytes, which containers need too.
	MTU int
	// IPMasq tells that overlayd itself hides containers behind the host's
	// address when they leave the overlay, so that the runtime must not.
	IPMasq bool
}

// WriteSubnetEnv writes e to path in the form that flannel writes and that
// scripts of its users read with sh (flannel pkg/subnet, WriteSubnetFile):
//
//	FLANNEL_NETWORK=100.96.0.0/16
//	FLANNEL_SUBNET=100.96.1.1/24
//	FLANNEL_IPV6_NETWORK=fd96::/48
//	FLANNEL_IPV6_SUBNET=fd96:0:0:1::1/64
//	FLANNEL_MTU=1472
//	FLANNEL_IPMASQ=false
//
// A subnet is given by the address of the host's bridge in it, the one after
// the first, which is the node's own. A family without a subnet is left out.
// The file (mode 0644) appears whole or not at all, also over a crash; its
// directory is made if it does not exist.
func WriteSubnetEnv(path string, e SubnetEnv) error {
	if err := writeFileAtomic(path, e.encode()); err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	return nil
}

// RemoveSubnetEnv removes the file that WriteSubnetEnv wrote. It is no error if
// there is none.
func RemoveSubnetEnv(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("subnet file: %w", err)
	}
	return nil
}

func (e SubnetEnv) encode() []byte {
	var b bytes.Buffer
	for _, family := range []struct {
		is4 bool
		key string
	}{{true, "FLANNEL_"}, {false, "FLANNEL_IPV6_"}} {
		for _, subnet := range e.Subnets {
			if subnet.Addr().Is4() != family.is4 {
				continue
			}
			for _, network := range e.Networks {
				if network.Addr().Is4() == family.is4 {
					fmt.Fprintf(&b, "%sNETWORK=%s\n", family.key, network)
				}
			}
			bridge := netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
			fmt.Fprintf(&b, "%sSUBNET=%s\n", family.key, bridge)
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\n", e.MTU)
	fmt.Fprintf(&b, "FLANNEL_IPMASQ=%t\n", e.IPMasq)
	return b.Bytes()
}

// writeFileAtomic replaces path by a file with mode 0644 through a temporary
// one beside it, so that a reader sees the old content or the new.
func writeFileAtomic(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	// CreateTemp makes 0600, and the umask must not narrow what is wanted.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// The rename is on disk only when its directory is.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
