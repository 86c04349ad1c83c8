#!/usr/bin/env bash
# Everything that needs a CUDA device, one after the other: tests, parity, the environments' backends, benchmarks, a training.
#
#   experiments/gpu_all.sh DATA [OUT]      # DATA holds train/ and val/ of Memory Maze; logs and results go to OUT, runs/gpu if not given
#
# Not run as a whole yet: of its parts, only experiments/gpu.py has been run on a GPU (docs/backends.md).
# A part that fails is named at the end, and the others are run all the same.
set -u
data=$(realpath "${1:?which folder holds train/ and val/?}") out=$(realpath -m "${2:-$(dirname "$0")/../runs/gpu}")
cd "$(dirname "$0")/.." && mkdir -p "$out"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no CUDA device here")' || exit 1
failed=()

part() { # name command...
	echo "== $1"
	"${@:2}" >"$out/$1.log" 2>&1 || { failed+=("$1"); tail -n 5 "$out/$1.log"; }
}
run() { "$python" -m lssvwm_gym.cli "$@"; }

part tests "$python" -m pytest -q tests/test_kernels_cuda.py tests/test_kernels_choice.py tests/test_compiled.py tests/test_distributed.py
part parity "$python" experiments/gpu.py
backends=(auto torch) # CUDA graphs are measured by experiments/gpu.py
"$python" -c 'import mamba_ssm' 2>/dev/null && backends+=(mamba)
for backend in "${backends[@]}"; do
	part "envs-$backend" run benchmark --parts speed --device cuda --backend "$backend" --many 256 --out "$out/envs_$backend.json"
done
part benchmark-ages run benchmark --parts ages --device cuda --out "$out/ages.json" --plots "$out"
part benchmark "$python" -m experiments.benchmark --parts cache peak scan --device cuda --out "$out/benchmark.json" --plots "$out"
part benchmark-training "$python" -m experiments.benchmark --parts training --device cuda --clips 100 200 400 1000 --frames-a-step 4000 --out "$out/training.json"
part autoencoder run train autoencoder --data "$data/train" --val "$data/val" --out "$out/autoencoder" --device cuda --steps 1000
part world run train world --data "$data/train" --val "$data/val" --autoencoder lssvwm_gym/weights/memory_maze --out "$out/world" \
	--device cuda --steps 300 --frames-a-step 1280

[ ${#failed[@]} = 0 ] && echo "all parts passed; results are in $out" && exit 0
echo "failed: ${failed[*]}; see their logs in $out"
exit 1
