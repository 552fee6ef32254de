# Everything a newcomer needs. `make hello` and `make test` install what they need with apt (root, Debian or Ubuntu) and into .venv.
.DEFAULT_GOAL := help
.PHONY: help hello test check bench bench-network bench-transfer bench-build core launcher venv clean system-build system-test system-bench system-transfer

SYSTEM_PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Those tests that change the host run in one of them, one after the other: tests/conftest.py.
TEST_PROCESSES ?= 2

help:
	@echo "make hello    install what is missing, build the example image from its Dockerfile and run it (root)"
	@echo "make test     install what the tests need and run them all (root)"
	@echo "make check    lint and type-check"
	@echo "make bench    measure Knarr beside whichever of docker, podman, crun and runc is here (BENCH_ARGS=...)"
	@echo "make bench-network    the same for networks: starts, throughput, names, crowds"
	@echo "make bench-transfer   the same for pulling, pushing and serving images"
	@echo "make bench-build      the same for building images"
	@echo "make core     build the extension in place"
	@echo "make clean    remove what was built (.venv stays)"

hello: core launcher
	mkdir -p build/hello
	$(CC) -O2 -static -o build/hello/hello examples/hello/hello.c
	$(BIN)/knarr build -f examples/hello/Dockerfile -t hello build/hello
	$(BIN)/knarr run --rm --network none hello

test: core launcher system-test $(VENV)/.dev
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup $(PYTEST_ARGS)

check: $(VENV)/.dev core
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: core launcher system-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-network: core launcher system-bench
	$(BIN)/python -m benchmarks.network $(BENCH_ARGS)

bench-transfer: core launcher system-transfer
	$(BIN)/python -m benchmarks.transfer $(BENCH_ARGS)

bench-build: core launcher system-bench
	$(BIN)/python -m benchmarks.builds $(BENCH_ARGS)

core: $(VENV)/.deps
	flock .build.lock $(BIN)/python setup.py -q build_ext --inplace

launcher: $(VENV)/.deps
	$(BIN)/python packaging/launcher.py $(BIN)/knarr

venv: $(VENV)/.deps

# Stamps: the packages are installed again only when pyproject.toml changed.
$(VENV)/.deps: pyproject.toml packaging/requirements.py | system-build
	flock .build.lock packaging/make-venv $(SYSTEM_PYTHON) $(VENV) .deps build

$(VENV)/.dev: $(VENV)/.deps
	flock .build.lock packaging/make-venv $(SYSTEM_PYTHON) $(VENV) .dev dev

# One look at dpkg's list each; apt runs only when something is missing.
system-build:
	@packaging/system-packages build

system-test:
	@packaging/system-packages test

system-bench:
	@packaging/system-packages bench

system-transfer:
	@packaging/system-packages transfer

clean:
	rm -rf build dist *.egg-info engine/_core.c engine/_core.*.so benchmarks/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find engine builder cli tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
