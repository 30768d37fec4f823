# Every target bootstraps what it needs into .venv; `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PKG := services/kstream-agg
KSTREAM := $(BIN)/kstream-agg
# A module's tests run on one worker, the longest modules first. Tests wait more than they compute, so
# that three workers share two cores.
PARALLEL := -n 3 --dist loadscope --no-loadscope-reorder

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- bootstrap -----------------------------------------------------------------------------

# An environment that was moved, or whose Python is gone, is made anew.
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell cat $(VENV)/.made-in 2>/dev/null; $(BIN)/python -c 'print("works")' 2>/dev/null),$(CURDIR) works)
$(shell rm -f $(VENV)/.runtime $(VENV)/.dev)
endif
endif

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

# --- running -------------------------------------------------------------------------------

# DETACH=1 returns as soon as all is ready; CHANNELS=a,b subscribes to other channels; STACK=local or
# STACK=docker says where it runs (by default in Docker where an engine answers).
export STACK
RUN_FLAGS = $(if $(filter-out 0,$(DETACH)),--detach) $(if $(CHANNELS),--channels '$(CHANNELS)')
DEMO_FLAGS = $(if $(RECORDING),--recording '$(RECORDING)') $(if $(LOOP),--loop '$(LOOP)')

.PHONY: run
run: $(VENV)/.runtime ## Stream live trades from the exchange; Ctrl-C stops (DETACH=1, CHANNELS=…)
	@$(KSTREAM) run $(RUN_FLAGS)

.PHONY: demo
demo: $(VENV)/.runtime ## The same with a recorded session (also RECORDING=FILE, LOOP=0)
	@$(KSTREAM) demo $(RUN_FLAGS) $(DEMO_FLAGS)

.PHONY: status
status: $(VENV)/.runtime ## How the running stack is; exits 0 only when all is healthy
	@$(KSTREAM) status

.PHONY: logs
logs: $(VENV)/.runtime ## The components' logs (s=raw-producer for one of them)
	@$(KSTREAM) logs $(s)

.PHONY: ps
ps: $(VENV)/.runtime ## The parts of the running stack, one a line
	@$(KSTREAM) ps

.PHONY: stop
stop: $(VENV)/.runtime ## Stop the running stack; its data stays
	@$(KSTREAM) stop

.PHONY: reset
reset: $(VENV)/.runtime ## Remove the stacks' data (asks first; YES=1 does not)
	@$(KSTREAM) reset $(if $(filter-out 0,$(YES)),--yes)

.PHONY: example-clickhouse
example-clickhouse: $(VENV)/.runtime ## Any messages into ClickHouse, and two checks of what is there
	@$(BIN)/python examples/clickhouse_demo.py

.PHONY: doctor
doctor: ## Check that this machine has what the stack needs
	@PYTHON=$(PYTHON) sh .ci/bootstrap.sh --check $(VENV)
	@$(MAKE) --no-print-directory $(VENV)/.runtime
	@$(KSTREAM) doctor

.PHONY: uninstall
uninstall: ## Stop, then remove data, downloads and .venv (asks first; YES=1 does not)
	@sh .ci/uninstall.sh $(VENV) $(if $(filter-out 0,$(YES)),--yes)

# --- development ---------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy (strict), the layer contract, shellcheck and hadolint
	$(BIN)/shellcheck .ci/run .ci/*.sh $(PKG)/lock.sh $(PKG)/tests/compose/*.sh \
		$(PKG)/tests/compose/standins/scripts/*
	$(BIN)/hadolint $(PKG)/Dockerfile services/connect/Dockerfile $(PKG)/tests/compose/standins/Dockerfile
	cd $(PKG) && ../../$(BIN)/ruff check . && ../../$(BIN)/ruff format --check .
	cd $(PKG) && ../../$(BIN)/ruff check --config pyproject.toml ../../examples
	cd $(PKG) && ../../$(BIN)/ruff format --config pyproject.toml --check ../../examples
	cd $(PKG) && ../../$(BIN)/mypy && ../../$(BIN)/mypy ../../examples
	cd $(PKG) && ../../$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Let ruff format and fix what it can
	cd $(PKG) && ../../$(BIN)/ruff check --fix . ; ../../$(BIN)/ruff format .

.PHONY: test-unit
test-unit: $(VENV)/.dev ## The tests that need no stack (half a minute)
	cd $(PKG) && ../../$(BIN)/pytest $(PARALLEL) -m "not stack and not e2e and not faults and not soak" $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## All tests, against the real local stack
	cd $(PKG) && ../../$(BIN)/pytest $(PARALLEL) -m "not faults and not soak" $(ARGS)

.PHONY: test-faults
test-faults: $(VENV)/.dev ## Kill, stop, starve and lie to the services under load (12 min)
	cd $(PKG) && ../../$(BIN)/pytest $(PARALLEL) -m faults $(ARGS)

.PHONY: test-compose
test-compose: $(VENV)/.dev ## The stack in containers: built, run, broken, mended (12 min, Docker)
	@sh $(PKG)/tests/compose/run.sh $(CURDIR)/$(VENV) $(ARGS)

.PHONY: test-soak
test-soak: $(VENV)/.dev ## No broker for ten minutes, ten million trades, 30 brokers killed (40 min)
	cd $(PKG) && ../../$(BIN)/pytest -m soak $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## Measure; one JSON line each (ONLY=name for one)
	cd $(PKG) && ../../$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev ## Write docs/api.md anew from the docstrings
	cd $(PKG) && ../../$(BIN)/python tests/support/api_docs.py ../../docs/api.md

.PHONY: lock
lock: $(VENV)/.dev ## Write the requirement lock files anew (needs uv)
	sh $(PKG)/lock.sh
