#!/usr/bin/env bash
# The short tests with the oldest, the tested and the newest versions, and with each Python: bash tests/machines/versions.sh [FOLDER]
#
# Each set has a virtual environment of its own below FOLDER (6 GB each; kept and used again where FOLDER is given). PYTHONS names the
# interpreters, oldest first: PYTHONS="python3.11 /opt/python3.13/bin/python" bash tests/machines/versions.sh
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-}"
if [ -z "$folder" ]; then
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
fi
read -r -a pythons <<<"${PYTHONS:-python3.11 python3.12 python3.13}"
failed=0

try() { # try NAME PYTHON [PIP ARGUMENT...]
    local name="$1" python="$2" log="$folder/$1.log" began=$SECONDS
    shift 2
    if ! "$python" -c "" 2>/dev/null; then
        echo "$name: no $python here"
        failed=1
        return
    fi
    [ -d "$folder/$name" ] || "$python" -m venv "$folder/$name"
    if ! "$folder/$name/bin/pip" install -q --disable-pip-version-check -e ".[test]" "$@" >"$log" 2>&1; then
        echo "$name: pip failed, see $log"
        tail -n 3 "$log"
        failed=1
        return
    fi
    local versions
    versions="$("$folder/$name/bin/python" -c 'from inco.machine import versions; print(*(f"{k} {v}" for k, v in versions().items()), sep=", ")')"
    if PATH="$folder/$name/bin:$PATH" "$folder/$name/bin/python" -m pytest -p no:cacheprovider -rf >"$log" 2>&1; then
        echo "$name: $(tail -n 1 "$log"), $((SECONDS - began)) s with $versions"
    else
        echo "$name: FAILED with $versions; see $log"
        grep -E "^(FAILED|ERROR)" "$log" | head -n 20
        failed=1
    fi
}

try oldest "${pythons[0]}" -c constraints-oldest.txt
for python in "${pythons[@]}"; do
    try "tested-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "$python")" "$python" -c constraints.txt
done
try newest "${pythons[-1]}" --upgrade
exit "$failed"
