package main

import (
	"bytes"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

var updateGolden = flag.Bool("update", false, "write the golden files of testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// result is what a command did.
type result struct {
	code           int
	stdout, stderr string
}

// command runs the program as a shell would.
func command(t *testing.T, env []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, &stdout, &stderr, env)
	return result{code, stdout.String(), stderr.String()}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *updateGolden {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// document reads one of the documents that package overlayd's golden test
// holds.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fakeDaemon answers on a control socket with fixed texts. It speaks the
// protocol by itself, so that these tests hold the wire format.
type fakeDaemon struct {
	dir      string
	mu       sync.Mutex
	answers  map[string]string // "METHOD path" to body
	requests []string          // in order
	onLeave  func()
}

func (d *fakeDaemon) set(request, body string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers[request] = body
}

func (d *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	request := r.Method + " " + r.URL.Path
	d.requests = append(d.requests, request)
	body, ok := d.answers[request]
	if !ok {
		body = `{"error":{"code":"failed","message":"no such thing"}}`
	}
	if strings.Contains(body, `"error":`) {
		w.WriteHeader(http.StatusGatewayTimeout)
	}
	w.Write([]byte(body))
	if request == "POST /v1/leave" && d.onLeave != nil {
		d.onLeave()
	}
}

// startDaemon starts a fake daemon whose node is that of the documents
// "...-full" or "...-empty".
func startDaemon(t *testing.T, which string) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{dir: t.TempDir(), answers: map[string]string{}}
	for _, doc := range []string{"status", "peers", "routes", "drops", "leases", "keys"} {
		d.answers["GET /v1/"+doc] = document(t, doc+"-"+which)
	}
	ln, err := net.Listen("unix", filepath.Join(d.dir, "overlayd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: d}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(ln) })
	d.onLeave = func() { ln.Close() }
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
	})
	return d
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	none := "no overlayd is running at " + dir + "/overlayd.sock: start one with \"overlayd run\", or name its run directory with --run-dir"
	for _, tt := range []struct {
		args   string
		env    string
		code   int
		stderr string // after "overlayd: ", "" for none
	}{
		{args: "version"},
		{args: "--version"},
		{args: "help run"},
		{args: "run --help"},
		{args: "completion bash"},
		{args: "", code: 2, stderr: `a command is missing: see "overlayd --help"`},
		{args: "statsu", code: 2, stderr: `unknown command "statsu": did you mean "status"?`},
		{args: "frobnicate", code: 2, stderr: `unknown command "frobnicate": see "overlayd --help"`},
		{args: "help frobnicate", code: 2, stderr: `unknown command "frobnicate": see "overlayd --help"`},
		{args: "config", code: 2, stderr: `a command is missing: see "overlayd config --help"`},
		{args: "config chekc x", code: 2, stderr: `unknown command "chekc": did you mean "config check"?`},
		{args: "config check", code: 2, stderr: `FILE is missing: see "overlayd config check --help"`},
		{args: "completion", code: 2, stderr: `a command is missing: see "overlayd completion --help"`},
		{args: "completion tcsh", code: 2, stderr: `unknown command "tcsh": did you mean "completion bash"?`},
		{args: "completion bash x", code: 2, stderr: `unknown command "x" for "overlayd completion bash"`},
		{args: "run x", code: 2, stderr: `unexpected argument "x": see "overlayd run --help"`},
		{args: "run --netwrok 100.96.0.0/16", code: 2, stderr: `unknown flag --netwrok: did you mean "--network"?`},
		{args: "run --frobnicate", code: 2, stderr: `unknown flag: --frobnicate: see "overlayd run --help"`},
		{args: "run --network", code: 2, stderr: `flag needs an argument: --network: see "overlayd run --help"`},
		{args: "status --frobnicate", code: 2, stderr: `unknown flag: --frobnicate: see "overlayd status --help"`},
		{args: "status x", code: 2, stderr: `unexpected argument "x": see "overlayd status --help"`},
		{args: "version x", code: 2, stderr: `unexpected argument "x": see "overlayd version --help"`},
		{args: "routes x", code: 2, stderr: `unexpected argument "x": did you mean "routes get ADDR"?`},
		{args: "routes get", code: 2, stderr: `ADDR is missing: see "overlayd routes --help"`},
		{args: "routes get 100.96.1", code: 2, stderr: `"100.96.1" is not an IP address, such as 192.0.2.1 or 2001:db8::1`},
		{args: "ping", code: 2, stderr: `PEER|ADDR is missing: see "overlayd ping --help"`},
		{args: "path", code: 2, stderr: `PEER|ADDR is missing: see "overlayd path --help"`},
		{args: "path host2", code: 2, stderr: `PATH is missing: see "overlayd path --help"`},
		{args: "path host2 kernel", code: 2, stderr: `"kernel" is not one of auto, userspace, kernel-vxlan, direct`},
		{args: "ping b --count 0", code: 2, stderr: `--count: 0 is not a number of probes: write 1 or more`},
		{args: "ping b --count x", code: 2, stderr: `invalid argument "x" for "--count" flag: strconv.ParseInt: parsing "x": invalid syntax: see "overlayd ping --help"`},
		{args: "ping b --timeout -1s", code: 2, stderr: `--timeout: -1s is not a time to wait: write one such as 10s`},
		{args: "ping b --until warp", code: 2, stderr: `--until: "warp" is not one of userspace, userspace-udp, userspace-vxlan, kernel-vxlan, direct`},
		{args: "capture", code: 2, stderr: `no file is given: use -w FILE.pcapng`},
		{args: "capture -w f --path warp", code: 2, stderr: `--path: "warp" is not one of userspace, userspace-udp, userspace-vxlan`},
		{args: "capture -w f --max-size 0", code: 2, stderr: `--max-size: "0" is not a size such as 64M`},
		{args: "capture -w f --max-size 1K", code: 2, stderr: `--max-size: 1K is too small: give at least 2000 bytes`},
		{args: "capture -w f --max-size 5X", code: 2, stderr: `--max-size: "5X" is not a size such as 64M`},
		{args: "capture -w f --max-size 99999999999G", code: 2, stderr: `--max-size: "99999999999G" is not a size such as 64M`},
		{args: "capture -w f --run-dir " + dir, code: 1, stderr: none},
		{args: "status --run-dir " + dir, code: 1, stderr: none},
		{args: "status --json --run-dir " + dir, code: 1, stderr: none},
		{args: "status --watch --run-dir " + dir, code: 1, stderr: none},
		{args: "peers --run-dir " + dir, code: 1, stderr: none},
		{args: "routes --run-dir " + dir, code: 1, stderr: none},
		{args: "routes get 100.96.1.1 --run-dir " + dir, code: 1, stderr: none},
		{args: "drops --run-dir " + dir, code: 1, stderr: none},
		{args: "ping b --run-dir " + dir, code: 1, stderr: none},
		{args: "leave --run-dir " + dir, code: 1, stderr: none},
		{args: "peers", env: "OVERLAYD_RUN_DIR=" + dir, code: 1, stderr: none},
		// Only run and config check mind variables that they do not know.
		{args: "version", env: "OVERLAYD_NETWROK=x"},
		{args: "peers --run-dir " + dir, env: "OVERLAYD_NETWROK=x", code: 1, stderr: none},
		{args: "run", env: "OVERLAYD_NETWROK=x", code: 2, stderr: `unknown variable OVERLAYD_NETWROK: did you mean "OVERLAYD_NETWORK"?`},
	} {
		t.Run(tt.args+" "+tt.env, func(t *testing.T) {
			got := command(t, []string{tt.env}, strings.Fields(tt.args)...)
			want := ""
			if tt.stderr != "" {
				want = "overlayd: " + tt.stderr + "\n"
			}
			if got.code != tt.code || got.stderr != want {
				t.Errorf("exit code %d and %q, want %d and %q", got.code, got.stderr, tt.code, want)
			}
			if tt.code != 0 && got.stdout != "" {
				t.Errorf("a failure prints %q", got.stdout)
			}
			if tt.code == 0 && got.stdout == "" {
				t.Error("nothing printed")
			}
		})
	}
}

func TestVersion(t *testing.T) {
	got := command(t, nil, "version").stdout
	if !regexp.MustCompile(`^overlayd \S+ \w+/\w+ go\S.*\n$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	if flagged := command(t, nil, "--version").stdout; flagged != got {
		t.Errorf("--version prints %q, version %q", flagged, got)
	}
}

// TestHelp holds what --help prints, but for the demo and for cobra's own
// commands.
func TestHelp(t *testing.T) {
	for _, name := range []string{"", "run", "status", "peers", "routes", "drops", "lease", "lease list", "lease evict", "key", "key generate", "key list", "key add", "key use", "key remove", "ping", "path", "capture", "reload", "leave", "cleanup", "config", "config check", "version"} {
		t.Run(name, func(t *testing.T) {
			got := command(t, nil, append(strings.Fields(name), "--help")...)
			if got.code != 0 || got.stderr != "" {
				t.Fatalf("%+v", got)
			}
			text := regexp.MustCompile(`(?m)^  demo .*\n`).ReplaceAllString(got.stdout, "")
			golden(t, "help/"+strings.ReplaceAll(strings.TrimSpace("overlayd "+name), " ", "-")+".txt", text)
			if other := command(t, nil, append([]string{"help"}, strings.Fields(name)...)...); other.stdout != got.stdout {
				t.Errorf("help %s differs from %s --help:\n%s", name, name, cmp.Diff(got.stdout, other.stdout))
			}
		})
	}
}

func TestCommands(t *testing.T) {
	var names []string
	root := newRootCommand(nil)
	addCompletion(root)
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	got := strings.Join(names, " ")
	want := "capture cleanup completion config demo drops key lease leave path peers ping reload routes run status version"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"a":                "a",
		"overlayd: a":      "a",
		"a\nb\n":           "a; b",
		"\n  a  \n\n b: c": "a; b: c",
	} {
		if got := oneLine(errorText(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

type errorText string

func (e errorText) Error() string { return string(e) }

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"1500": 1500, "64K": 64 << 10, "64k": 64 << 10, "2M": 2 << 20, "1G": 1 << 30} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "G", "-1", "1.5M", "1KB", "1 M", "9223372036854775808"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}
