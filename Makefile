# Every target bootstraps what it needs into .venv; `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PKG := services/kstream-agg
KSTREAM := $(BIN)/kstream-agg

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- bootstrap -----------------------------------------------------------------------------

# The runtime with the local stack's Java and Postgres wheels: what `make run` and `make demo` need.
$(VENV)/.runtime: $(PKG)/requirements-stack.lock $(PKG)/pyproject.toml .ci/bootstrap.sh
	@PYTHON=$(PYTHON) sh .ci/bootstrap.sh requirements-stack.lock $(VENV)
	@touch $@

# The same and the tools of development.
$(VENV)/.dev: $(PKG)/requirements-dev.lock $(PKG)/pyproject.toml .ci/bootstrap.sh
	@PYTHON=$(PYTHON) sh .ci/bootstrap.sh requirements-dev.lock $(VENV)
	@touch $(VENV)/.runtime $@

.PHONY: setup
setup: $(VENV)/.runtime ## Create .venv with what the services need

.PHONY: setup-dev
setup-dev: $(VENV)/.dev ## Create .venv with the development tools too

# --- development ---------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy (strict) and the layer contract
	cd $(PKG) && ../../$(BIN)/ruff check . && ../../$(BIN)/ruff format --check .
	cd $(PKG) && ../../$(BIN)/mypy
	cd $(PKG) && ../../$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Let ruff format and fix what it can
	cd $(PKG) && ../../$(BIN)/ruff check --fix . ; ../../$(BIN)/ruff format .

.PHONY: test-unit
test-unit: $(VENV)/.dev ## The tests that need no stack (under 30 s)
	cd $(PKG) && ../../$(BIN)/pytest -m "not stack and not e2e" $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## All tests, against the real local stack
	cd $(PKG) && ../../$(BIN)/pytest $(ARGS)

.PHONY: lock
lock: $(VENV)/.dev ## Write the requirement lock files anew (needs uv)
	sh $(PKG)/lock.sh
