package membership

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Errors about the state directory.
var (
	// ErrStateBusy: another process uses the state directory.
	ErrStateBusy = errors.New("state directory in use")
	// ErrStateCorrupt: a file in it cannot be understood.
	ErrStateCorrupt = errors.New("state file corrupt")
)

// The files in a state directory. node.json is who this node is; a new identity
// would leave the old one's subnet behind, so that a person has to decide when it
// is broken. lease.json and peers.json can be had again from the other nodes.
const (
	lockFile  = "lock"
	nodeFile  = "node.json"
	leaseFile = "lease.json"
	peersFile = "peers.json"
)

// disk is an open, locked state directory.
type disk struct {
	dir  string
	lock *os.File
}

type nodeState struct {
	ID   NodeID `json:"id"`
	Boot uint64 `json:"boot"`
}

// leaseState is what a restart needs: the settings of the cluster that the
// node was part of and the claims it held.
type leaseState struct {
	Owner    NodeID       `json:"owner"`
	Settings settingsJSON `json:"settings"`
	Claims   []claimJSON  `json:"claims"`
}

type settingsJSON struct {
	Networks   []netip.Prefix `json:"networks"`
	SubnetLens []int          `json:"subnet_lens"`
	LeaseTime  string         `json:"lease_time"`
}

type claimJSON struct {
	Prefix  netip.Prefix `json:"prefix"`
	Version uint64       `json:"version"`
	Static  bool         `json:"static"`
	Solo    bool         `json:"solo"`
	Gen     uint64       `json:"gen"`
	Stamp   uint64       `json:"stamp"`
	Expiry  uint64       `json:"expiry"`
}

// rememberedPeer is where a peer was last met.
type rememberedPeer struct {
	ID     NodeID         `json:"id"`
	Name   string         `json:"name"`
	Gossip netip.AddrPort `json:"gossip"`
}

// openDisk makes the directory if needed and locks it.
func openDisk(dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w: choose a writable one with --state-dir", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w: choose a writable one with --state-dir", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another overlayd runs on %s: stop it, or choose another --state-dir", ErrStateBusy, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &disk{dir: dir, lock: f}, nil
}

// close gives the lock up.
func (d *disk) close() error { return d.lock.Close() }

// identity returns the node's id and a boot number above all earlier ones,
// which it writes down first.
func (d *disk) identity(now time.Time) (nodeState, error) {
	var n nodeState
	found, err := d.read(nodeFile, &n)
	if err != nil {
		return n, err
	}
	if !found {
		n.ID = NewNodeID()
	} else if n.ID.IsZero() || n.Boot >= maxCounter { // the next one has to be possible
		return n, d.corrupt(nodeFile, errors.New("id or boot is missing or out of range"))
	}
	n.Boot = max(n.Boot+1, uint64(max(now.Unix(), 1)))
	return n, d.write(nodeFile, n)
}

// newIdentity gives this machine another identity: without a lease, and with
// these peers to begin with. The identity goes last: without it the rest is done
// again.
func (d *disk) newIdentity(peers []rememberedPeer, now time.Time) error {
	if err := d.removeLease(); err != nil {
		return err
	}
	if err := d.savePeers(peers); err != nil {
		return err
	}
	return d.write(nodeFile, nodeState{NewNodeID(), uint64(max(now.Unix(), 1))})
}

// lease returns the settings and claims of the last run; found is false if
// there was none. A file that cannot be read is moved aside, which aside names:
// the other nodes remember what it said.
func (d *disk) lease(owner NodeID) (s Settings, claims []Claim, found bool, aside string, err error) {
	s, claims, found, err = d.readLease(owner)
	if errors.Is(err, ErrStateCorrupt) {
		aside, err = d.moveAside(leaseFile)
		return Settings{}, nil, false, aside, err
	}
	return s, claims, found, "", err
}

