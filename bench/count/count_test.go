package count

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == KnownCommand {
		if err := Known(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestSelfCheck(t *testing.T) {
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	off, err := SelfCheck(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("off by %.3f%% at the most", 100*off)
}

// TestWrong: counters that are off by more than a hundredth are refused, whichever it is.
func TestWrong(t *testing.T) {
	e := Expected{Pipe: File{Moved{Times: 1000, Bytes: 1000}, Moved{Times: 1000, Bytes: 1000}}, Getppid: 1000, PipeIn: 5, PipeOut: 6, PairIn: 7, PairOut: 8, TUNFile: 9}
	e.Pair, e.TUN = e.Pipe, e.Pipe
	e.Copied = e.TUN.ToUser
	right := func() Process {
		p := Process{Calls: map[int]uint64{}, Files: map[int]File{}, CopiedTimes: 2000}
		for fd := 5; fd <= 9; fd++ {
			p.Files[fd] = e.Pipe
		}
		p.Calls[unix.SYS_SENDMMSG], p.Calls[unix.SYS_GETPPID] = pairCalls, 1000
		return p
	}
	if off, err := e.compare(right()); off != 0 || err != nil {
		t.Fatalf("what is right is off by %v: %v", off, err)
	}
	slightly := right()
	slightly.Files[9] = File{Moved{Times: 1009, Bytes: 1000}, e.TUN.FromUser}
	if off, err := e.compare(slightly); off != 0.009 || err != nil {
		t.Errorf("off by %v: %v", off, err)
	}
	for name, harm := range map[string]func(*Process){
		"an extra read": func(p *Process) { p.Files[9] = File{Moved{Times: 1011, Bytes: 1000}, e.TUN.FromUser} },
		"bytes missed":  func(p *Process) { p.Files[8] = File{Moved{Times: 1000, Bytes: 900}, e.Pair.FromUser} },
		"a lost call":   func(p *Process) { p.Calls[unix.SYS_GETPPID] = 980 },
		"no copies":     func(p *Process) { p.CopiedTimes = 0 },
		"nothing":       func(p *Process) { *p = Process{} },
	} {
		p := right()
		harm(&p)
		if _, err := e.compare(p); !errors.Is(err, ErrWrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
