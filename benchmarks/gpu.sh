#!/usr/bin/env bash
# One recipe on a GPU: trains, simulates, distils, samples, evaluates and measures speed, in calls of at most nine minutes.
#   benchmarks/gpu.sh recipes/cifar10-gpu.yaml PATH/cifar10_jpeg.npz runs/cifar10 [further flags of the recipe]
# A call that runs out of time exits with 124; the same call continues. CALL sets the seconds of a call, COUNT the samples
# that are judged, BIN where bezierdistill and python are.
set -euo pipefail
recipe=$1 data=$2 out=$3
shift 3
bin=${BIN:-$(dirname "$0")/../.venv/bin}
started=$SECONDS
left() { echo $((${CALL:-540} - SECONDS + started)); }

timeout "$(left)" "$bin/bezierdistill" recipe --config "$recipe" --data "$data" --out "$out" "$@"
for passes in 1 2; do
  samples=$out/samples-$passes
  if [ ! -f "$samples.json" ]; then
    timeout "$(left)" "$bin/bezierdistill" sample --model "$out/student" --passes "$passes" --count "${COUNT:-10000}" --out "$samples.npz" --grid "$samples.png"
    timeout "$(left)" "$bin/bezierdistill" evaluate --samples "$samples.npz" --data "$data" --extractor classifier --json "$samples.json"
  fi
done
timeout "$(left)" "$bin/python" "$(dirname "$0")/throughput.py" --student "$out/student" --teacher "$out/strong" | tee "$out/throughput.txt"
