# shellcheck shell=bash
# Where the things of this checkout lie. Sourced by the scripts beside it; the names are for them.
# shellcheck disable=SC2034
set -euo pipefail

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}

# A folder whose content follows from a file carries the file's hash: another version never meets it.
hash_of() { sha256sum "$@" | sha256sum | cut -c 1-12; }
cd "$CHECKOUT"
VENV=$CACHE/venv-$(hash_of requirements-dev.txt)
VENV_NEWEST=$CACHE/venv-$(hash_of requirements-newest.txt)
PYTHONS="3.9 3.10 3.11 3.12 3.13"
unit_venv() { echo "$CACHE/venv-$(hash_of tests/unit/requirements.txt)-py$1"; } # unit_venv VERSION
# What a node has of ansible-core, for the Pythons on which ansible-core itself does not run.
NODE_CORE=$CACHE/node-core-$(hash_of requirements-dev.txt)

# The collections ours depends on, cut out of the PyPI package that bundles them.
BUNDLE=12.3.0
DEPENDENCIES=$CACHE/collections-$BUNDLE
# Those that make bench measures ours beside.
PEERS=$CACHE/peers-$BUNDLE

# ansible-test and mypy accept a collection only at .../ansible_collections/NAMESPACE/NAME.
STAGE_ROOT=$CACHE/stage-$(printf %s "$CHECKOUT" | sha256sum | cut -c 1-12)
STAGE=$STAGE_ROOT/ansible_collections/drover/kvm

# find_python VERSION: print a working interpreter of that version that can make venvs; 1 when there is none.
find_python() {
    local candidate
    for candidate in /usr/bin/python"$1" /usr/local/bin/python"$1" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python"$1" \
        "$HOME"/.local/share/uv/python/*-"$1".*/bin/python"$1"; do
        if [ -x "$candidate" ] && "$candidate" -c 'import ctypes, ensurepip, ssl, venv' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# first_python VERSION...: the first of these versions that is at hand.
first_python() {
    local version
    for version in "$@"; do
        find_python "$version" && return 0
    done
    return 1
}
