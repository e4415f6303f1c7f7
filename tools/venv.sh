#!/bin/sh
# Create the virtual environment $1 with the first Python >= 3.11 that is found; install the venv module where
# Debian and Ubuntu leave it out.
set -eu

for python in python3 python3.13 python3.12 python3.11; do
    if command -v "$python" >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        break
    fi
    python=
done
if [ -z "$python" ]; then
    echo "celeriac needs Python 3.11 or newer; none was found as python3, python3.13, python3.12 or python3.11" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    else
        echo "Python's venv module is missing. Install it and try again: sudo apt-get install $package" >&2
        exit 1
    fi
fi

echo "creating $1 with $("$python" --version)"
"$python" -m venv "$1"
