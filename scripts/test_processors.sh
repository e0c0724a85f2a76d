#!/usr/bin/env bash
# Runs the numeric tests with the kernels of other processors, each with one thread and with two:
#   scripts/test_processors.sh [pytest's arguments]
#   scripts/test_processors.sh --only avx2|avx512|own 1|2 [pytest's arguments]
# A processor without AVX-512 runs the same kernels in all of them. PYTHON=... chooses a Python that has what the tests need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
# oneDNN, torch's own kernels and MKL choose by the processor, and each has a variable of its own that limits it
declare -A limits=(
    [avx2]="ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2"
    [avx512]="ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=avx512 MKL_ENABLE_INSTRUCTIONS=AVX512"
    [own]=""
)
names=(avx2 avx512 own) counts=(1 2)
if [ "${1:-}" = --only ]; then
    [ $# -ge 3 ] && [ -n "${limits[$2]+known}" ] || usage
    names=("$2") counts=("$3")
    shift 3
fi
if [ -z "${PYTHON:-}" ]; then
    scripts/setup.sh test
    PYTHON=.venv/bin/python
fi

# where the arguments name no file, only files with numeric tests: the others would take seconds to import
files=()
for each in "$@"; do [ ! -e "${each%%::*}" ] || named=1; done
[ -n "${named:-}" ] || mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.numeric' tests)

export OMP_WAIT_POLICY=PASSIVE # threads that wait for each other must not keep a busy machine's cores

last=$(mktemp)
trap 'rm -f "$last"' EXIT
table=() status=0
for name in "${names[@]}"; do
    for count in "${counts[@]}"; do
        echo "== kernels: $name, threads: $count"
        result=passed
        # shellcheck disable=SC2086 several variables
        env ${limits[$name]} OMP_NUM_THREADS="$count" MKL_NUM_THREADS="$count" CAMSERVE_THREADS="$count" \
            "$PYTHON" -m pytest -p no:cacheprovider -m numeric -q "$@" "${files[@]}" | tee "$last" || { result=FAILED; status=1; }
        table+=("$(printf '%-7s  %7s  %-6s  %s' "$name" "$count" "$result" "$(tail -n 1 "$last")")")
    done
done
echo
printf '%-7s  %7s  %-6s  %s\n' kernels threads result tests
printf '%s\n' "${table[@]}"
exit $status
