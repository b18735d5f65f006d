# On a fresh machine `make demo` shows the worker at work and `make test` tests it; both set up what is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Here lie the marks of what is done: the virtual environment, the run-time lock, the development lock on top.
DONE := $(VENV)/done
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install
INSTALL := sh worker/sandbox/install_services.sh
LOCKER := build/locker
# The peers of the benchmark bring libraries that the worker must not come to lean on.
BENCH := build/bench-venv
NODE_WORKER := tests/benchmarks/peers/node_worker
# Groups of tests that run beside the others, each on servers of its own: they mostly wait, and for each other in vain.
BESIDE := deaths desk road
deaths := tests/crash
desk := tests/desk tests/ledger tests/demo tests/nodes tests/sandbox tests/properties
road := tests/road

.PHONY: help demo test lint types check bench chaos setup lock clean broker servers

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(DONE)/run-time $(if $(AMQP_URL),,broker) ## watch orders become payments; needs no account
	@$(BIN)/payment-worker demo

test: $(DONE)/development servers ## run every test, on a RabbitMQ and a PostgreSQL of their own (ARGS="-k money" for some)
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	@mkdir -p build
	@pids=; trap 'kill $$pids' INT TERM; \
		$(foreach group,$(BESIDE),$(BIN)/pytest -p no:cacheprovider $($(group)) >build/$(group).log 2>&1 & pids="$$pids $$!"; ) \
		$(BIN)/pytest $(foreach group,$(BESIDE),$($(group):%=--ignore=%)); all=$$?; \
		for pid in $$pids; do wait $$pid || all=1; done; cat $(BESIDE:%=build/%.log); exit $$all
endif

lint: $(DONE)/development ## style, format, and which module may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(DONE)/development ## types, strictly
	$(BIN)/mypy

check: lint types test ## all of the three, as CI does

bench: $(BENCH)/done servers $(if $(shell command -v npm),$(NODE_WORKER)/node_modules/done) ## measure it beside others on this machine (ARGS="--only drain --rounds 5", ARGS=--full)
	$(BENCH)/bin/python -m tests.benchmarks.bench $(ARGS)

chaos: $(DONE)/development servers ## kill, freeze, cut and restart everything, seed after seed (ARGS="--seed 7 --minutes 30")
	$(BIN)/python -m tests.chaos.chaos $(ARGS)

setup: $(DONE)/development servers ## only set up

clean: ## remove the virtual environment, builds and caches
	rm -rf $(VENV) $(NODE_WORKER)/node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

broker:
	@$(INSTALL) rabbitmq

servers:
	@$(INSTALL) rabbitmq postgresql

$(DONE)/environment:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Needed: Python 3.11 or newer with venv. On Debian or Ubuntu: sudo apt-get install python3-venv." \
			"Another one is named by: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/run-time: requirements.txt pyproject.toml | $(DONE)/environment
	@echo "Installing what the worker needs, pinned by hash ..."
	@$(PIP) --require-hashes --requirement requirements.txt
	@$(PIP) --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(DONE)/development: requirements-dev.txt $(DONE)/run-time
	@echo "Installing what the tests need, pinned by hash ..."
	@$(PIP) --require-hashes --requirement requirements-dev.txt
	@touch $@

$(BENCH)/done: tests/benchmarks/requirements.txt | $(DONE)/environment
	@echo "Installing what the benchmark needs, pinned by hash ..."
	@$(BIN)/python -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m pip -qq --disable-pip-version-check install --require-hashes --requirement $<
	@touch $@

$(NODE_WORKER)/node_modules/done: $(NODE_WORKER)/package-lock.json
	@echo "Installing what the peer in Node needs ..."
	@cd $(NODE_WORKER) && npm ci --silent --no-audit --no-fund
	@touch $@

# The run-time lock holds the build system too: the project itself is installed without fetching anything more.
lock: ## pin the newest versions that pyproject.toml allows
	@echo "Resolving the newest versions ..."
	@$(PYTHON) -m venv $(LOCKER)
	@$(LOCKER)/bin/python -m pip -qq --disable-pip-version-check install uv
	@$(LOCKER)/bin/python -c 'import pathlib, tomllib; project = tomllib.loads(pathlib.Path("pyproject.toml").read_text()); \
		print(*project["build-system"]["requires"], sep="\n")' >$(LOCKER)/build.in
	@$(call compile,requirements.txt,)
	@$(call compile,requirements-dev.txt,--extra dev --constraint requirements.txt)
	@$(call compile,tests/benchmarks/requirements.txt,--constraint requirements-dev.txt tests/benchmarks/requirements.in)

compile = echo "\# made by 'make lock' from pyproject.toml" >$(LOCKER)/lock.txt && \
	$(LOCKER)/bin/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.11 \
		--generate-hashes $(2) pyproject.toml $(LOCKER)/build.in >>$(LOCKER)/lock.txt && \
	mv $(LOCKER)/lock.txt $(1)
