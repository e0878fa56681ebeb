# Everything that is done often. Needs Go and make; the tests and the demo need
# root on Linux for their network namespaces, and -race needs a C compiler.

GO      ?= go
PREFIX  ?= /usr/local
# One of the directories where podman looks for CNI plugins; others are told.
CNIDIR  ?= $(PREFIX)/libexec/cni
OUT     ?= bin/overlayd
FUZZTIME ?= 10s
# For "make test TESTFLAGS=-v", or PKGS=./tunnel.
PKGS    ?= ./...
TESTFLAGS ?=
# For "make bench BENCHFLAGS='--paths kernel-vxlan,userspace-udp --rounds 9'".
BENCHFLAGS ?=
# For "make bench FLANNELD=path"; ETCD=path where etcd is not in PATH.
FLANNELD ?=
ETCD     ?=
# What "make bench-micro" runs, and how often.
MICRO    ?= .
COUNT    ?= 6

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X github.com/overlayd/overlayd.Version=$(VERSION)

# The version goes in by LDFLAGS; without this, git's refusal to read a checkout
# of another user would end the build.
GOFLAGS ?= -buildvcs=false
export GOFLAGS

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all build demo test lint fuzz bench bench-build bench-quick bench-flood bench-micro package package-check install clean

all: build

build: ## static binaries, bin/overlayd and the CNI plugin bin/overlayd-cni
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/overlayd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(OUT)-cni ./cmd/overlayd-cni

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

# Built and run, not "go run": a signal reaches the program itself.
bench-build: build
	$(GO) build -o bin/overlayd-bench ./bench

bench: export FLANNELD := $(FLANNELD)
bench: export ETCD := $(ETCD)
bench: bench-build ## every path and other systems side by side, into bench/out; needs root, takes 10 minutes
	bin/overlayd-bench --overlayd $(OUT) $(BENCHFLAGS)

bench-quick: bench-build ## the same in 2 minutes, less exact, with nothing installed
	bin/overlayd-bench --overlayd $(OUT) --quick $(BENCHFLAGS)

bench-flood: build ## what junk of a stranger leaves of a TCP stream
	$(GO) run ./bench/flood -overlayd $(OUT) $(BENCHFLAGS)

bench-micro: ## the parts by themselves: bench/out/micro.txt is for benchstat
	mkdir -p bench/out
	$(GO) test -run '^$$' -bench '$(MICRO)' -benchmem -count $(COUNT) ./tunnel ./encap ./internal/forward ./membership >bench/out/micro.txt; \
		code=$$?; cat bench/out/micro.txt; exit $$code

# The .deb and the .rpm for this architecture, in bin/package.
NFPM = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
DIST = bin/package/files
# A package's version begins with a number; without a tag it is before all others. What
# "git describe" appends to a tag makes it a later one, not one that leads to the tag.
PKGVERSION ?= $(shell echo '$(or $(patsubst v%,%,$(filter v0% v1% v2% v3% v4% v5% v6% v7% v8% v9%,$(VERSION))),0.0.0-dev+$(VERSION))' | \
	sed -E 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; /\+/s/-dirty$$/.dirty/; s/-dirty$$/+dirty/')

# Go for this machine, also when the package is for another: "make package GOARCH=arm64".
HERE = env -u GOOS -u GOARCH $(GO)

package: ## a .deb and a .rpm, in bin/package
	rm -rf bin/package && mkdir -p $(DIST)/man $(DIST)/completion
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/ ./cmd/overlayd ./cmd/overlayd-cni
	sed 's|/usr/local/bin/|/usr/bin/|; s|^\# /etc/systemd.*||' examples/two-hosts/overlayd.service >$(DIST)/overlayd.service
	$(HERE) test -count=1 ./cmd/overlayd -run '^TestManPages$$' -man "$(CURDIR)/$(DIST)/man"
	gzip -9n $(DIST)/man/*.1
	$(HERE) run ./cmd/overlayd completion bash >$(DIST)/completion/overlayd.bash
	$(HERE) run ./cmd/overlayd completion fish >$(DIST)/completion/overlayd.fish
	$(HERE) run ./cmd/overlayd completion zsh >$(DIST)/completion/_overlayd
	for kind in deb rpm; do \
		ARCH="$$($(GO) env GOARCH)" VERSION='$(PKGVERSION)' \
			$(HERE) run $(NFPM) package -f cmd/overlayd/package/nfpm.yaml -p $$kind -t bin/package/ || exit 1; \
	done

package-check: package ## installs, upgrades and purges both on clean Debians, and types what the pages say; needs root and mmdebstrap
	bash cmd/overlayd/package/check-all.sh bin/package

install: build ## into PREFIX, /usr/local by default; DESTDIR for packages
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(CNIDIR)
	install -m 755 $(OUT) $(DESTDIR)$(PREFIX)/bin/overlayd
	install -m 755 $(OUT)-cni $(DESTDIR)$(CNIDIR)/overlayd-cni

clean:
	rm -rf bin