func (d *disk) readLease(owner NodeID) (s Settings, claims []Claim, found bool, err error) {
	var l leaseState
	if found, err = d.read(leaseFile, &l); err != nil || !found {
		return s, nil, false, err
	}
	if l.Owner != owner {
		return s, nil, false, d.corrupt(leaseFile, fmt.Errorf("it is the lease of node %v, and this is %v", l.Owner, owner))
	}
	s = Settings{Networks: l.Settings.Networks, SubnetLens: l.Settings.SubnetLens}
	if s.LeaseTime, err = time.ParseDuration(l.Settings.LeaseTime); err == nil {
		err = s.Check()
	}
	if err != nil {
		return s, nil, false, d.corrupt(leaseFile, err)
	}
	for _, c := range l.Claims {
		claim := Claim{
			Key: Key{c.Prefix, owner}, Version: c.Version, State: Held, Static: c.Static, Solo: c.Solo,
			Gen: c.Gen, Stamp: Stamp(c.Stamp), Expiry: c.Expiry,
		}
		if claim.check() != nil || !s.admits(claim) || c.Prefix.Masked() != c.Prefix {
			return s, nil, false, d.corrupt(leaseFile, fmt.Errorf("the claim on %v is not valid", c.Prefix))
		}
		claims = append(claims, claim)
	}
	return s, claims, true, nil
}

func (d *disk) saveLease(owner NodeID, s Settings, claims []Claim) error {
	l := leaseState{Owner: owner, Settings: settingsJSON{s.Networks, s.SubnetLens, s.LeaseTime.String()}, Claims: []claimJSON{}}
	for _, c := range claims {
		l.Claims = append(l.Claims, claimJSON{c.Prefix, c.Version, c.Static, c.Solo, c.Gen, uint64(c.Stamp), c.Expiry})
	}
	return d.write(leaseFile, l)
}

// moveAside renames a file that cannot be understood, so that it is not
// overwritten.
func (d *disk) moveAside(name string) (aside string, err error) {
	path := filepath.Join(d.dir, name)
	for i := 1; ; i++ {
		aside = path + ".corrupt"
		if i > 1 {
			aside += strconv.Itoa(i)
		}
		// Link fails if the name is taken, by an earlier one.
		err := os.Link(path, aside)
		if err == nil {
			return aside, os.Remove(path)
		}
		if !errors.Is(err, fs.ErrExist) || i > 1000 {
			return "", fmt.Errorf("state directory: %w", err)
		}
	}
}

func (d *disk) removeLease() error {
	err := os.Remove(filepath.Join(d.dir, leaseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// peers returns the remembered peers. A file that cannot be read is moved
// aside, which aside names: peers can be found again.
func (d *disk) peers() (peers []rememberedPeer, aside string, err error) {
	found, err := d.read(peersFile, &peers)
	if errors.Is(err, ErrStateCorrupt) {
		aside, err = d.moveAside(peersFile)
		return nil, aside, err
	}
	if err != nil || !found {
		return nil, "", err
	}
	valid := peers[:0]
	for _, p := range peers {
		if !p.ID.IsZero() && p.Gossip.IsValid() && p.Gossip.Port() != 0 && usableEndpoint(p.Gossip.Addr()) {
			valid = append(valid, p)
		}
	}
	return valid, "", nil
}

func (d *disk) savePeers(peers []rememberedPeer) error { return d.write(peersFile, peers) }

func (d *disk) corrupt(name string, err error) error {
	return fmt.Errorf("%w: %s: %v: restore it from a backup, or move it away to start anew", ErrStateCorrupt, filepath.Join(d.dir, name), err)
}

func (d *disk) read(name string, into any) (found bool, err error) {
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("state directory: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(into); err != nil {
		return false, d.corrupt(name, err)
	}
	return true, nil
}

// write replaces a file atomically and waits until it is on disk.
func (d *disk) write(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	f, err := os.CreateTemp(d.dir, name+".tmp*")
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer os.Remove(f.Name()) // fails, as it should, once it is renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.dir, name))
	}
	if err != nil {
		return fmt.Errorf("state directory: write %s: %w", name, err)
	}
	parent, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("state directory: sync: %w", err)
	}
	return nil
}
