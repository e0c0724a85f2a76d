#!/usr/bin/env bash
# Sets everything up, then lints, checks types and runs the tests: scripts/test.sh [pytest's arguments]
# Without arguments all tests run, in three workers (two wait for servers), and the coverage of handlers/ is measured (before Python 3.12 only with
# CAMSERVE_COVERAGE=1); with arguments, what they say, in one.
# CAMSERVE_SLOW=1 adds the slow tests. With CI set, a skipped test fails the run, unless it needs a GPU or is slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE # each of hundreds of processes would compile everything anew
scripts/setup.sh test
bin=.venv/bin

# Programs that some tests drive. Where they cannot be installed, those tests are skipped, and the closing table says so.
programs() {
    local missing=()
    command -v chromium >/dev/null || missing+=(chromium)
    command -v prometheus >/dev/null || missing+=(prometheus)
    command -v amtool >/dev/null || missing+=(prometheus-alertmanager)
    command -v curl >/dev/null || missing+=(curl)
    if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    if [ ! -f tests/node_modules/axe-core/axe.min.js ] && command -v npm >/dev/null; then
        echo "Installing axe-core, which checks pages for accessibility, into tests/node_modules"
        npm install --prefix tests --no-save --no-package-lock --silent axe-core@4.14.1
    fi
}
beside() { # an environment of its own, .venv-NAME, with tests/support/environments/NAME/requirements.txt; "over" .venv: it sees that one's packages too
    cmp -s "tests/support/environments/$1/requirements.txt" ".venv-$1/requirements.txt" && return
    echo "Installing $2 into .venv-$1"
    rm -rf ".venv-$1"
    $bin/python -m venv ".venv-$1"
    if [ "${3:-}" = over ]; then
        packages='import sysconfig; print(sysconfig.get_path("purelib"))'
        $bin/python -c "$packages" >"$(".venv-$1/bin/python" -c "$packages")/over.pth"
    fi
    ".venv-$1/bin/python" -m pip install --disable-pip-version-check --quiet -r "tests/support/environments/$1/requirements.txt"
    cp "tests/support/environments/$1/requirements.txt" ".venv-$1/requirements.txt"
}
programs & jobs=($!)
if [ "${CAMSERVE_SLOW:-}" = 1 ]; then beside foreign "other libraries' classifiers" & jobs+=($!); fi
{ beside ray Ray over; beside openvino OpenVINO over; scripts/docs.sh --install; } & jobs+=($!)
{ beside kserve "KServe's client"; beside deploy "what checks manifests"; beside s3 "what opens object stores" over; } & jobs+=($!)
echo "ruff check" && $bin/ruff check .
echo "ruff format" && $bin/ruff format --check .
echo "mypy" && $bin/mypy handlers tests scripts benchmarks deploy examples docs
for job in "${jobs[@]}"; do wait "$job"; done
if [ $# -eq 0 ]; then
    set -- -n 3 # of four, two cores spend a tenth more on the same
    # from Python 3.12 on this costs next to nothing; the older way takes half as long again
    if $bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
        export COVERAGE_CORE=sysmon
        set -- "$@" --cov --cov-report=
    elif [ "${CAMSERVE_COVERAGE:-}" = 1 ]; then
        set -- "$@" --cov --cov-report=
    fi
fi
echo "pytest" && exec $bin/python -m pytest --durations=15 --durations-min=1 "$@"
