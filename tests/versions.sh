#!/usr/bin/env bash
# Builds torch_tent against another torch, or with another Python, and runs the core tests on it:
#   [PYTHON=python3.12] tests/versions.sh 2.14.1 [FOLDER] [PYTEST ARGUMENTS...]
# Nothing in the tree is touched: a copy of it and its virtual environment are made in FOLDER (or in
# a temporary folder that is removed at the end). A FOLDER that is kept is used again as it is.
# Wheels of torch for CUDA, which is what pip takes from PyPI, are several GB.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
CORE_TESTS=(
  tests/test_api.py tests/test_bindings.py tests/test_c_api.py tests/test_engine.py
  tests/test_engines.py tests/test_errors.py tests/test_handshake.py tests/test_kv.py
  tests/test_memory.py tests/test_process_group.py tests/test_segment.py tests/test_tensors.py
  tests/test_torch_tent_autoload.py tests/test_torch_transport.py tests/test_transfer.py tests/test_wire.py
  tests/test_work.py
)

if [ $# -lt 1 ]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
torch=$1
if [ $# -ge 2 ]; then
  mkdir -p "$2"
  folder=$(cd "$2" && pwd)
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
shift "$(($# > 1 ? 2 : 1))"

venv=$folder/venv
[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
"$venv/bin/python" -m pip install "torch==$torch" numpy 'setuptools>=77' wheel 'pybind11>=3.0' ninja \
  'msgspec>=0.19' hypothesis psutil 'pytest>=9' pytest-timeout pytest-xdist prometheus_client

tests/copy_tree.sh "$folder/tree"
cd "$folder/tree"
"$venv/bin/python" setup.py --quiet build_ext --inplace
"$venv/bin/python" -m pip install --quiet --no-build-isolation --no-deps -e .
"$venv/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
"$venv/bin/python" -m pytest -n 2 "${CORE_TESTS[@]}" "$@"
