#!/usr/bin/env bash
# Runs the GPU benchmarks in three calls (docs/benchmarks.md): `bash benchmarks/gpu.sh 1`, check the
# table, then 2, then 3. Results go to $OUT. Each program is a process with its own timeout, so that
# a hanging program does not affect the others.
set -u
OUT="${OUT:-benchmarks/results/gpu}"
mkdir -p "$OUT"
SITE="${SITE:-$HOME/site}"
if ls .whl/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$SITE" .whl/*.whl || exit 1
fi
export PYTHONPATH="$SITE:$PWD" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$HOME/inductor}"

# run PROGRAM SECONDS
run() {
  GPU_STARTED="$(date +%s)"
  export GPU_STARTED
  timeout -s INT -k 5 "$2" python3 -X faulthandler -m benchmarks gpu "$1" \
    --budget $(($2 - 8)) --out "$OUT/$1.json" 2>&1 | tee "$OUT/$1.log"
}

# check SECONDS: the self-check
check() {
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 timeout -s INT -k 5 "$1" \
    python3 -m pytest --noconftest -p no:logging -q -rP --durations=10 tests/gpu --device cuda 2>&1 |
    tee "$OUT/self-check.log"
}

case "${1:-}" in
  1)
    {
      nvidia-smi
      df -h / /dev/shm
      nproc
      free -g
      lscpu | head -20
      python3 -m pip list
    } >"$OUT/machine.txt" 2>&1
    run plain 165
    run regional 120
    ;;
  2)
    run full 270
    ;;
  3)
    if [ -n "${2:-}" ]; then
      run "$2" "${3:-180}" # repeat one program
    else
      check 110
      run parts 115
      run soak 80
    fi
    ;;
  *)
    echo "usage: bash benchmarks/gpu.sh 1|2|3 [PROGRAM SECONDS]" >&2
    exit 2
    ;;
esac
shopt -s nullglob
python3 -m benchmarks gpu table "$OUT"/*.json
