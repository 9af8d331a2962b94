#!/usr/bin/env bash
# Builds, tests and measures everything that concerns GPUs, in one command of under 8 minutes.
#
#   benchmarks/gpu.sh [--wheels DIR] [--keep]
#
# Needs a Python with a CUDA build of torch ($PYTHON, default python3) and downloads nothing: what is
# missing beside torch (msgspec, pybind11, ninja, pytest and two plugins, hypothesis, numpy) is taken
# from the wheels in DIR, or the script says what is missing. Nothing outside this folder is changed. --keep writes the results
# to benchmarks/results/, else to build/. Without a GPU it says so and ends with 3.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT_S=${LIMIT_S:-470}
SITE=build/gpu-site
WHEELS=
OUT=build/gpu-results
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) WHEELS=$2; shift 2 ;;
    --keep) OUT=benchmarks/results; shift ;;
    *) echo "usage: benchmarks/gpu.sh [--wheels DIR] [--keep]" >&2; exit 2 ;;
  esac
done
left() { echo $((LIMIT_S - SECONDS)); }

if ! "$PYTHON" -c 'import torch' 2>/dev/null; then
  echo "There is no torch in $PYTHON: set PYTHON to one that has a CUDA build of it." >&2
  exit 3
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  "$PYTHON" -c 'import torch; print(f"torch {torch.__version__} sees no GPU: nothing was measured.")'
  exit 3
fi

mkdir -p "$SITE" "$OUT"
export PYTHONPATH=$PWD/$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}
# Streams that a test holds must not hold others, which share too few queues by default.
export CUDA_DEVICE_MAX_CONNECTIONS=32
# Succeeds where a distribution is installed, in this version or a later one.
IS_THERE='
import sys
from importlib.metadata import version
name, _, wanted = sys.argv[1].partition(">=")
sys.exit(int(version(name).split(".")[0]) < int(wanted or 0))
'
missing=()
for name in msgspec pybind11 ninja 'pytest>=9' pytest-timeout pytest-xdist hypothesis numpy; do
  "$PYTHON" -c "$IS_THERE" "$name" 2>/dev/null || missing+=("$name")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ -z "$WHEELS" ] || ! "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" \
    --target "$SITE" "${missing[@]}"; then
    echo "Missing in $PYTHON: ${missing[*]}. Give a folder with their wheels: --wheels DIR" >&2
    exit 4
  fi
fi

name=gpu-$(date -u +%Y-%m-%d)
log=$OUT/$name.txt
{
  date -u
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null
  nvidia-smi topo -m 2>/dev/null
  "$PYTHON" -c 'import sys, torch; print(f"python {sys.version.split()[0]}, torch {torch.__version__}")'
} >"$log"

step() { # step NAME SECONDS COMMAND...: runs it within what is left; its end goes to the log
  local title=$1 limit=$2
  shift 2
  [ "$(left)" -lt "$limit" ] && limit=$(left)
  if [ "$limit" -lt 5 ]; then
    echo "$title: skipped, no time left" | tee -a "$log"
    return 1
  fi
  local began=$SECONDS
  timeout --kill-after=10 "$limit" "$@" >"build/gpu-$title.log" 2>&1
  local code=$?
  tail -n 40 "build/gpu-$title.log" | sed "s/^/  /" >>"$log"
  echo "$title: exit $code after $((SECONDS - began)) s" | tee -a "$log"
  return $code
}

step build 200 "$PYTHON" setup.py --quiet build_ext --inplace || { tail -n 30 build/gpu-build.log; exit 1; }
failed=0
step doctor 40 "$PYTHON" -m torch_tent doctor
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -n 4 --timeout 60 --tb short -W ignore)
step tests 170 "${pytest[@]}" tests/test_gpu.py tests/test_gpu_programs.py \
  tests/test_gpu_groups.py tests/test_cuda_driver.py || failed=1
step kernel-tests 90 "${pytest[@]}" tests/test_pack.py tests/test_unpack.py tests/test_rows.py || failed=1
for title in tests kernel-tests; do tail -n 15 "build/gpu-$title.log"; done
measure() { # measure TITLE SECONDS PROGRAM ARGUMENTS...
  step "$@" || failed=1
  cat "build/gpu-$1.log"
}
measure paths 110 "$PYTHON" benchmarks/gpu.py --json "$OUT/$name.json"
measure groups 60 "$PYTHON" benchmarks/gpu_groups.py --json "$OUT/$name-groups.json"
measure blocks 60 "$PYTHON" benchmarks/gpu_blocks.py --json "$OUT/$name-blocks.json"
measure trace 30 "$PYTHON" benchmarks/gpu_trace.py --json "$OUT/$name-trace.json"
measure kernels 60 "$PYTHON" benchmarks/kernels.py --out "$OUT/$name-kernels.json"
echo "results: $log, $OUT/$name.json; $SECONDS s"
exit $failed
