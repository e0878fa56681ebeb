package tunneltest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/tunnel"
	"github.com/overlayd/overlayd/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// faultEnv names the fault that TestFaulty's device has.
const faultEnv = "OVERLAYD_TUNNELTEST_FAULT"

// faulty is a good device with one fault.
type faulty struct {
	*tunnel.Memory
	fault string
	calls atomic.Int64
	kept  []tunnel.Packet
}

// faults are what a device may do wrong, and the subtest that must notice.
var faults = []struct{ name, caughtBy string }{
	{"no name", "Name"},
	{"features change", "Features"},
	{"batch of 0", "Features"},
	{"read returns nothing", "ReadWaits"},
	{"read nothing waits", "ReadNothing"},
	{"read one by one", "ReadBatch"},
	{"read beyond pkts", "ReadAtMost"},
	{"read loses", "ReadAtMost"},
	{"read drops the longest", "ReadSizes"},
	{"read replaces buffer", "ReadBuffers"},
	{"read uses capacity", "ReadBuffers"},
	{"read merges offload", "ReadOverwrites"},
	{"read sets frags", "ReadOverwrites"},
	{"read cuts", "ReadTooLong"},
	{"write nothing is an error", "WriteNothing"},
	{"write reverses", "WriteOrder"},
	{"write cuts at 1280", "WriteSizes"},
	{"write ignores frags", "WriteFrags"},
	{"write changes packet", "WriteKeepsNothing"},
	{"write keeps packet", "WriteKeepsNothing"},
	{"write takes offload", "WriteRefusesOffload"},
	{"write takes garbage", "WriteRefusesGarbage"},
	{"write refuses all", "WriteRefusesGarbage"},
	{"read flips a bit once", "Duplex"},
	{"close does not wake", "CloseWakesRead"},
	{"closed error is another", "CloseEndsReadAndWrite"},
	{"close twice is an error", "CloseTwice"},
	{"write goes on after close", "CloseAnytime"},
}

func (f *faulty) Name() string {
	if f.fault == "no name" {
		return ""
	}
	return f.Memory.Name()
}

func (f *faulty) Features() tunnel.Features {
	ft := f.Memory.Features()
	switch f.fault {
	case "features change":
		ft.ReadBatch += int(f.calls.Add(1))
	case "batch of 0":
		ft.ReadBatch = 0
	}
	return ft
}

func (f *faulty) Read(pkts []tunnel.Packet) (int, error) {
	switch f.fault {
	case "read returns nothing":
		return 0, nil
	case "read nothing waits":
		if len(pkts) == 0 {
			return f.Memory.Read([]tunnel.Packet{{Data: make([]byte, 1500)}})
		}
	case "read one by one":
		return f.Memory.Read(pkts[:1])
	case "read beyond pkts":
		n, err := f.Memory.Read(pkts)
		return n + 1, err
	case "read loses":
		more := append(append([]tunnel.Packet{}, pkts...), tunnel.Packet{Data: make([]byte, 1500)})
		n, err := f.Memory.Read(more)
		return min(copy(pkts, more), n), err
	case "read drops the longest":
		for i := range pkts {
			pkts[i].Data = pkts[i].Data[:len(pkts[i].Data)-1]
		}
		return f.Memory.Read(pkts)
	case "read replaces buffer":
		n, err := f.Memory.Read(pkts)
		for i := range pkts[:n] {
			pkts[i].Data = bytes.Clone(pkts[i].Data)
		}
		return n, err
	case "read uses capacity":
		n, err := f.Memory.Read(pkts)
		for i := range pkts[:n] {
			d := pkts[i].Data
			clear(d[len(d):cap(d)])
		}
		return n, err
	case "read merges offload":
		old := pkts[0].Offload
		n, err := f.Memory.Read(pkts)
		pkts[0].Offload = old
		return n, err
	case "read sets frags":
		n, err := f.Memory.Read(pkts)
		pkts[0].Frags = [][]byte{}
		return n, err
	case "read cuts":
		long := []tunnel.Packet{{Data: make([]byte, 1500)}}
		n, err := f.Memory.Read(long)
		pkts[0].Data = pkts[0].Data[:copy(pkts[0].Data, long[0].Data)]
		return n, err
	case "read flips a bit once":
		n, err := f.Memory.Read(pkts)
		if n > 0 && f.calls.Add(1) == 10 {
			d := pkts[0].Data
			d[len(d)-1] ^= 1
		}
		return n, err
	case "close does not wake":
		n, err := f.Memory.Read(pkts)
		if err != nil {
			select {}
		}
		return n, err
	case "closed error is another":
		n, err := f.Memory.Read(pkts)
		if err != nil {
			err = errors.New("closed")
		}
		return n, err
	}
	return f.Memory.Read(pkts)
}

