#!/usr/bin/env bash
# What is most worth knowing of the CUDA engine on this machine's GPU, in under eight minutes, without network. Builds for the one
# card, then runs step after step, each with a time limit of its own and a file of its own in $OUT (default: gpu-results). Read
# 0-summary.txt first: a line is added as soon as a step ends, so that nothing is lost where all is cut off.
#
#   OUT=results benchmarks/cuda/quarter_hour.sh
#   OUT=results benchmarks/cuda/quarter_hour.sh --dry    the same on the host, kernels on the shim, small; nothing is built
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case "${1:-}" in
  "") dry="" slower=1 ;;
  --dry) dry=--dry slower=5 ;; # a host that others use too
  *) echo "quarter_hour.sh: takes --dry or nothing, got $1" >&2; exit 2 ;;
esac
WHOLE=$((480 * slower)) # seconds
OUT=${OUT:-$PWD/gpu-results}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
work=$(mktemp -d) && mkdir "$work/site" || exit 2
trap 'rm -rf "$work"' EXIT
export dry work PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/python:$work/site
failed=0

build() {
  if [ -z "$dry" ]; then
    if ls wheels/*.whl > /dev/null 2>&1; then
      "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" wheels/*.whl || return
    fi
    # The toolkit's own folder: nvcc in PATH may be a script that starts another one.
    if [ -z "${CUDA_HOME:-}" ] && command -v nvcc > /dev/null; then
      export CUDA_HOME=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
    fi
    TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return
    export TORCH_CUDA_ARCH_LIST NVCC_APPEND_FLAGS=-lineinfo # compute-sanitizer and ncu then name lines
    ADVNAS_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace || return
  fi
  # The package says its version by its metadata, though it is not installed.
  "$PYTHON" setup.py --quiet egg_info --egg-base "$work/site" || return
  "$PYTHON" -m advnas_ext.info
}

tests() {
  [ -z "$dry" ] || export ADVNAS_TEST_DEVICE=shim
  "$PYTHON" -m pytest -p no:cacheprovider -vv --durations=3 tests/test_gpu.py
}

# Our own kernels only. Each tensor has memory of its own then: torch's allocator would hide an access beyond it.
sanitizer() {
  local tool status=0
  if [ -n "$dry" ]; then "$PYTHON" -m benchmarks.cuda.smallest --dry; return; fi
  for tool in "$@"; do
    echo "== $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --kernel-regex kns=advnas --error-exitcode 9 \
      "$PYTHON" -m benchmarks.cuda.smallest || status=$?
  done
  return $status
}

bench() { "$PYTHON" -m benchmarks.cuda.steps --short $dry --out "$work/bench"; }

search() {
  local device=cuda small=()
  if [ -n "$dry" ]; then
    device=cpu small=(--epochs 2 --warmup-epochs 1 --channels 4 --batch-size 256 --valid-batches 1 --halving-cells 0)
  fi
  "$PYTHON" -m advnas search --preset fast --data digits --device $device --out "$work/run" "${small[@]}"
}

profile() {
  "$PYTHON" -m benchmarks.cuda.profile $dry --largest "$work/largest" || return
  ADVNAS_CUDA_CONV=own "$PYTHON" -m benchmarks.cuda.profile $dry || return
  echo "the largest: $(cat "$work/largest")"
  if [ -n "$dry" ] || ! command -v ncu > /dev/null; then
    echo "no hardware counters: ncu needs a GPU, and must be in PATH"
    return
  fi
  ncu --clock-control none --profile-from-start off --kernel-name "regex:^($(cat "$work/largest"))$" --launch-count 25 \
    --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy "$PYTHON" -m benchmarks.cuda.profile --once
}

rest() {
  if [ -n "$dry" ]; then "$PYTHON" -m benchmarks.cuda.profile --dry --once; return; fi
  "$PYTHON" -m benchmarks.cuda.profile --dtype bfloat16 || return
  sanitizer synccheck initcheck
  "$PYTHON" -m benchmarks.cuda.steps --out "$work/rest"
}

# step FILE LIMIT COMMAND...
step() {
  local file=$OUT/$1.txt limit=$(($2 * slower)) begin=$SECONDS left=$((WHOLE - SECONDS)) status said
  ((limit < left)) || limit=$left
  if ((limit < 5)); then
    said="not run" status=-
  else
    echo "$1: at most $limit s"
    timeout --kill-after=10 "$limit" bash -c "${*:3}" > "$file" 2>&1 < /dev/null
    status=$?
    # A table is also left as Markdown.
    cat "$work/$3"/*.md >> "$file" 2> /dev/null
    case $status in
      0) said="ok" ;;
      124 | 137) said="cut off" ;;
      *) said="failed" ;;
    esac
  fi
  # The rest is as much as there is time for.
  [ "$said" = ok ] || [ "$1, $said" = "7-rest, cut off" ] || failed=1
  printf '%-12s %-8s status %-4s %4d s   %s\n' "$1" "$said" "$status" $((SECONDS - begin)) \
    "$(grep -v '^\s*$' "$file" 2> /dev/null | tail -n 1 | cut -c 1-100)" >> "$OUT/0-summary.txt"
  [ "$said" = ok ]
}

about() {
  date -u +'%Y-%m-%d %H:%M UTC'
  [ -z "$dry" ] || echo "a dry run on the host: nothing here says anything about a GPU"
  cat COMMIT 2> /dev/null || git rev-parse HEAD 2> /dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null
  nvcc --version 2> /dev/null | grep release
  "$PYTHON" -c 'import os, sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores")'
  echo
}

export -f build tests sanitizer bench search profile rest
about > "$OUT/0-summary.txt"
if step 1-build 150 build; then
  step 2-tests 75 tests
  step 3-sanitizer 75 sanitizer memcheck racecheck
  step 4-bench 130 bench
  step 5-search 40 search
  step 6-profile 45 profile
  step 7-rest "$WHOLE" rest
else
  tail -n 30 "$OUT/1-build.txt"
fi
echo "$SECONDS s in all, of $WHOLE" >> "$OUT/0-summary.txt"
cat "$OUT/0-summary.txt"
exit $failed
