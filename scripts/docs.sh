#!/usr/bin/env bash
# The documentation as a site, built strictly: scripts/docs.sh [--build] [--install]
# Serves it on this machine and follows changes; --build writes it to build/site and ends; --install only makes .venv-docs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NO_MKDOCS_2_WARNING=1 # what the theme says of a successor of MkDocs that it does not work with
python=.venv-docs/bin/python
wanted=$(sed -n '/^docs = \[/,/^\]/p' pyproject.toml | cat - <(grep mkdocs constraints.txt) | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv-docs/made-from 2>/dev/null)" != "$wanted" ]; then
    base=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo "${PYTHON:-python3}")
    echo "Installing what builds the documentation into .venv-docs"
    rm -rf .venv-docs
    "$base" -m venv .venv-docs
    "$python" -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
    echo "$wanted" >.venv-docs/made-from
fi
case "${1:-}" in
    --install) ;;
    --build) exec "$python" -m mkdocs build --strict --quiet ;;
    "") exec "$python" -m mkdocs serve --strict --dev-addr 127.0.0.1:8000 ;;
    *) echo "usage: scripts/docs.sh [--build | --install]" >&2; exit 2 ;;
esac
