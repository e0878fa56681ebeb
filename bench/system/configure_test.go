package system

import (
	"bufio"
	"crypto/ecdh"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestUAPISettings(t *testing.T) {
	own, err := ecdh.X25519().NewPrivateKey([]byte(strings.Repeat("\x11", 32)))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.X25519().NewPublicKey([]byte(strings.Repeat("\x22", 32)))
	if err != nil {
		t.Fatal(err)
	}
	got := uapiSettings(own, peer, netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParsePrefix("100.96.255.2/32"), subnet4(1).Masked())
	want := `set=1
private_key=` + strings.Repeat("11", 32) + `
listen_port=51820
replace_peers=true
public_key=` + strings.Repeat("22", 32) + `
endpoint=192.0.2.2:51820
replace_allowed_ips=true
allowed_ip=100.96.255.2/32
allowed_ip=100.96.2.0/24

`
	if got != want {
		t.Errorf("settings are\n%s\nwant\n%s", got, want)
	}
}

// A daemon's refusal is an error, and so is one that hangs up.
func TestSetUAPI(t *testing.T) {
	for answer, want := range map[string]string{
		"errno=0\n\n":   "",
		"errno=-22\n\n": "wg0.sock refuses its settings: errno=-22",
		"":              "answer of wg0.sock: EOF",
	} {
		socket := filepath.Join(t.TempDir(), "wg0.sock")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		go func() {
			defer close(got)
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			in := bufio.NewReader(conn)
			var all strings.Builder
			for line := ""; line != "\n" && err == nil; { // the empty line ends it
				line, err = in.ReadString('\n')
				all.WriteString(line)
			}
			if _, err := conn.Write([]byte(answer)); err == nil {
				got <- all.String()
			}
		}()
		err = setUAPI(t.Context(), socket, "set=1\nlisten_port=1\n\n")
		if err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("answer %q: %v, want %q", answer, err, want)
		}
		ln.Close()
		if sent := <-got; sent != "set=1\nlisten_port=1\n\n" {
			t.Errorf("sent %q", sent)
		}
	}
	if err := setUAPI(t.Context(), filepath.Join(t.TempDir(), "wg0.sock"), ""); err == nil {
		t.Error("a socket that is not there takes settings")
	}
}

func TestNebulaConfig(t *testing.T) {
	host := nebulaHost{
		Dir: "/d", Lighthouse: true,
		Underlay: netip.MustParseAddr("192.0.2.1"), PeerUnderlay: netip.MustParseAddr("192.0.2.2"),
		Peer: tunnelAddr(1).Addr(), PeerSubnet: subnet4(1).Masked(), MTU: nebulaMTU,
	}
	for _, lighthouse := range []bool{true, false} {
		host.Lighthouse = lighthouse
		var b strings.Builder
		if err := nebulaConfig.Execute(&b, host); err != nil {
			t.Fatal(err)
		}
		for want, in := range map[string]bool{
			"  cert: /d/host.crt\n": true,
			"static_host_map:\n  \"100.96.255.2\": [\"192.0.2.2:4242\"]\n":                         true,
			"listen:\n  host: 192.0.2.1\n  port: 4242\nroutines: 2\n":                              true,
			"  mtu: 1300\n  unsafe_routes:\n    - route: 100.96.2.0/24\n      via: 100.96.255.2\n": true,
			"  am_lighthouse: true\nlisten:":                                                       lighthouse,
			"  am_lighthouse: false\n  hosts: [\"100.96.255.2\"]\nlisten:":                         !lighthouse,
		} {
			if strings.Contains(b.String(), want) != in {
				t.Errorf("lighthouse %v: that it contains %q is %v, want %v:\n%s", lighthouse, want, !in, in, b.String())
			}
		}
	}
}
