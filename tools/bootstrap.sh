#!/bin/sh
# Make sure the machine has what pip cannot bring: a usable Python with venv, a C++ compiler, and for the tests tmux.
# Usage: bootstrap.sh PYTHON [extra command ...]
# As root on a Debian-like system what is missing is installed; elsewhere the command to type is printed.
set -eu
python=$1
shift
packages=

command -v "$python" >/dev/null 2>&1 || { echo "There is no $python. Install Python 3.10 to 3.13, or name one: make PYTHON=python3.12" >&2; exit 1; }
"$python" - <<'PY' || exit 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    found = sys.version.split()[0]
    sys.exit(f"edge needs Python 3.10 to 3.13, and this is {found}. Name another one: make PYTHON=python3.12")
PY
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || packages="$packages g++"
for extra in "$@"; do
    command -v "$extra" >/dev/null 2>&1 || packages="$packages $extra"
done
[ -n "$packages" ] || exit 0

if [ "$(uname)" = Darwin ]; then
    echo "Missing:$packages. Install the compiler with: xcode-select --install, and tools with: brew install tmux" >&2
    exit 1
elif command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing with apt-get:$packages"
    apt-get update -qq >/dev/null
    # shellcheck disable=SC2086  # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
else
    echo "Missing:$packages. Install them first, for example: sudo apt-get install$packages" >&2
    exit 1
fi
