#!/usr/bin/env bash
# Runs the tests with another torch, in an environment of its own that is deleted afterwards:
#   scripts/test_versions.sh oldest|newest|TORCH TORCHVISION [pytest's arguments]
#   scripts/test_versions.sh 2.6.0 0.21.0 -m "not live"
# Everything else is at the releases in constraints.txt. PYTHON=... chooses the Python (3.10 to 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
case "${1:-}" in
    oldest) pair=("torch==2.4.0" "torchvision==0.19.0" "numpy<2.3"); shift ;;
    newest) pair=("torch" "torchvision" "numpy>=2.3"); shift ;;
    [0-9]*) [ $# -ge 2 ] || usage; pair=("torch==$1" "torchvision==$2" "numpy<2.3"); shift 2 ;;
    *) usage ;;
esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
python=$folder/env/bin/python
# these go with torch; older releases of it were not built for NumPy 2.3
grep -vE '^(torch|torchvision|triton|numpy|fsspec|filelock|sympy|networkx|setuptools)==' constraints.txt >"$folder/constraints.txt"
$python -m pip install --disable-pip-version-check --quiet -c "$folder/constraints.txt" "${pair[@]}" -e ".[test]"
$python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
$python -m pytest -p no:cacheprovider "$@"
