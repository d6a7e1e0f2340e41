# Sourced by the other scripts: creates .venv in the repository root, installs vqtool with the extras in $1 (such as
# "[dev]") at the versions in constraints.txt, and prepends .venv/bin to PATH. An up-to-date .venv is reused.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: Python 3.11 or newer with the venv module was not found; install it and run this script again" >&2
    exit 1
}

installed=".venv/installed$1"
if [ ! -e "$installed" ] || [ pyproject.toml -nt "$installed" ] || [ scripts/constraints.txt -nt "$installed" ]; then
    python=$(find_python)
    echo "installing vqtool into .venv (a few minutes, mostly for torch)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable ".$1"
    touch "$installed"
fi
export PATH="$PWD/.venv/bin:$PATH"
