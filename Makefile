# vic: see "make help". Every target sets up what it needs by itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

export VIC_CACHE ?= $(CURDIR)/.cache
KERNEL_VERSION := $(shell sed -n "s/^readonly KERNEL_VERSION='\(.*\)'/\1/p" scripts/setup)
KERNEL_TREE    := $(VIC_CACHE)/kernel/$(KERNEL_VERSION)
GO_FILES       := $(shell find . -name '*.go' -not -path './.cache/*')

# What tests find by environment: the unpacked kernel package. Everything else
# boots the kernel that this module has.
export VIC_TEST_KERNEL_TREE := $(KERNEL_TREE)

FUZZTIME ?= 3m
BENCH    ?= .

.PHONY: help setup build release kernel demo test test-short bench soak determinism fuzz plant lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install the Debian packages that are missing, fetch the pinned guest kernel
	@scripts/setup

build: bin/vic ## bin/vic

bin/vic: $(GO_FILES) go.mod go.sum
	CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/vic

release: ## bin/vic that carries the tether, for machines without Go
	go generate ./bootiso
	CGO_ENABLED=0 go build -trimpath -tags vic_release -o bin/vic ./cmd/vic

kernel: ## the guest kernel: built from source, and compared with the tracked one
	@scripts/setup --kernel-build
	bootiso/kernel/build

demo: build ## the main job on the lab: registry, VCH, pull, run, delete
	@scripts/setup --no-kernel
	go run ./internal/demo --vic bin/vic

test: setup build ## everything, booting real VMs, with the race detector where things go on at once
	go vet ./...
	scripts/test

test-short: ## what needs neither QEMU nor root
	go test -short ./...

bench: setup build ## the performance table
	go test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 60m ./internal/bench ./vic/imagestore

soak: setup build determinism fuzz plant ## what takes long: fuzzing, bugs planted for it to find, large trees, images and output, kills
	VIC_SOAK=1 go test -v -timeout 60m -run 'TestDebian|TestPowerCut|TestBIOS' ./internal/ext4 ./internal/testimage ./bootiso
	VIC_SOAK=1 go test -v -timeout 60m -run 'TestKill|TestCutOff' ./vic/imagestore
	VIC_SOAK=1 go test -v -timeout 120m -run 'TestRealImages|TestTreeAfterEveryLayer' ./vic/imagestore
	VIC_SOAK=1 go test -v -timeout 60m -run TestKilledController ./cmd/vic
	VIC_SOAK=1 go test -v -timeout 60m -run 'TestOutputOfAGigabyte|TestRun$$' ./vic/engine

determinism: setup ## the same bytes on machines of 32 and 64 bits and of both byte orders
	scripts/determinism

fuzz: ## every fuzz target for FUZZTIME (3m) each under a memory cap, with its coverage
	scripts/fuzz $(FUZZTIME)

plant: ## bugs planted in a copy, one for each parser, that fuzzing must find
	go run ./internal/plant

lint: ## golangci-lint, where it is installed
	golangci-lint run

clean: ## remove what was built; the cache of downloads stays
	rm -rf bin $(VIC_CACHE)/bootiso
