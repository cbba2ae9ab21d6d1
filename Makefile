# `make demo` shows it, `make test` tests it; both set up whatever is missing first.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

# Programs of the environment come first, so that its Node.js is used where it has one.
export PATH := $(CURDIR)/$(BIN):$(PATH)

DEMO_FLAGS ?=
PYTEST_FLAGS ?=
LOCK_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench lock docs clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv, with .venv/bin/preview-gateway in it
	@:

$(STAMP): scripts/setup pyproject.toml requirements-dev.lock requirements-node.lock
	@scripts/setup
	@touch $@

demo: setup ## Show the example app live, until Ctrl-C (DEMO_FLAGS="--open")
	@$(BIN)/preview-gateway up examples/vite-react $(DEMO_FLAGS) || [ $$? -eq 130 ] # Ctrl-C

lint: setup ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint ## Run every check and test (PYTEST_FLAGS="-k name")
	$(BIN)/pytest $(PYTEST_FLAGS)

# Every bench/NAME.py that does not begin with "_" is a benchmark with a main program.
BENCH_FLAGS ?=
BENCH ?= $(patsubst bench/%.py,%,$(filter-out bench/_%,$(wildcard bench/*.py)))

bench: setup ## Run the benchmarks (BENCH=proxies BENCH_FLAGS=--quick for one)
	@set -e; for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m bench.$$name $(BENCH_FLAGS); done

lock: setup $(BIN)/uv ## Write the lock files again (LOCK_FLAGS=--upgrade for the newest)
	scripts/lock $(LOCK_FLAGS)

$(BIN)/uv: | $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

docs: setup ## Write the generated parts of the documentation again
	$(BIN)/python scripts/settings_table.py README.md

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find gateway tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
