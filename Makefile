# Everything that is done often. Needs Go and make; the tests and the demo need
# root on Linux for their network namespaces, and -race needs a C compiler.

GO      ?= go
PREFIX  ?= /usr/local
OUT     ?= bin/overlayd
FUZZTIME ?= 10s
# For "make test TESTFLAGS=-v", or PKGS=./tunnel.
PKGS    ?= ./...
TESTFLAGS ?=
# For "make bench-path BENCHFLAGS='-rounds 1'".
BENCHFLAGS ?=

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X github.com/overlayd/overlayd.Version=$(VERSION)

# The version goes in by LDFLAGS; without this, git's refusal to read a checkout
# of another user would end the build.
GOFLAGS ?= -buildvcs=false
export GOFLAGS

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all build demo test lint fuzz bench-path install clean

all: build

build: ## a static binary, bin/overlayd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/overlayd

demo: build ## a whole overlay on this machine, in network namespaces
	$(OUT) demo

# The race detector is on where it works. What it cannot run, virtual time by
# testing/synctest (golang/go issue 76691), stands behind "//go:build !race" in
# its package, which then runs a second time without it. Few packages at a time,
# since many of them are whole clusters with their clocks running.
GOTEST = $(GO) test -count=1 -timeout 10m -p 2 $(TESTFLAGS)
NORACE = $$(grep -rl --include='*_test.go' '^//go:build !race' $(PKGS:%/...=%) | xargs -rn1 dirname | sort -u)

test: ## all tests; those that need root are skipped without it
	@set -e; \
	if ! command -v "$$($(GO) env CC)" >/dev/null || ! CGO_ENABLED=1 $(GO) list -race std >/dev/null 2>&1; then \
		echo "without the race detector, which needs a C compiler"; \
		set -x; $(GOTEST) $(PKGS); exit; \
	fi; \
	(set -x; CGO_ENABLED=1 $(GOTEST) -race $(PKGS)); \
	norace="$(NORACE)"; \
	if [ -n "$$norace" ]; then set -x; $(GOTEST) $$norace; fi

lint: ## formatting, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

fuzz: ## each Fuzz function for FUZZTIME
	GO="$(GO)" .ci/fuzz $(FUZZTIME)

bench-path: build ## the userspace path beside a VXLAN of the kernel; needs root
	$(GO) run ./bench/path -overlayd $(OUT) $(BENCHFLAGS)

install: build ## into PREFIX, /usr/local by default; DESTDIR for packages
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(OUT) $(DESTDIR)$(PREFIX)/bin/overlayd

clean:
	rm -rf bin
