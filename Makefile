# cri-engine. "make help" lists what there is.

# Where "make install" puts things. DESTDIR is put before all of them.
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR    ?=

# What binaries call themselves: by semver.org, since the kubelet parses it, and
# without a "+", so that it can be an image's tag.
VERSION := $(or $(VERSION),$(shell git describe --tags --match 'v*' --dirty=.dirty 2>/dev/null | sed 's/^v//' | grep . || \
	echo 0.1.0-dev.g$$(git describe --always --exclude '*' --dirty=.dirty 2>/dev/null || echo unknown)))

# No cgo and these tags: signatures are checked in Go, btrfs wants cgo, no WebAssembly for NRI plugins.
TAGS    := containers_image_openpgp exclude_graphdriver_btrfs nri_no_wasm
LDFLAGS := -s -w -X main.version=$(VERSION)
GO      := CGO_ENABLED=0 go
BUILD   := $(GO) build -trimpath -tags '$(TAGS)'

PLUGINS        := github.com/containernetworking/plugins
PLUGIN_VERSION  = $(shell go list -m -f '{{.Version}}' $(PLUGINS))

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### Build

.PHONY: build
build: engine plugins ## build the engine, the monitor and the CNI plugins into bin/

.PHONY: engine
engine: ## build the engine and the monitor only
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: plugins
plugins: ## build the pinned CNI plugins into bin/cni/
	$(BUILD) -ldflags '-s -w -X $(PLUGINS)/pkg/utils/buildversion.BuildVersion=$(PLUGIN_VERSION)' \
		-o bin/cni/ $$(go list tool | grep '^$(PLUGINS)/')

.PHONY: runc
runc: bin/runc ## build the pinned runc, static

bin/runc: tools/runc/go.mod tools/runc/go.sum
	hack/setup.sh build
	cd tools/runc && CGO_ENABLED=1 go build -trimpath -tags 'seccomp netgo osusergo' \
		-ldflags '-s -w -linkmode external -extldflags -static' -o ../../bin/runc github.com/opencontainers/runc

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

##### Try and test

.PHONY: demo
demo: ## a pod from pull to removal, in scratch directories (IMAGE=… for an image of your own)
	hack/setup.sh demo
	@$(MAKE) --no-print-directory build runc
	demo/demo.sh $(IMAGE)

.PHONY: test
test: ## all that must pass: unit tests, lint, end-to-end tests on this host
	hack/setup.sh test
	@$(MAKE) --no-print-directory test-unit lint test-e2e

.PHONY: test-unit
test-unit: ## unit tests with the race detector; no root, no network
	CGO_ENABLED=1 go test -race -tags '$(TAGS)' ./...

.PHONY: test-e2e
test-e2e: build runc ## end-to-end tests: root, real runc, CNI and registry, on loopback only
	PATH='$(CURDIR)/bin':"$$PATH" go test -tags '$(TAGS) e2e' -count=1 -timeout 40m ./test/e2e

.PHONY: test-vm
test-vm: build runc ## end-to-end tests in a VM: systemd, cgroup v2, AppArmor, crun (ALL=1: all of them)
	hack/setup.sh vm
	test/vm/test.sh '$(TAGS)'

.PHONY: test-kubelet
test-kubelet: build runc bin/kubelet ## a real kubelet runs pods on the engine and is disturbed; root
	hack/setup.sh test
	PATH='$(CURDIR)/bin':"$$PATH" go test -tags '$(TAGS) e2e kubelet' -count=1 -timeout 40m -run '^TestKubelet' ./test/e2e

# Some minutes, once. Without the version it would call itself v0.0.0.
bin/kubelet: tools/kubelet/go.mod tools/kubelet/go.sum
	cd tools/kubelet && $(GO) build -trimpath -o ../../bin/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes)" \
		k8s.io/kubernetes/cmd/kubelet

.PHONY: test-image
test-image: build ## build the image twice on bases of our own and start what is in it
	hack/setup.sh image
	test/image/image.sh

.PHONY: critest
critest: build runc bin/critest ## Kubernetes' conformance suite for CRI; FLAGS='--mirror HOST:PORT' where there are no public registries
	PATH='$(CURDIR)/bin':"$$PATH" go run -tags '$(TAGS)' ./test/critest $(FLAGS)

# ginkgo runs specs side by side; crictl is the client that people know.
bin/critest: tools/cri-tools/go.mod tools/cri-tools/go.sum
	cd tools/cri-tools && $(GO) build -trimpath -ldflags '-s -w' -o ../../bin/ sigs.k8s.io/cri-tools/cmd/crictl github.com/onsi/ginkgo/v2/ginkgo
	cd tools/cri-tools && $(GO) test -c -trimpath -ldflags '-s -w' -o ../../bin/critest sigs.k8s.io/cri-tools/cmd/critest

.PHONY: bench
bench: build runc ## measure pods, exec, logs and memory; FLAGS=… for another endpoint
	PATH='$(CURDIR)/bin':"$$PATH" go run -tags '$(TAGS)' ./test/bench $(FLAGS)

.PHONY: lint
lint: bin/golangci-lint bin/govulncheck ## gofmt, go vet, golangci-lint, known vulnerabilities
	hack/lint.sh '$(TAGS)'

bin/golangci-lint: tools/golangci-lint/go.mod tools/golangci-lint/go.sum
	cd tools/golangci-lint && $(GO) build -trimpath -ldflags '-s -w' -o ../../bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

bin/govulncheck: tools/govulncheck/go.mod tools/govulncheck/go.sum
	cd tools/govulncheck && $(GO) build -trimpath -ldflags '-s -w' -o ../../bin/ golang.org/x/vuln/cmd/govulncheck

##### Ship

.PHONY: install
install: build ## install under PREFIX (/usr/local); edited files in /etc stay
	PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' hack/install.sh install

.PHONY: uninstall
uninstall: ## take back what install did; edited files in /etc stay
	PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' hack/install.sh uninstall

.PHONY: image
image: ## build the container image with buildah (BUILD_IMAGE=, BASE_IMAGE=, IMAGE_TAG=)
	hack/setup.sh image
	VERSION='$(VERSION)' hack/image.sh
