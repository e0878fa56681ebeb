package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// pageOf is the page of a report, and it is well nested.
func pageOf(t *testing.T, r *Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	nested(t, b.String())
	return b.String()
}

var void = []string{"meta", "link", "br", "input", "img", "hr"}

// nested checks by its tags that every element is ended where it should be, since a parser
// mends what is not; and that identifiers, headings and headers of tables are in order.
func nested(t *testing.T, text string) {
	t.Helper()
	var open, labels []string
	ids := map[string]bool{}
	heading := 0
	for z := html.NewTokenizer(strings.NewReader(text)); ; {
		kind := z.Next()
		token := z.Token()
		switch kind {
		case html.ErrorToken:
			if z.Err() != io.EOF {
				t.Fatal(z.Err())
			}
			if len(open) > 0 {
				t.Errorf("not ended: %v", open)
			}
			for _, id := range labels {
				if !ids[id] {
					t.Errorf("no element has the id %q", id)
				}
			}
			return
		case html.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != token.Data {
				t.Fatalf("</%s> in %v", token.Data, open)
			}
			open = open[:len(open)-1]
			continue
		case html.StartTagToken:
			if !slices.Contains(void, token.Data) {
				open = append(open, token.Data)
			}
		case html.SelfClosingTagToken:
			if !slices.Contains(open, "svg") {
				t.Errorf("<%s/> outside of a drawing", token.Data)
			}
		default:
			continue
		}
		at := map[string]string{}
		for _, a := range token.Attr {
			if _, twice := at[a.Key]; twice {
				t.Errorf("<%s> has %s twice", token.Data, a.Key)
			}
			at[a.Key] = a.Val
			if strings.HasPrefix(a.Key, "on") || a.Key == "src" || a.Key == "srcset" || a.Key == "xlink:href" ||
				a.Key == "href" && !strings.HasPrefix(a.Val, "#") && a.Val != "data:," {
				t.Errorf("<%s %s=%q>", token.Data, a.Key, a.Val)
			}
		}
		if id, ok := at["id"]; ok {
			if ids[id] {
				t.Errorf("two elements have the id %q", id)
			}
			ids[id] = true
		}
		labels = append(labels, strings.Fields(at["aria-labelledby"])...)
		if rest, ok := strings.CutPrefix(at["href"], "#"); ok {
			labels = append(labels, rest)
		}
		switch token.Data {
		case "th":
			if at["scope"] == "" {
				t.Errorf("a th without scope")
			}
		case "h1", "h2", "h3":
			level := int(token.Data[1] - '0')
			if level > heading+1 {
				t.Errorf("<h%d> after <h%d>", level, heading)
			}
			heading = level
		case "svg":
			if at["role"] != "img" || at["aria-labelledby"] == "" {
				t.Errorf("a drawing without a role or name")
			}
		case "script", "iframe", "object", "embed", "img":
			t.Errorf("<%s>", token.Data)
		}
	}
}

