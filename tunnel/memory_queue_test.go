package tunnel

import "testing"

// Two events may leave a single token, when nobody was waiting yet: whoever
// takes it must leave one for the next as long as there is something for him.
func TestMemoryQueueTokens(t *testing.T) {
	token := func(what string, c chan struct{}, want bool) {
		t.Helper()
		select {
		case <-c:
			if !want {
				t.Errorf("%s: there is a token", what)
			}
		default:
			if want {
				t.Errorf("%s: there is no token", what)
			}
		}
	}
	var q memoryQueue
	q.init(3)
	p := &Packet{Data: []byte{0x45}}
	for range 3 {
		q.push(p)
	}
	token("3 packets", q.filled, true)
	token("3 packets, taken", q.filled, false)
	q.pop(p)
	token("2 packets left", q.filled, true)
	q.popAll([]Packet{{Data: make([]byte, 1)}}, 1)
	token("1 packet left", q.filled, true)
	q.pop(p)
	token("nothing left", q.filled, false)

	token("room for 3", q.emptied, true)
	token("room for 3, taken", q.emptied, false)
	q.push(p)
	token("room for 2", q.emptied, true)
	q.push(p)
	token("room for 1", q.emptied, true)
	q.push(p)
	token("full", q.emptied, false)
}
