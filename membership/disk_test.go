package membership

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func openTestDisk(t testing.TB, dir string) *disk {
	t.Helper()
	d, err := openDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.close() })
	return d
}

// files lists a directory, without the lock.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != lockFile {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestDiskWriteIsAtomic(t *testing.T) {
	d := openTestDisk(t, t.TempDir())
	if err := d.write("f.json", "first"); err != nil {
		t.Fatal(err)
	}
	// Who has the file open keeps reading the old content: it was replaced, not
	// written over.
	old, err := os.Open(filepath.Join(d.dir, "f.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := d.write("f.json", "second"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, _ := old.Read(b)
	if got := string(b[:n]); got != "\"first\"\n" {
		t.Errorf("the old file now reads %q", got)
	}
	var got string
	if found, err := d.read("f.json", &got); !found || err != nil || got != "second" {
		t.Errorf("read %q, %v, %v", got, found, err)
	}
	if names := files(t, d.dir); !slices.Equal(names, []string{"f.json"}) {
		t.Errorf("left in the directory: %v", names)
	}
	if fi, err := os.Stat(filepath.Join(d.dir, "f.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// TestDiskWriteFails: the old file stays, no temporary one does.
func TestDiskWriteFails(t *testing.T) {
	d := openTestDisk(t, t.TempDir())
	if err := d.write("f.json", func() {}); err == nil {
		t.Error("a function was written")
	}
	// A directory in the file's place cannot be renamed over.
	if err := os.Mkdir(filepath.Join(d.dir, "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.write("dir.json", 1); err == nil || !strings.Contains(err.Error(), "dir.json") {
		t.Errorf("error %v", err)
	}
	if names := files(t, d.dir); !slices.Equal(names, []string{"dir.json"}) {
		t.Errorf("left in the directory: %v", names)
	}
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	if err := d.write("f.json", 1); err == nil {
		t.Error("written into a directory that is gone")
	}
}

func TestDiskIdentity(t *testing.T) {
	d := openTestDisk(t, t.TempDir())
	at := func(now time.Time) nodeState {
		t.Helper()
		n, err := d.identity(now)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := at(simEpoch)
	if first.ID.IsZero() || first.Boot != uint64(simEpoch.Unix()) {
		t.Fatalf("%+v", first)
	}
	last := first
	for _, now := range []time.Time{
		simEpoch,                      // twice in one second
		simEpoch.Add(-48 * time.Hour), // set back
		time.Unix(0, 0), time.Unix(-1e9, 0), {},
		simEpoch.Add(time.Minute), // and right again
		time.Unix(1, 0),
	} {
		n := at(now)
		if n.ID != first.ID || n.Boot <= last.Boot {
			t.Errorf("at %v: %+v after %+v", now, n, last)
		}
		last = n
	}
	if last.Boot != uint64(simEpoch.Add(time.Minute).Unix())+1 {
		t.Errorf("boot %d", last.Boot)
	}
	// The first boot ever of a machine without a clock.
	fresh := openTestDisk(t, t.TempDir())
	for i, now := range []time.Time{time.Unix(-1e9, 0), time.Unix(0, 0), {}} {
		n, err := fresh.identity(now)
		if err != nil || n.Boot != uint64(i+1) {
			t.Errorf("boot %d, want %d: %v", n.Boot, i+1, err)
		}
		if _, boot, err := parseGossipName(gossipName(n.ID, n.Boot)); err != nil || boot != n.Boot {
			t.Errorf("its gossip name: %v", err)
		}
	}
}

func TestDiskIdentityRefused(t *testing.T) {
	for name, content := range map[string]string{
		"no id":          `{"boot":1}`,
		"zero id":        `{"id":"00000000000000000000000000000000","boot":1}`,
		"short id":       `{"id":"0001","boot":1}`,
		"boot too large": `{"id":"000102030405060708090a0b0c0d0e0f","boot":4611686018427387905}`,
		"largest boot":   `{"id":"000102030405060708090a0b0c0d0e0f","boot":4611686018427387904}`,
		"negative boot":  `{"id":"000102030405060708090a0b0c0d0e0f","boot":-1}`,
		"a list":         `[]`,
	} {
		t.Run(name, func(t *testing.T) {
			d := openTestDisk(t, t.TempDir())
			path := filepath.Join(d.dir, nodeFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if n, err := d.identity(simEpoch); !errors.Is(err, ErrStateCorrupt) || !strings.Contains(err.Error(), path) {
				t.Errorf("%+v, %v", n, err)
			}
			if b, _ := os.ReadFile(path); string(b) != content {
				t.Error("the file was changed")
			}
		})
	}
}

func TestDiskLeaseRoundTrip(t *testing.T) {
	dir := t.TempDir()
	d := openTestDisk(t, dir)
	if _, _, found, _, err := d.lease(goldenOwner); found || err != nil {
		t.Errorf("a lease in an empty directory: %v", err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		want := testSettings("100.96.0.0/16", "fd96::/48")
		want.LeaseTime = time.Duration(rapid.Int64Range(1, 1e6).Draw(rt, "seconds")) * time.Second
		var claims []Claim
		for _, c := range rapid.SliceOfN(genClaim(), 0, 2).Draw(rt, "claims") {
			c.Owner, c.State, c.Static = goldenOwner, Held, true
			c.Stamp = Stamp(rapid.Uint64Min(1).Draw(rt, "stamp"))
			c.Version = rapid.Uint64Range(1, maxCounter).Draw(rt, "version")
			claims = append(claims, c)
		}
		if err := d.saveLease(goldenOwner, want, claims); err != nil {
			rt.Fatal(err)
		}
		s, got, found, _, err := d.lease(goldenOwner)
		if err != nil || !found || !s.Equal(want) {
			rt.Fatalf("%v %v %v", s, found, err)
		}
		if diff := cmp.Diff(claims, got, cmpRecords); diff != "" {
			rt.Fatal(diff)
		}
	})
	if err := d.removeLease(); err != nil {
		t.Error(err)
	}
	if err := d.removeLease(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if names := files(t, dir); len(names) != 0 {
		t.Errorf("left in the directory: %v", names)
	}
}

func TestDiskLeaseRefused(t *testing.T) {
	const settings = `"owner":"000102030405060708090a0b0c0d0e0f","settings":{"networks":["100.96.0.0/16"],"subnet_lens":[24],"lease_time":"24h0m0s"}`
	for name, content := range map[string]string{
		"no settings":          `{"owner":"000102030405060708090a0b0c0d0e0f","claims":[]}`,
		"another node's":       `{"owner":"ff0102030405060708090a0b0c0d0e0f",` + settings[43:] + `,"claims":[]}`,
		"nobody's":             `{` + settings[43:] + `,"claims":[]}`,
		"lease time":           `{"owner":"000102030405060708090a0b0c0d0e0f","settings":{"networks":["100.96.0.0/16"],"subnet_lens":[24],"lease_time":"soon"}}`,
		"outside the network":  `{` + settings + `,"claims":[{"prefix":"100.97.1.0/24","version":1,"gen":1,"stamp":1,"expiry":9}]}`,
		"host bits":            `{` + settings + `,"claims":[{"prefix":"100.96.1.1/24","version":1,"gen":1,"stamp":1,"expiry":9}]}`,
		"no stamp":             `{` + settings + `,"claims":[{"prefix":"100.96.1.0/24","version":1,"gen":1,"expiry":9}]}`,
		"version 0":            `{` + settings + `,"claims":[{"prefix":"100.96.1.0/24","gen":1,"stamp":1,"expiry":9}]}`,
		"another length":       `{` + settings + `,"claims":[{"prefix":"100.96.1.0/25","version":1,"gen":1,"stamp":1,"expiry":9}]}`,
		"version over a limit": `{` + settings + `,"claims":[{"prefix":"100.96.1.0/24","version":4611686018427387905,"gen":1,"stamp":1,"expiry":9}]}`,
		"no expiry":            `{` + settings + `,"claims":[{"prefix":"100.96.1.0/24","version":1,"gen":1,"stamp":1}]}`,
		"no prefix":            `{` + settings + `,"claims":[{"version":1,"gen":1,"stamp":1,"expiry":9}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			d := openTestDisk(t, t.TempDir())
			path := filepath.Join(d.dir, leaseFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{path + ".corrupt", path + ".corrupt2"} {
				_, claims, found, aside, err := d.lease(goldenOwner)
				if err != nil || found || claims != nil || aside != want {
					t.Fatalf("try %d: %v, %v, moved to %q: %v", i, claims, found, aside, err)
				}
				if b, _ := os.ReadFile(aside); string(b) != content {
					t.Errorf("aside lies %q", b)
				}
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("it is still there: %v", err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil { // and again
					t.Fatal(err)
				}
			}
		})
	}
}

func TestDiskPeers(t *testing.T) {
	d := openTestDisk(t, t.TempDir())
	if peers, aside, err := d.peers(); len(peers) != 0 || aside != "" || err != nil {
		t.Errorf("%v %q %v", peers, aside, err)
	}
	want := []rememberedPeer{
		{testID(1), "alpha", netip.MustParseAddrPort("192.0.2.1:7946")},
		{testID(2), "beta", netip.MustParseAddrPort("[2001:db8::2]:7946")},
	}
	useless := []rememberedPeer{
		{testID(3), "no port", netip.MustParseAddrPort("192.0.2.1:0")},
		{testID(4), "multicast", netip.MustParseAddrPort("224.0.0.1:7946")},
		{testID(5), "nowhere", netip.MustParseAddrPort("[::]:7946")},
	}
	if err := d.savePeers(slices.Concat(useless[:1], want[:1], useless[1:], want[1:])); err != nil {
		t.Fatal(err)
	}
	if got, aside, err := d.peers(); err != nil || aside != "" || !slices.Equal(got, want) {
		t.Errorf("%v %q %v", got, aside, err)
	}
	path := filepath.Join(d.dir, peersFile)
	for i, corrupt := range []string{"", "{", "[1]", `[{"id":"00000000000000000000000000000000"}]`} {
		if err := os.WriteFile(path, []byte(corrupt), 0o600); err != nil {
			t.Fatal(err)
		}
		got, aside, err := d.peers()
		if want := path + []string{".corrupt", ".corrupt2", ".corrupt3", ".corrupt4"}[i]; len(got) != 0 || err != nil || aside != want {
			t.Errorf("%s: %v %q %v", corrupt, got, aside, err)
		}
		if b, _ := os.ReadFile(aside); string(b) != corrupt {
			t.Errorf("kept aside: %q", b)
		}
		if got, aside, err := d.peers(); len(got) != 0 || aside != "" || err != nil {
			t.Errorf("afterwards: %v %q %v", got, aside, err)
		}
	}
}

func TestDiskLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // made as needed
	d := openTestDisk(t, dir)
	if _, err := openDisk(dir); !errors.Is(err, ErrStateBusy) || !strings.Contains(fmt.Sprint(err), dir) {
		t.Errorf("opened twice: %v", err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	again := openTestDisk(t, dir)
	if err := again.close(); err != nil {
		t.Error(err)
	}
}

// TestLeaseNotWritten: that a lease would be lost is told, and told to be over once it is
// written.
func TestLeaseNotWritten(t *testing.T) {
	m := benchMember(t, 0)
	var events []Event
	m.cfg.OnEvent = func(e Event) { events = append(events, e) }
	dir := t.TempDir()
	for i, write := range []string{dir, filepath.Join(dir, "gone"), filepath.Join(dir, "gone"), dir, dir} {
		m.disk = &disk{dir: write}
		if err := m.do(effect{kind: effectPersist}); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if len(events) != 3 || !strings.Contains(events[0].Reason, "will be lost") || events[1].Reason == "" || events[2] != (Event{Kind: Warning, About: AboutDisk}) {
		t.Errorf("%+v", events)
	}
}
