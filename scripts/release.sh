#!/usr/bin/env bash
# Makes wheel and sdist in dist/, and tries each in a fresh environment: scripts/release.sh [--dry-run] [--quick]
# Refuses where version, changelog, citation, image names and tag disagree, or where anything is not committed. --dry-run needs no
# tag and no date in the changelog; --quick gives the environments .venv's packages in place of installing them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=0 quick=0
for each in "$@"; do
    case "$each" in
        --dry-run) dry=1 ;;
        --quick) quick=1 ;;
        *) echo "usage: scripts/release.sh [--dry-run] [--quick]" >&2; exit 2 ;;
    esac
done
fail() { echo "error: $*" >&2; exit 1; }
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo "${PYTHON:-python3}")

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' handlers/camserve/core/version.py)
echo "camserve $version"
grep -q "^version: $version\$" CITATION.cff || fail "CITATION.cff has another version"
others=$(grep -rnoE "(registry\.example\.com/camserve:|newTag: )[0-9][0-9.]*" deploy docs | grep -v "[: ]$version\$" || true)
[ -z "$others" ] || fail "images of another version: $others"
heading=$(grep -m 1 "^## [0-9]" CHANGELOG.md)
case "$heading" in "## $version "*) ;; *) fail "CHANGELOG.md begins with '$heading'" ;; esac
if [ $dry = 0 ]; then
    [[ "$heading" =~ \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$ ]] || fail "CHANGELOG.md: '$heading' has no date"
    [ -z "$(git status --porcelain)" ] || fail "not everything is committed"
    [ "$(git rev-parse -q --verify "v$version^{commit}" || true)" = "$(git rev-parse HEAD)" ] || fail "the tag v$version is not here: git tag -a v$version"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --disable-pip-version-check --quiet build
rm -rf dist
"$work/build/bin/python" -m build --outdir dist . >"$work/built" || { cat "$work/built"; exit 1; }
[ "$(cd dist && echo *)" = "camserve-$version-py3-none-any.whl camserve-$version.tar.gz" ] || fail "dist holds $(ls dist)"

for file in dist/*; do
    echo "Trying $file"
    place="$work/$(basename "$file").env"
    "$python" -m venv "$place"
    if [ $quick = 1 ]; then
        packages='import sysconfig; print(sysconfig.get_path("purelib"))'
        "$python" -c "$packages" >"$("$place/bin/python" -c "$packages")/over.pth"
        "$place/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --ignore-installed "$file"
    else
        "$place/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt "$file[demo]"
    fi
    mkdir "$work/try"
    (
        cd "$work/try"
        found=$("$place/bin/python" -I -c 'import camserve; print(camserve.__version__, camserve.__file__)')
        case "$found" in "$version $place/"*) ;; *) fail "imported $found" ;; esac
        "$place/bin/camserve" demo --once --port 0
        [ -s out/cat-heatmap.png ] || fail "no picture was explained"
    )
    rm -rf "$work/try" "$place"
done
echo "dist/ holds camserve $version: $(ls dist | tr '\n' ' ')"
