# Greenlight. `make release` does a whole release against the sandbox, `make test` is what a change must pass.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GOFUMPT     := go run mvdan.cc/gofumpt@v0.9.2
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.6.1
RUFF        := ruff==0.14.5

SANDBOX := go run ./tests/sandbox
# The scanner is a module of its own and needs this experiment on Go 1.26 (docs/adr/0001). All that compiles it uses the
# same flags, because compiling Trivy takes minutes; go vet would analyse all of Trivy as well, for ten minutes more.
SCAN := cd pipelines/scan && GOEXPERIMENT=jsonv2 CGO_ENABLED=0

.PHONY: help
help: ## Print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: release
release: up ## Release a new version of the example service against the sandbox, under load
	@eval "$$($(SANDBOX) env)"; go run ./tests/rehearsal/rehearse --out out

.PHONY: test
test: check up ## Everything that must hold before a change lands
	@eval "$$($(SANDBOX) env)"; go test -count=1 -timeout 80m -v ./tests/ci/... ./tests/integration/... ./tests/e2e/...

.PHONY: check
check: ## Format, vet, lint, unit tests
	@unformatted="$$($(GOFUMPT) -l ci cmd images manifests pipelines tests 2>/dev/null || true)"; \
	  if [ -n "$$unformatted" ]; then echo "not formatted (run 'make format'):"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...
	go test -race ./cmd/... ./pipelines/... ./manifests/... ./tests/bench/... ./tests/ci/... ./tests/load/... ./tests/rehearsal/... ./tests/sandbox/...
	cd ci && go test ./address
	$(SCAN) go test -trimpath -vet=off ./...

.PHONY: format
format: ## Format the Go code
	$(GOFUMPT) -w ci cmd images manifests pipelines tests

.PHONY: bench
bench: up ## Measure; writes out/bench.json
	@eval "$$($(SANDBOX) env)"; go run ./tests/bench --out out/bench.json

.PHONY: up
up: ## Bring the sandbox up (idempotent)
	@$(SANDBOX) up

.PHONY: down
down: ## Stop and remove all that the sandbox started
	@$(SANDBOX) down