func TestHTML(t *testing.T) {
	text := pageOf(t, sample())
	for _, name := range Names {
		if !strings.Contains(text, ">"+name+"<") && !strings.Contains(text, "</i>"+name) {
			t.Errorf("no %s", name)
		}
	}
	for _, want := range []string{"What an overlay in userspace costs", "2026-03-14 09:26 UTC", "no program flanneld was given", "SOCKET_RCVBUFF",
		"raw_syscalls:sys_enter", "msg_len", "sched:sched_switch", "net:net_dev_start_xmit", "skb:kfree_skb", "skb:skb_copy_datagram_iovec",
		"by definition", "wireguard-go *", "off by 0.12 %", "6.42 <small>0.42 ×</small>", `name="viewport"`, "prefers-color-scheme: dark"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, bad := range []string{"http://", "https://", "url(", "@import", "@font-face", "<script", "ZgotmplZ", "NaN", "%!"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	// Two drawings of each path that ran: for a wide window, and for a phone.
	if got, want := strings.Count(text, "<svg "), 2*9; got != want {
		t.Errorf("%d drawings, want %d", got, want)
	}
}

// Whatever a report says is text.
func TestHTMLEscapes(t *testing.T) {
	r := sample()
	const evil = `<script>alert("x")</script><img src=x onerror=y>'"&`
	r.Host.CPU, r.Host.Load, r.Host.Kernel = evil, evil, evil
	for i := range r.Paths {
		p := &r.Paths[i]
		p.Reason, p.Detail, p.Version = evil, evil, evil
		p.Devices = append(p.Devices, Device{Name: evil})
		p.Drops = map[string]uint64{evil: 1}
		p.Calls = map[string]float64{evil: 1}
		for j := range p.Crossings {
			p.Crossings[j].Calls, p.Crossings[j].Place = evil, evil
		}
	}
	r.Paths[0].Name = evil
	text := pageOf(t, r) // which has no such element or attribute
	if !strings.Contains(text, "&lt;script&gt;alert(") {
		t.Error("it is not in the page as text")
	}
}

// A report with little in it, or with what cannot be drawn, is a page too.
func TestHTMLOfLittle(t *testing.T) {
	many := *sample().Path("nebula")
	many.Crossings = slices.Repeat(many.Crossings, 2)
	for name, r := range map[string]*Report{
		"none":           {},
		"not run":        {Paths: []Path{{Name: "nebula"}}},
		"no figures":     {Paths: []Path{{Name: Base, Ran: true}, {Name: "userspace-udp", Ran: true}}},
		"not a number":   {Paths: []Path{{Name: "nebula", Ran: true, TCPGbps: math.NaN(), Syscalls: math.Inf(1)}}},
		"only receives":  {Paths: []Path{{Name: "nebula", Ran: true, Crossings: []Crossing{{Host: "recv", Place: "app", ToUser: true}}}}},
		"only sends":     {Paths: []Path{{Name: "nebula", Ran: true, Crossings: []Crossing{{Host: "send", Place: "tun", Counted: true}}}}},
		"many crossings": {Paths: []Path{many}},
	} {
		t.Run(name, func(t *testing.T) { pageOf(t, r) })
	}
}

// A packet's way has the parts between the programs in order, and one daemon for a host.
func TestWay(t *testing.T) {
	for _, test := range []struct{ name, steps, users string }{
		{"underlay", "send TCP socket* > underlay > recv TCP socket*", "sending program, receiving program"},
		{"direct", "send TCP socket, veth + bridge* > send plain route > underlay > recv plain route > recv veth + bridge, TCP socket*",
			"sending program, receiving program"},
		{"kernel-vxlan", "send TCP socket, veth + bridge* > send VXLAN device > underlay > recv VXLAN device > recv veth + bridge, TCP socket*",
			"sending program, receiving program"},
		{"userspace-udp", "send TCP socket, veth + bridge* > send TUN* | send UDP socket* > underlay > recv UDP socket* | recv TUN* > " +
			"recv veth + bridge, TCP socket*", "sending program, overlayd, overlayd, receiving program"},
	} {
		w := wayOf(sample().Path(test.name))
		steps := ""
		for i, s := range w.steps {
			if s.host != "" {
				steps += s.host + " "
			}
			steps += strings.Join(s.kernel, ", ")
			if s.crossing != nil {
				steps += "*"
			}
			switch {
			case i+1 == len(w.steps):
			case s.linked:
				steps += " > "
			default: // through a program
				steps += " | "
			}
		}
		if steps != test.steps {
			t.Errorf("%s:\n%s, want\n%s", test.name, steps, test.steps)
		}
		var users []string
		for _, u := range w.users {
			users = append(users, u.name)
		}
		if got := strings.Join(users, ", "); got != test.users {
			t.Errorf("%s: %s, want %s", test.name, got, test.users)
		}
		for _, want := range []string{"sending host", "receiving host"} {
			if !strings.Contains(w.spoken(), want) {
				t.Errorf("%s: %s", test.name, w.spoken())
			}
		}
	}
}

// The longest bar and its whisker stay in the chart, and no grid is too dense.
func TestChart(t *testing.T) {
	for _, top := range []float64{0, 0.00031, 0.07, 1, 9.7, 31.4, 999, 1e6} {
		r := &Report{Paths: []Path{{Name: Base, Ran: true, TCPGbps: top, Spread: map[string]Spread{"tcp_gbps": {0, top * 0.9, top * 1.2, top * 2}}}}}
		c := r.chartOf(figTCP, "", [2]string{}, nil)
		if b := c.Bars[0]; b.Width > 100 || b.Q3 > 100 || b.Q1 > b.Q3 || b.Ratio == "1.00 ×" {
			t.Errorf("%g: %+v", top, b)
		}
		if n := len(c.Ticks); n < 2 || n > 6 {
			t.Errorf("%g: %d lines: %v", top, n, c.Ticks)
		}
		seen := map[string]bool{}
		for _, tick := range c.Ticks {
			if seen[tick.Label] {
				t.Errorf("%g: %s twice", top, tick.Label)
			}
			seen[tick.Label] = true
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1\u202f000", 1234567: "1\u202f234\u202f567"} {
		if got := grouped(n); got != want {
			t.Error(fmt.Sprint(n), got)
		}
	}
}
