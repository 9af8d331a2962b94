#!/usr/bin/env bash
# Runs the engine's tests under AddressSanitizer with UBSan, and its threads under ThreadSanitizer:
#   tests/sanitize.sh [address|thread] [PYTEST ARGUMENTS...]
# Each has a copy of the tree in build/ with modules of its own. torch is left out: its libraries
# are not instrumented, and the engine does not know them.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
kinds=(address thread)
if [ $# -ge 1 ]; then
  kinds=("$1")
  shift
fi
# Not a test of the test: that a broken rule is found needs ten thousand schedules each. Nor what
# asks how soon a death is noticed: here it takes the kernel longer to take the memory away.
address_tests=(
  tests/test_{algorithms,bindings,c_api,crowd,cuda_ipc,cuda_transport,engine,engine_stress}.py
  tests/test_{execution,layout,listener}.py
  tests/test_{local_transports,rail_estimate,reduce,scheduler,segments,simulator,slicer}.py
  tests/test_{transport_faults,transport_peers,transports,watch,wire}.py
  tests/faults/test_{malformed,peers}.py
  --deselect tests/test_simulator.py::test_a_broken_rule_is_found_within_ten_thousand_schedules
  --deselect tests/test_transport_peers.py::test_death_in_the_middle_of_a_payload
  --deselect tests/faults/test_peers.py::test_a_killed_peer_is_lost_within_a_tenth_of_a_second
)
thread_tests=(tests/test_engine_stress.py)

library() { # where the compiler keeps a shared library
  ${CXX:-g++} -print-file-name="$1"
}

for kind in "${kinds[@]}"; do
  tree=build/sanitized/$kind
  tests/copy_tree.sh "$tree"
  (
    cd "$tree"
    export TENT_SANITIZE=$kind
    reports=$PWD/build/report
    rm -f "$reports"*
    "$python" setup.py --quiet build_ext --inplace
    if [ "$kind" = address ]; then
      # The interpreter has no sanitizer of its own, and frees little when it ends.
      export LD_PRELOAD="$(library libasan.so) $(library libstdc++.so)"
      export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:log_path=$reports
      export UBSAN_OPTIONS=print_stacktrace=1:log_path=$reports
      export SIMULATED_SCHEDULES=${SIMULATED_SCHEDULES:-2000}
      tests=("${address_tests[@]}")
    else
      tests=("${thread_tests[@]}")
    fi
    # What a process says that then dies would be lost: pytest holds it back, and dies with it.
    "$python" -m pytest -p no:cacheprovider --timeout 600 -n 2 "${tests[@]}" "$@" || failed=$?
    for report in "$reports"*; do
      [ ! -e "$report" ] || { cat "$report"; failed=1; }
    done
    exit "${failed:-0}"
  )
done
