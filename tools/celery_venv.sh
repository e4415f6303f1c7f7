#!/bin/sh
# Make the virtual environment $1 of the real Celery, for tests/interop; the tests reach it as other processes only.
# Its stamp is $1/installed; another Celery makes it anew.
set -eu

venv=$1
# kombu 5.7 compresses with backports.zstd, whatever Celery's extra "zstd" brings.
wanted="celery[redis,yaml,msgpack,brotli]>=5.7,<5.8 backports.zstd"

if [ -f "$venv/installed" ] && [ "$(cat "$venv/installed")" = "$wanted" ]; then
    exit 0
fi
rm -rf "$venv"
sh "$(dirname "$0")/venv.sh" "$venv"
echo "installing Celery for the interoperability tests"
# shellcheck disable=SC2086 # words of a list
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
"$venv/bin/python" -m compileall -q "$venv/lib" || true
echo "$wanted" > "$venv/installed"
