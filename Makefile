# Everything a newcomer types. Nothing is written outside this checkout, $RBEE_HOME and the caches.

PYTHON ?= python3
VENV := .venv/bin
PROMPT ?= Why is the sky blue?
PYTEST ?=
NAME ?=
GPU_PYTHON ?= 3.12
# Processes of pytest, for two cores: half of the tests wait for something that is not this machine's work.
JOBS ?= 4
# llama.cpp takes minutes to build: once for this machine, not for each checkout.
export RBEE_WHEEL_CACHE ?= $(HOME)/.cache/rbee/wheels
# Tests start hundreds of processes: what they run is compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup dev infer test lint unit peers bench gpu-pack dist release clean

help:
	@echo 'make infer PROMPT="..."  set up and ask the built-in model on this machine'
	@echo 'make test                set up and run every check: ruff, mypy --strict, pytest'
	@echo 'make unit                the tests that need neither a model nor containers'
	@echo 'make lint                ruff and mypy alone'
	@echo 'make bench [NAME=warm]   the benchmarks, or one of them'
	@echo "make peers               llama.cpp's own tests of its server, against a worker"
	@echo 'make gpu-pack            .gpu-pack/: what a GPU machine without internet needs for benchmarks/gpu'
	@echo 'make dist                dist/rbee-linux-*: rbee in one file'
	@echo 'make release             dist/: sdist, wheel, one file and signed checksums, once all that is checked'
	@echo 'make clean               remove what was built in this checkout'

setup:
	@$(PYTHON) tools/setup_venv.py

infer: setup
	@$(VENV)/rbee infer "$(PROMPT)"

dev:
	@$(PYTHON) tools/setup_venv.py --dev
	@$(VENV)/python tools/install_engine.py

lint: dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy --strict

unit: dev
	$(VENV)/pytest -m "not model and not container" $(PYTEST)

# What the tests import is compiled beside mypy, which has work for one core: else each process of theirs compiles it.
test: dev
	@$(VENV)/pytest --collect-only -qq >/dev/null 2>&1 & compiling=$$!; \
	$(MAKE) --no-print-directory lint; status=$$?; wait $$compiling; exit $$status
	@$(VENV)/python -m tests.testbed.assets
	@$(VENV)/python -m tests.peers.environments
	$(VENV)/pytest -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

peers: dev
	@$(VENV)/python -m tests.peers.llama_tests $(NAME)

bench: dev
	$(VENV)/python -m benchmarks $(NAME)

# For that machine's Python.
gpu-pack: setup
	@$(VENV)/python -m benchmarks.gpu.pack --python $(GPU_PYTHON)

# Who names a PYTHON wants that one inside; else it is the one that needs the oldest glibc.
dist release: export DIST_PYTHON = $(if $(filter command line environment,$(origin PYTHON)),$(PYTHON))

dist: setup
	@$(VENV)/python tools/one_file/build.py $(if $(DIST_PYTHON),--python "$(DIST_PYTHON)")

release: setup
	@$(VENV)/python -m tools.release

clean:
	rm -rf .venv .gpu-pack .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
