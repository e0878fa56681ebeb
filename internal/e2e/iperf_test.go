package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// needs skips a test where a program of others is missing, but not in CI, which
// installs it.
func needs(t *testing.T, program string) {
	t.Helper()
	_, err := exec.LookPath(program)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%v: .ci/run should have installed it", err)
	default:
		t.Skipf("%v: install it to run this test", err)
	}
}

// iperfReport is the part of what "iperf3 -J" prints that the tests look at.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Sent     iperfSum `json:"sum_sent"`
		Received iperfSum `json:"sum_received"`
	} `json:"end"`
}

type iperfSum struct {
	Bytes         int64   `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Retransmits   int     `json:"retransmits"` // TCP
	Packets       int     `json:"packets"`     // UDP
	Lost          int     `json:"lost_packets"`
}

// iperf runs iperf3 from one container to another, whose server has a port of its
// own.
func iperf(t *testing.T, from, to *lab.Container, dst netip.Addr, port int, args ...string) (r iperfReport, err error) {
	number := strconv.Itoa(port)
	server := exec.Command("iperf3", "-s", "-1", "-B", dst.String(), "-p", number, "--forceflush")
	p, err := to.Start(server, lab.StartOptions{Name: "iperf3-server-" + number})
	if err != nil {
		return r, err
	}
	defer p.Kill()
	labtest.Eventually(t, 10*time.Second, func() error { // it serves one client: no asking by a connection
		log, err := p.Tail(10)
		if err == nil && !strings.Contains(log, "Server listening") {
			err = errors.Join(errNotYet, p.Err())
		}
		return err
	})
	client := exec.Command("iperf3", append([]string{"-c", dst.String(), "-p", number, "-t", "1", "-J"}, args...)...)
	out, err := from.Output(within(t, 30*time.Second), client)
	if jsonErr := json.Unmarshal(out, &r); err != nil || jsonErr != nil || r.Error != "" {
		return r, fmt.Errorf("iperf3 %q: %w\n%s", args, errors.Join(err, jsonErr, errors.New(r.Error)), out)
	}
	select {
	case <-p.Done():
		return r, p.Err()
	case <-within(t, 10*time.Second).Done():
		return r, errors.New("the server of iperf3 does not end")
	}
}

// TestIperf runs iperf3 between containers, with the offloads on and off, IPv4
// and IPv6, TCP and UDP, with long and with short datagrams. None is lost but
// what a kernel has counted as dropped, since a busy machine did not run whoever
// reads its queue in time. The bytes are compared by TestOffloads and
// TestUnderlayCapture.
func TestIperf(t *testing.T) {
	needs(t, "iperf3")
	t.Parallel()
	_, _, nodes := cluster(t, 4)
	for i, offload := range []string{"on", "on", "off", "off"} {
		args := []string{"--offload", offload}
		if i > 0 {
			args = append(args, "--join", nodes[0].Addr4().String())
		}
		nodes[i].start(t, args...)
	}
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	port := 5201
	for _, pair := range [][]*node{nodes[:2], nodes[2:]} {
		a, b := pair[0], pair[1]
		for _, dst := range b.container.Addrs() {
			what := fmt.Sprintf("%s to %s at %v", a, b, dst)
			r, err := iperf(t, a.container, b.container, dst, port)
			port++
			if err != nil || r.End.Received.Bytes <= 0 {
				t.Errorf("%s: TCP: %d bytes, %v", what, r.End.Received.Bytes, err)
			}
			t.Logf("%s: TCP: %.2f Gb/s, %d retransmits", what, r.End.Received.BitsPerSecond/1e9, r.End.Sent.Retransmits)
			for _, length := range []string{"1200", "64"} {
				before := queueDrops(t, a, b)
				r, err := iperf(t, a.container, b.container, dst, port, "-u", "-b", "20M", "-l", length)
				port++
				dropped := queueDrops(t, a, b) - before
				got := r.End.Received
				if err != nil || got.Bytes <= 0 || got.Lost > dropped {
					t.Errorf("%s: UDP, %s bytes: %+v, and %d dropped by kernels, %v", what, length, r.End, dropped, err)
				}
				t.Logf("%s: UDP, %s bytes: %.2f Mb/s, %d of %d lost, %d dropped by kernels", what, length, got.BitsPerSecond/1e6, got.Lost, got.Packets, dropped)
			}
		}
	}
	checkDrops(t, nodes...)
}

// queueDrops is how many packets the kernel has dropped on nodes and in their
// containers: in front of an interface, or of a UDP socket (proc_net(5)).
func queueDrops(t *testing.T, nodes ...*node) (sum int) {
	t.Helper()
	add := func(text string) error {
		n, err := strconv.Atoi(text)
		sum += n
		return err
	}
	read := func() error {
		var errs []error
		for _, name := range []string{"snmp", "snmp6", "dev"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + name)
			errs = append(errs, err)
			column := -1 // of IPv4's: a line of names is followed by one of values
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				switch {
				case f[0] == "Udp:" && column < 0:
					column = slices.Index(f, "RcvbufErrors")
				case f[0] == "Udp:":
					errs = append(errs, add(f[column]))
				case f[0] == "Udp6RcvbufErrors":
					errs = append(errs, add(f[1]))
				case name == "dev" && strings.HasSuffix(f[0], ":"):
					errs = append(errs, add(f[4]), add(f[12])) // received, sent
				}
			}
		}
		return errors.Join(errs...)
	}
	for _, n := range nodes {
		must(t, n.Do(read), n.container.Do(read))
	}
	return sum
}