func (f *faulty) Write(pkts []tunnel.Packet) (int, error) {
	switch f.fault {
	case "write reverses":
		for i := range pkts {
			f.Memory.Write(pkts[len(pkts)-1-i:][:1])
		}
		return len(pkts), nil
	case "write cuts at 1280":
		for i := range pkts {
			f.Memory.Write([]tunnel.Packet{{Data: pkts[i].Data[:min(1280, len(pkts[i].Data))]}})
		}
		return len(pkts), nil
	case "write ignores frags":
		for i := range pkts {
			f.Memory.Write([]tunnel.Packet{{Data: pkts[i].Data}})
		}
		return len(pkts), nil
	case "write changes packet":
		n, err := f.Memory.Write(pkts)
		pkts[0].Data[8]--
		return n, err
	case "write keeps packet":
		f.kept = append(f.kept, pkts...)
		return len(pkts), nil
	case "write takes offload", "write takes garbage":
		for i := range pkts {
			f.Memory.Write([]tunnel.Packet{{Data: pkts[i].Data, Frags: pkts[i].Frags}})
		}
		return len(pkts), nil
	case "write refuses all":
		n, err := f.Memory.Write(pkts)
		if err != nil {
			n = 0
		}
		return n, err
	case "write nothing is an error":
		if len(pkts) == 0 {
			return 0, errors.New("nothing to write")
		}
	case "write goes on after close":
		f.Memory.Write(pkts)
		return len(pkts), nil
	}
	return f.Memory.Write(pkts)
}

func (f *faulty) Close() error {
	again := f.calls.Add(1) > 1
	f.Memory.Close()
	if f.fault == "close twice is an error" && again {
		return os.ErrClosed
	}
	return nil
}

func open(fault string) func(t *testing.T) (tunnel.Device, func([]byte), func() []byte) {
	return func(t *testing.T) (tunnel.Device, func([]byte), func() []byte) {
		f := &faulty{Memory: tunnel.NewMemory(tunnel.MemoryConfig{}), fault: fault}
		receive := func() []byte {
			if len(f.kept) > 0 {
				f.Memory.Write(f.kept)
				f.kept = nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			buf := make([]byte, 1500)
			n, err := f.Receive(ctx, buf)
			if err != nil {
				return nil
			}
			return buf[:n]
		}
		return f, func(p []byte) { f.Inject(p) }, receive
	}
}

// A good device passes; the one that faultEnv asks for must not.
func TestFaulty(t *testing.T) {
	tunneltest.TestDevice(t, open(os.Getenv(faultEnv)))
}

// Every fault is noticed, by the test that is there for it.
func TestSuiteNotices(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Most of them wait for what never comes, so they do that all at once.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type run struct {
		out []byte
		err error
	}
	runs := make([]chan run, len(faults))
	for i, f := range faults {
		cmd := exec.CommandContext(ctx, self, "-test.run=^TestFaulty$/^"+f.caughtBy+"$", "-test.count=1", "-test.timeout=1m")
		// The race detector would sleep for a second before it exits.
		cmd.Env = append(os.Environ(), faultEnv+"="+f.name, "GORACE=atexit_sleep_ms=0")
		runs[i] = make(chan run, 1)
		go func() {
			out, err := cmd.CombinedOutput()
			runs[i] <- run{out, err}
		}()
	}
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			r := <-runs[i]
			var exit *exec.ExitError
			if !errors.As(r.err, &exit) || exit.ExitCode() != 1 ||
				!bytes.Contains(r.out, []byte("--- FAIL: TestFaulty/"+f.caughtBy)) {
				t.Errorf("the suite does not notice (%v):\n%s", r.err, r.out)
			}
		})
	}
}
