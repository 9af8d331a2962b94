# make demo: sets up what is missing and runs the main demonstration; make test: the tests likewise.
# Everything is installed into .venv; nothing outside this folder is changed.

PYTHON ?= python3
# What pip installs as torch. An environment that has another supported version can name it here.
TORCH ?= torch==2.13.0
WORKERS ?= 2
MINUTES ?= 30
FUZZ_SECONDS ?= 60
DIST ?= dist
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

# Warnings end the build here, but not that of a user, whose compiler may know more of them.
export BUILD_WERROR := 1

PY := .venv/bin/python
READY := .venv/.ready

.PHONY: setup build wheel demo test test-rdma lint conformance sanitize fuzz soak bench bench-rdma
.PHONY: clean

setup: build

# ninja knows what has changed, so this always runs; with nothing to do it takes half a second.
build: $(READY)
	@$(PY) setup.py --quiet build_ext --inplace

# For the installed torch and Python; auditwheel says for which Linux, and leaves torch's libraries
# to torch. What an earlier build left in build/lib.* would be packed, too.
wheel: $(READY)
	rm -rf build/lib.* build/wheel
	$(PY) -m build --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(dir $(PY))):$$PATH" $(PY) -m auditwheel repair \
	  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir $(DIST) build/wheel/*.whl

demo: build
	$(PY) -m torch_tent demo $(DEMO_ARGS)

test: build
	$(PY) -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# In a virtual machine that has RDMA devices. As root it installs what is missing (qemu, rdma-core);
# status 3 of the program says that nothing was run.
test-rdma: build
	$(PY) -m tests.rdma_vm test -- $(PYTEST_ARGS)

lint: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --strict
	find csrc -name '*.h' -o -name '*.cpp' \
	  | xargs --no-run-if-empty .venv/bin/clang-format --dry-run -Werror
	.venv/bin/codespell

# PyTorch's own suite for backends, on tent and on gloo: about half an hour. Writes docs/conformance.md.
conformance: build
	-$(PY) -m tests.conformance build/conformance
	$(PY) -m tests.conformance.table build/conformance

# The engine's tests under AddressSanitizer, UBSan and ThreadSanitizer.
sanitize: $(READY)
	tests/sanitize.sh

# libFuzzer (needs clang) on the wire and the frame reader; tickets and handshakes in Python.
fuzz: build
	$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS)

# Random transfers while links and processes fail, for MINUTES; every byte is checked.
soak: build
	$(PY) -m tests.soak --minutes $(MINUTES)

bench: build
	$(PY) benchmarks/run.py --quick --minutes 15 $(BENCH_ARGS)

bench-rdma: build
	$(PY) -m tests.rdma_vm run --write benchmarks/results -- $(PY) benchmarks/rdma.py $(BENCH_ARGS)

clean:
	rm -rf .venv build dist demo-out *.egg-info torch_tent/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Built before it is installed: pip would hide the compiler's progress for minutes.
$(READY): pyproject.toml | $(PY)
	$(PY) -m pip install '$(TORCH)'
	$(PY) -m pip install 'setuptools>=77' wheel 'pybind11>=3.0' ninja
	$(PY) setup.py build_ext --inplace
	$(PY) -m pip install --no-build-isolation -e '.[dev,demo,metrics]'
	@touch $@

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "torch_tent needs Python 3.11 or newer: name one, as in 'make setup PYTHON=python3.12'." >&2; \
	  exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, run" \
	    "'apt-get install python3-venv' and try again." >&2; exit 1; }
