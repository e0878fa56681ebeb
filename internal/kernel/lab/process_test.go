package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleVariable makes the test binary act as a program that a lab runs.

const roleVariable = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "polite": // ends at SIGTERM
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGTERM)
		fmt.Println("ready")
		<-stop
		fmt.Println("bye")
	case "stubborn": // does not, and has a child of another process group
		signal.Ignore(unix.SIGTERM)
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), roleVariable+"=orphan")
		child.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		if err := child.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("child", child.Process.Pid)
		select {}
	case "orphan":
		select {}
	case "busy": // on several threads
		fmt.Println("ready")
		for range 4 {
			go func() {
				for n := 1; n != 0; n += 2 { // for ever
				}
			}()
		}
		select {}
	case "links": // prints the interfaces of its namespace
		entries, err := os.ReadDir("/proc/sys/net/ipv4/conf")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "owner": // makes a lab and is killed
		if err := ownLab(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func role(name string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+name)
	return cmd
}

func TestProcess(t *testing.T) {
	l, _, hosts := labtest.Hosts(t, 1)
	h := hosts[0]
	out, err := h.Output(deadline(t, 10*time.Second), role("links"))
	must(t, err)
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{"all", "default", "eth0", "lo"}) {
		t.Errorf("interfaces seen by the process: %q", got)
	}
	p, err := h.Start(role("polite"), lab.StartOptions{Name: "polite"})
	must(t, err)
	labtest.Eventually(t, 10*time.Second, func() error {
		if out, err := p.Tail(5); err != nil || out != "ready" {
			return fmt.Errorf("output %q, %v", out, err)
		}
		return nil
	})
	if !p.Running() || p.Err() != nil {
		t.Error("it does not run")
	}
	must(t, p.Stop(deadline(t, 10*time.Second)))
	if out, err := p.Tail(1); err != nil || out != "bye" || p.Running() {
		t.Errorf("last line %q, %v", out, err)
	}
	must(t, p.Stop(t.Context())) // again

	q, err := h.Start(role("stubborn"), lab.StartOptions{Name: "stubborn"})
	must(t, err)
	child := 0
	labtest.Eventually(t, 10*time.Second, func() error {
		out, err := q.Tail(1)
		if _, scanErr := fmt.Sscanf(out, "child %d", &child); scanErr != nil {
			return fmt.Errorf("output %q, %v", out, err)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := q.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) || q.Running() {
		t.Errorf("stopping what does not stop: %v", err)
	}
	if unix.Kill(child, 0) != nil {
		t.Error("the child of another group died with its parent: the test proves nothing")
	}
	must(t, l.Close())
	if alive(child) {
		t.Error("a grandchild outlived the lab")
	}
	if _, err := h.Start(role("polite"), lab.StartOptions{}); !errors.Is(err, lab.ErrClosed) {
		t.Errorf("start in a closed lab: %v", err)
	}
}

// TestPause: right after Pause, no thread runs.
func TestPause(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 1)
	p, err := hosts[0].Start(role("busy"), lab.StartOptions{Name: "busy"})
	must(t, err)
	labtest.Eventually(t, 10*time.Second, func() error {
		if out, err := p.Tail(1); err != nil || out != "ready" {
			return fmt.Errorf("output %q, %v", out, err)
		}
		return nil
	})
	for range 20 {
		must(t, p.Pause(), p.Pause())
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		must(t, err)
		if len(threads) < 2 {
			t.Fatalf("%d threads: the test proves nothing", len(threads))
		}
		for _, stat := range threads {
			if got := state(stat); got != "T" {
				t.Errorf("the state of %s is %q", stat, got)
			}
		}
		must(t, p.Resume())
	}
	p.Kill()
	if err := p.Pause(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("pause what has ended: %v", err)
	}
}

func alive(pid int) bool {
	s := state(fmt.Sprintf("/proc/%d/stat", pid))
	return s != "" && s != "Z" && s != "X"
}

// state is the letter for a task's state in its stat file, "" if there is none.
func state(file string) string {
	stat, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[0]
}

func ownLab() error {
	l, err := lab.New(lab.Config{Name: "owned"})
	if err != nil {
		return err
	}
	_, hosts, err := l.LAN("lan", 2)
	if err != nil {
		return err
	}
	mortal, err := hosts[0].Start(role("polite"), lab.StartOptions{Name: "mortal"})
	if err != nil {
		return err
	}
	outlive, err := hosts[0].Start(role("polite"), lab.StartOptions{Name: "outlive", Outlive: true})
	if err != nil {
		return err
	}
	keep := len(os.Getenv("LAB_TEST_KEEP")) > 0
	if keep {
		if err := l.Keep(); err != nil {
			return err
		}
		if err := l.Close(); err != nil { // does nothing now
			return err
		}
	}
	fmt.Println(l.Prefix(), mortal.PID(), outlive.PID())
	if !keep {
		select {}
	}
	return nil
}

func TestRemove(t *testing.T) {
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	for _, keep := range []string{"", "1"} {
		cmd := role("owner")
		cmd.Env = append(cmd.Env, "LAB_TEST_KEEP="+keep)
		stdout, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		var prefix string
		var mortal, outlive int
		line, err := bufio.NewReader(stdout).ReadString('\n')
		if _, scanErr := fmt.Sscan(line, &prefix, &mortal, &outlive); scanErr != nil {
			t.Fatalf("owner said %q, %v", line, err)
		}
		t.Cleanup(func() { lab.Remove(prefix) })
		if keep == "" {
			if err := lab.Remove(prefix); !errors.Is(err, lab.ErrInUse) {
				t.Errorf("removing a lab in use: %v", err)
			}
			if !alive(mortal) || !alive(outlive) {
				t.Error("the refused removal killed a process")
			}
			must(t, cmd.Process.Kill())
			cmd.Wait()
		} else {
			must(t, cmd.Wait())
		}
		labtest.Eventually(t, 5*time.Second, func() error {
			if alive(mortal) {
				return errors.New("a process outlived its lab's owner")
			}
			return nil
		})
		if !alive(outlive) {
			t.Error("a process that should outlive the owner died")
		}
		left, err := lab.Leftovers()
		must(t, err)
		if !slices.Contains(left, lab.Leftover{Prefix: prefix, Kept: keep != ""}) {
			t.Errorf("%s is not among %v", prefix, left)
		}
		must(t, lab.Remove(prefix))
		if alive(outlive) {
			t.Error("removal left a process")
		}
		checkGone(t, prefix)
		if err := lab.Remove(prefix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removing what is not there: %v", err)
		}
	}
	for _, bad := range []string{"", "x", "../ovl1", "ovl1/../x"} {
		if err := lab.Remove(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("remove %q: %v", bad, err)
		}
	}
}
