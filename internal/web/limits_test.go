package web

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestSlowClients: those who keep the node waiting take no more places than there are, and
// not for long.
func TestSlowClients(t *testing.T) {
	s, url := serve(t, config())
	began := time.Now()
	for range maxConns {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /status HTTP/1.1\r\nHost: localhost\r\nX-"); err != nil {
			t.Fatal(err)
		}
	}
	if resp, body := ask(t, http.MethodGet, url+"/healthz", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("after the slow ones: %d %s", resp.StatusCode, body)
	}
	if took := time.Since(began); took < headerTimeout/2 || took > 4*headerTimeout {
		t.Errorf("the slow ones had their places for %v, want %v", took, headerTimeout)
	}
}
