#!/usr/bin/env bash
# Makes .venv with what the tools and the demo need, at the releases in constraints.txt: scripts/setup.sh [test]
# "test" adds what the tests need. Does nothing when that is already done. PYTHON=... chooses the Python (3.10 to 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-demo}
case "$extra" in demo | test) ;; *) echo "usage: scripts/setup.sh [test]" >&2; exit 2 ;; esac

suits() { # a Python that runs, of a version that suits, and that can make an environment
    "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
    local each
    for each in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.10 python3 python; do
        if suits "$each"; then
            echo "$each"
            return
        fi
        if [ "$each" = "${PYTHON:-}" ]; then break; fi
    done
    echo "error: no Python 3.10 to 3.12 with the modules venv and ensurepip was found (Debian and Ubuntu: apt install" \
        "python3-venv); PYTHON=/path/to/python3.12 $0 chooses one" >&2
    exit 1
}

python=.venv/bin/python
if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
    chosen=$(find_python)
    echo "Making .venv with $("$chosen" --version)"
    rm -rf .venv
    "$chosen" -m venv .venv
fi

stamp=$("$python" - constraints.txt pyproject.toml "$extra" <<'EOF'
import hashlib, pathlib, sys
files = b"".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:3])
print(hashlib.sha256(files + repr((sys.argv[3], sys.version, sys.prefix)).encode()).hexdigest())
EOF
)
done_file=.venv/.camserve-$extra
if [ "$(cat "$done_file" 2>/dev/null)" != "$stamp" ]; then
    echo "Installing the dependencies into .venv (the first time torch comes along: some minutes)"
    quiet=$([ -t 1 ] || echo --quiet)
    "$python" -m pip install --disable-pip-version-check $quiet -c constraints.txt -e ".[$extra]"
    echo "$stamp" >"$done_file"
fi
