// Package control is the local door of a running node: HTTP/1.1 with JSON
// bodies over a unix socket in the node's run directory.
//
// The package carries documents and knows nothing of what they say. The
// requests of a node are:
//
//	GET  /v1/{status,peers,routes,drops,leases,keys}   the document of that name
//	GET  /v1/routes/ADDR                               the one route that ADDR takes
//	POST /v1/ping?target=T&timeout_ms=N                one probe
//	POST /v1/path?target=T&path=P                      keep a peer on a path; how it is sent packets
//	POST /v1/evict?prefix=P                            end the claim of a node that is gone
//	POST /v1/keys?add=HEX, ?use=ID or ?remove=ID       change the keys; the keys document
//	GET  /v1/capture?peer=P&path=P                     packets as pcapng, until the client goes away
//	POST /v1/leave                                     answered when the node has left and stopped
//
// A request that fails is answered with a status code of 400 or more and
// {"error":{"code":"...","message":"one line"}}; see [Error].
//
// # The run directory
//
// A [Lock] on overlayd.lock says who may use the directory; whoever holds it
// may make, replace and remove overlayd.sock. The kernel drops the lock when
// its holder dies, so a socket beside a lock that nobody holds is stale.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
)

// The names of our files in a run directory.
const (
	SocketName = "overlayd.sock"
	LockName   = "overlayd.lock"
)

// The codes of an [Error].
const (
	CodeTimeout = "timeout" // nothing answered in the time given
	CodeRequest = "request" // the request itself is wrong
	CodeBusy    = "busy"    // too many clients at once
	CodeFailed  = "failed"  // anything else
)

var (
	// ErrRunning is returned by Acquire and Serve when a node already uses the
	// run directory.
	ErrRunning = errors.New("another overlayd is already running")
	// ErrNotRunning is returned by a Client when no node answers.
	ErrNotRunning = errors.New("no overlayd is running")
)

// Error is a failure that the node reported. Its text is the node's message.
type Error struct {
	Code    string `json:"code"` // one of the Code constants
	Message string `json:"message"`
}

// Error returns the node's message.
func (e *Error) Error() string { return e.Message }

// Is makes an Error with CodeTimeout a context.DeadlineExceeded, which is what
// the same call on the node itself returns.
func (e *Error) Is(target error) bool {
	return target == context.DeadlineExceeded && e.Code == CodeTimeout
}

// errorBody is how an Error travels.
type errorBody struct {
	Error *Error `json:"error"`
}

// WriteJSON answers a request with a document.
func WriteJSON(w http.ResponseWriter, doc any) {
	b, err := json.Marshal(doc)
	if err != nil {
		WriteError(w, err)
		return
	}
	writeBody(w, http.StatusOK, b)
}

// WriteError answers a request with err: an [*Error] as it is, a deadline that
// has passed as CodeTimeout, anything else as CodeFailed.
func WriteError(w http.ResponseWriter, err error) {
	e := asError(err)
	status := http.StatusInternalServerError
	switch e.Code {
	case CodeTimeout:
		status = http.StatusGatewayTimeout
	case CodeRequest:
		status = http.StatusBadRequest
	case CodeBusy:
		status = http.StatusServiceUnavailable
	}
	writeBody(w, status, e.body())
}

func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, Message: err.Error()}
	}
	return &Error{Code: CodeFailed, Message: err.Error()}
}

func (e *Error) body() []byte {
	b, err := json.Marshal(errorBody{e})
	if err != nil { // two strings: cannot happen
		return []byte(`{"error":{"code":"failed","message":"the error could not be encoded"}}`)
	}
	return b
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client may be gone; there is nobody else to tell.
	_, _ = w.Write(append(body, '\n'))
}
