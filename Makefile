# `make demo` shows it, `make test` tests it; both set up whatever is missing first.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

# Programs of the environment come first, so that its Node.js is used where it has one.
export PATH := $(CURDIR)/$(BIN):$(PATH)

DEMO_FLAGS ?=
PYTEST_FLAGS ?=
LOCK_FLAGS ?=

# Most tests wait for other processes: side by side they take half the time. What measures how much
# memory and how many descriptors are left runs beside no other test.
TEST_WORKERS ?= 3
BESIDE_EACH_OTHER := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 3
ALONE := tests/soak

# The gateway with its data plane compiled. PYTHONPATH puts it before the sources; the others keep
# `python -m` and pytest from putting the current folder before both.
COMPILED := build/compiled
PYTEST_COMPILED := PYTHONPATH=$(CURDIR)/$(COMPILED) PYTHONSAFEPATH=1 \
	$(BIN)/pytest --build compiled --import-mode append
# What runs once more on it: all tests of the data plane's parts, and some of whole gateways.
COMPILED_UNITS := access answers build cookies deadlines drain forwarded frames handshake heads http1 lines \
	locations messages outbox pace pages place profile requests responses routes trailers turns \
	viewers workers
COMPILED_TESTS ?= $(COMPILED_UNITS:%=tests/unit/test_%.py) tests/protocol tests/fuzz \
	tests/e2e/test_main_job.py tests/e2e/test_streams.py tests/e2e/test_loopback.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-sources test-others test-pure test-soak test-compiled test-image \
	prepare-image test-k8s preparations compiled compiled-where-possible lint bench fuzz lock docs \
	clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

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

# Compiling, and the downloads for the images, go on while tests mostly wait. To make the images, too,
# beside the pure build's tests gained nothing.
test: setup ## Run every check and test (PYTEST_FLAGS="-k name")
	@$(MAKE) --no-print-directory -j2 test-sources preparations
	@$(MAKE) --no-print-directory -j2 test-others test-image

preparations:
	@$(MAKE) --no-print-directory compiled-where-possible
	@$(MAKE) --no-print-directory prepare-image

test-sources:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-pure

test-others:
	@$(MAKE) --no-print-directory test-compiled
	@$(MAKE) --no-print-directory test-soak

# pytest's status 5: none of these tests was meant by PYTEST_FLAGS. Status 1: some have failed. If that
# was beside others, they run once more by themselves, where they have to pass: a failure that only a
# busy machine shows is in the output, to be mended, and does not stop all. A test that ended its
# worker has run again in the next one: if it passed there, none is left (status 5).
NONE_MEANT = { [ $$? -eq 5 ] && [ -n "$(strip $(PYTEST_FLAGS))" ]; }
ONE_BY_ONE = --last-failed --last-failed-no-failures none
judged = { status=$$?; ( exit $$status ) || $(NONE_MEANT) || { [ $$status -eq 1 ] && \
	echo "test: once more by themselves, those that failed beside others" && \
	{ $(1) $(ONE_BY_ONE) || [ $$? -eq 5 ]; }; }; }

TESTS = $(BIN)/pytest $(addprefix --ignore=,$(ALONE)) $(PYTEST_FLAGS)

test-pure: setup
	$(TESTS) $(BESIDE_EACH_OTHER) || $(call judged,$(TESTS))

test-soak: setup
	$(BIN)/pytest $(ALONE) $(PYTEST_FLAGS) || $(NONE_MEANT)

TESTS_COMPILED = $(PYTEST_COMPILED) $(COMPILED_TESTS) $(PYTEST_FLAGS)

test-compiled: setup
	@if ! scripts/can-compile && [ -z "$$CI" ]; then \
		echo "test: no C compiler, or no headers of Python: the compiled build is not tested"; \
	else \
		$(MAKE) --no-print-directory compiled && \
		{ $(TESTS_COMPILED) $(BESIDE_EACH_OTHER) || $(call judged,$(TESTS_COMPILED)); } && \
		{ $(PYTEST_COMPILED) $(ALONE) $(PYTEST_FLAGS) || $(NONE_MEANT); }; \
	fi

CAN_CHECK_IMAGE = { [ -n "$$CI" ] || { [ "$$(id -u)" = 0 ] && command -v buildah && \
	command -v crun && command -v mmdebstrap; } >/dev/null; }

test-image: setup ## Build the images and run them (Debian, as root)
	@if $(CAN_CHECK_IMAGE); then scripts/check-image; else \
		echo "test: no root, buildah, crun or mmdebstrap: the images are not checked"; fi

prepare-image: setup
	@! $(CAN_CHECK_IMAGE) || scripts/check-image --prepare

test-k8s: setup ## Test replicas on the cluster that kubectl points to
	PREVIEW_K8S_TEST=1 $(BIN)/pytest tests/k8s --junit-xml build/k8s-test/junit.xml $(PYTEST_FLAGS)

compiled: $(COMPILED)/.stamp ## Compile the data plane, into build/compiled
	@:

compiled-where-possible: setup
	@! scripts/can-compile || $(MAKE) --no-print-directory compiled

# Files, not folders: those change when Python writes its caches into them.
$(COMPILED)/.stamp: $(STAMP) hatch_build.py scripts/compile $(shell find gateway -name __pycache__ -prune -o -type f -print)
	@scripts/compile $(COMPILED)
	@touch $@

# Every bench/NAME.py that does not begin with "_" is a benchmark with a main program.
BENCH_FLAGS ?=
BENCH ?= $(patsubst bench/%.py,%,$(filter-out bench/_%,$(wildcard bench/*.py)))

bench: setup ## Run the benchmarks (BENCH=proxies BENCH_FLAGS=--quick for one)
	@set -e; for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m bench.$$name $(BENCH_FLAGS); done

FUZZ_SECONDS ?= 60

fuzz: setup ## Hold the parsers against the oracle (FUZZ_SECONDS=60 for each)
	@set -e; for side in requests responses frames; do \
		echo "== $$side"; mkdir -p build/fuzz/$$side; \
		$(BIN)/python -m tests.fuzz.guided $$side -max_total_time=$(FUZZ_SECONDS) \
			-artifact_prefix=build/fuzz/ build/fuzz/$$side; \
	done

lock: setup $(BIN)/uv ## Write the lock files again (LOCK_FLAGS=--upgrade for the newest)
	scripts/lock $(LOCK_FLAGS)

$(BIN)/uv: | $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

docs: setup ## Write the generated parts of the documentation again
	$(BIN)/python scripts/settings_table.py README.md
	$(BIN)/python scripts/fault_table.py docs/faults.md
	$(BIN)/python scripts/api_reference.py docs/api.md
	$(BIN)/python -m bench.sizing --record

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find gateway tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
