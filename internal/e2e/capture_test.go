package e2e_test

import (
	"bytes"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestCaptureCommand: Wireshark's reader finds in the file the packets inside and
// outside, and why some were dropped, with every checksum and length right.
func TestCaptureCommand(t *testing.T) {
	needs(t, "tshark")
	t.Parallel()
	for _, encap := range []string{"udp", "vxlan"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := seeded(t, 2, "--encap", encap)
			a, b := nodes[0], nodes[1]
			file := filepath.Join(a.Dir(), "packets.pcapng")
			cmd := exec.Command(overlayd, "capture", "-w", file, "--run-dir", a.runDir())
			cmd.Env = daemonEnv()
			capture, err := a.Host.Start(cmd, lab.StartOptions{Name: "capture"})
			must(t, err)
			nobody := unowned(t, nodes, network4).String()
			read := func() [][]string {
				args := []string{"-n", "-r", file, "-d", "udp.port==8285,ip", "-d", "udp.port==8472,vxlan", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
					"-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"}
				for _, f := range []string{"frame.interface_name", "frame.protocols", "frame.comment", "ip.dst", "icmp.type", "_ws.malformed", "ip.checksum.status", "udp.checksum.status", "frame.packet_flags_direction"} {
					args = append(args, "-e", f)
				}
				cmd := exec.CommandContext(within(t, 30*time.Second), "tshark", args...)
				cmd.Env = append(daemonEnv(), "WIRESHARK_CONFIG_DIR="+a.Dir())
				var errs bytes.Buffer
				cmd.Stderr = &errs
				out, err := cmd.Output()
				if err != nil || strings.Contains(errs.String(), "cut short") {
					t.Fatalf("tshark: %v\n%s", err, errs.String())
				}
				var rows [][]string
				for line := range strings.Lines(string(out)) {
					rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
				}
				return rows
			}
			labtest.Eventually(t, 10*time.Second, func() error { // until it has begun
				_, err := exec.Command("test", "-s", file).CombinedOutput()
				return err
			})
			ping := func(dst string) {
				_, err := a.container.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: netip.MustParseAddr(dst), Count: 2, Interval: 10 * time.Millisecond, Timeout: time.Second})
				must(t, err)
			}
			ping(b.container.Addr4().String())
			ping(nobody)
			if out, stderr, code := a.overlaydCommand(t, "capture", "--path", "kernel-vxlan", "-w", file); code != 2 || out != "" || !oneLine(stderr) {
				t.Errorf("a kernel path: %d, %s%s", code, out, stderr)
			}
			if _, stderr, code := a.overlaydCommand(t, "capture", "--peer", "nobody", "-w", filepath.Join(a.Dir(), "none")); code != 1 || !strings.Contains(stderr, `"nobody" is neither`) {
				t.Errorf("no such peer: %d, %s", code, stderr)
			}
			must(t, capture.Signal(unix.SIGINT))
			labtest.Eventually(t, 10*time.Second, func() error {
				if capture.Running() {
					return errNotYet
				}
				return nil
			})
			if err := capture.Err(); err != nil {
				tail, _ := capture.Tail(5)
				t.Errorf("it ended with %v: %s", err, tail)
			}
			rows := read()
			frames := "ip:udp:ip:ip:icmp"
			if encap == "vxlan" {
				frames = "ip:udp:vxlan:eth:ethertype:ip:icmp"
			}
			count := map[string]int{}
			for _, r := range rows {
				if r[5] != "" || strings.Contains(r[6], "0") && strings.Trim(r[6], "1,") != "" || strings.Trim(r[7], "123,") != "" {
					t.Errorf("malformed, or with a wrong checksum: %q", r)
				}
				protocols := strings.TrimSuffix(strings.TrimPrefix(r[1], "raw:"), ":data")
				switch {
				case r[0] == "overlay0" && strings.HasPrefix(protocols, "ip:icmp") && strings.Contains(r[3], nobody) && r[2] == "dropped: tx_no_owner" && strings.HasSuffix(r[8], "2"):
					count["dropped"]++
				case r[0] == "overlay0" && protocols == "ip:icmp" && r[2] == "" && r[4] == "8" && strings.HasSuffix(r[8], "2"):
					count["out"]++
				case r[0] == "overlay0" && protocols == "ip:icmp" && r[4] == "0" && strings.HasSuffix(r[8], "1"):
					count["in"]++
				case r[0] == "eth0" && (protocols == frames || protocols == "ip:udp:ip:icmp"):
					count["underlay"]++
				}
			}
			if count["dropped"] != 2 || count["out"] != 2 || count["in"] != 2 || count["underlay"] != 4 {
				t.Errorf("%v in %d packets: %q", count, len(rows), rows[:min(len(rows), 40)])
			}
			if slices.ContainsFunc(rows, func(r []string) bool { return len(r) != 9 }) {
				t.Error("tshark says something else")
			}
		})
	}
}
