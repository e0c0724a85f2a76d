#!/usr/bin/env bash
# Packages a real ImageNet classifier, serves it on this machine, and lays a heatmap over a photograph of a cat.
# Needs Python 3.10 to 3.12 and a package index. scripts/demo.sh --once stops after the picture; --help says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python scripts/demo.py "$@"
