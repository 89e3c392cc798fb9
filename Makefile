# Everything that is done to this repository often. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The version is passed on and VCS stamping is off: git refuses to answer in a
# checkout that belongs to another user, and the build would fail with it.
BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
STATICCHECK := go tool -modfile=e2e/tools/go.mod staticcheck
REPORT := build/report

# Packages whose tests also run under the race detector, because goroutines
# meet in them.
RACE := ./fsm/... ./cluster/... ./agent/... ./api/... ./plugins/...

# How long each fuzz target and the soak run; as Go writes durations.
FUZZTIME ?= 1m
SOAKTIME ?= 1h

# As root on Linux the tests that boot real guests can run, so skipping them
# is a failure there.
ifeq ($(shell uname -s)-$(shell id -u),Linux-0)
export DEBVISOR_REQUIRE_LIBVIRT ?= 1
endif

.PHONY: help build build-clients demo test race lint fmt bench fuzz soak e2e generate guest setup setup-race setup-bench check-go clean $(REPORT)

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

build: check-go ## build bin/debvisor, static and stripped
	$(BUILD) -o bin/debvisor ./cmd/debvisor

build-clients: check-go ## check that the client commands build for macOS and Windows
	GOOS=darwin GOARCH=arm64 $(BUILD) -o build/darwin/debvisor ./cmd/debvisor
	GOOS=windows GOARCH=amd64 $(BUILD) -o build/windows/debvisor.exe ./cmd/debvisor

demo: setup build guest ## start three nodes here and boot a real guest from an HCL file
	go build -o build/demo ./e2e/demo
	build/demo

test: setup setup-race build guest $(REPORT) ## install what the tests need, then run all of them
	$(REPORT) \
	  -check 'make build-clients' \
	  -check 'go vet ./...' \
	  -check '$(STATICCHECK) ./...' \
	  -check 'make scripts' \
	  -test 'unit: -timeout 15m ./... !./e2e/...' \
	  -test 'race: -race -timeout 20m $(RACE)' \
	  -test 'e2e: -count=1 -p 1 -timeout 30m ./e2e/...'

race: setup-race $(REPORT) ## run the tests of the packages that share memory under the race detector
	$(REPORT) -test 'race: -race -timeout 20m $(RACE)'

lint: check-go ## check house rules, layers, gofmt, vet, staticcheck and the scripts
	go test -count=1 ./e2e/lint
	go vet ./...
	$(STATICCHECK) ./...
	@$(MAKE) scripts

.PHONY: scripts
scripts: # bash reads every script; shellcheck too, where it is installed
	for script in .ci/run e2e/setup/*.sh; do bash -n "$$script"; done
	if command -v shellcheck >/dev/null; then shellcheck .ci/run e2e/setup/*.sh; fi

fmt: ## format the Go files
	gofmt -w $$(git ls-files --cached --others --exclude-standard '*.go')

bench: setup-bench build ## measure, side by side with bare Raft and with etcd; BENCH takes flags
	go build -o build/bench ./e2e/bench
	build/bench $(BENCH)

fuzz: check-go ## run every fuzz target for FUZZTIME (1m)
	e2e/setup/fuzz.sh $(FUZZTIME)

soak: setup build guest $(REPORT) ## run the long tests for SOAKTIME (1h)
	DEBVISOR_SOAK=$(SOAKTIME) $(REPORT) -test 'soak: -tags soak -count=1 -p 1 -timeout 0 -run ^TestSoak ./e2e/cluster'

e2e: setup build guest $(REPORT) ## run the tests with real processes and real guests
	$(REPORT) -test 'e2e: -count=1 -p 1 -timeout 30m ./e2e/...'

generate: check-go ## write docs/objects.md from the comments in api
	go run ./e2e/gen

guest: bin/guest/tiny.qcow2 ## make the tiny guest of the demo and the tests in bin/guest

bin/guest/tiny.qcow2: $(wildcard e2e/lab/*.go e2e/lab/*.sh e2e/lab/cmd/guest/*.go) | setup
	go run ./e2e/lab/cmd/guest -out bin/guest

setup: check-go ## install the Debian packages that the tests and the demo need
	e2e/setup/install.sh e2e/lab/packages.txt

setup-race: check-go
	e2e/setup/install.sh e2e/setup/race-packages.txt

setup-bench: check-go
	e2e/setup/install.sh e2e/setup/bench-packages.txt

clean: ## remove what was built
	rm -rf bin build

check-go:
	@go version >/dev/null || { echo "make: Go is missing; install Go 1.26 from https://go.dev/dl"; exit 1; }
	@[[ "$$(go env GOVERSION)" =~ ^go1\.(2[1-9]|[3-9][0-9]) || "$$(go env GOVERSION)" == devel* ]] || \
	  { echo "make: $$(go env GOVERSION) is too old; install Go 1.26, or any from 1.21 on, which fetches 1.26 by itself"; exit 1; }

$(REPORT): check-go
	@go build -o $(REPORT) ./e2e/report
