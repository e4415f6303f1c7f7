#!/bin/sh
# Install the servers that tests talk to, where they are missing and this may be done: Debian and Ubuntu, as root.
# Elsewhere say which tests will be skipped. A server that is named (REDIS_URL, AMQP_URL) need not be installed.
# Nothing is started here: the tests use what runs, or start servers of their own.
set -eu

# Some of Debian's servers are only on root's path.
PATH=$PATH:/usr/sbin:/sbin

packages=
skipped=

# want <package> <what the tests with it are about> <program> [<program that will do, too>]
want() {
    for program in "$3" "${4:-$3}"; do
        if command -v "$program" >/dev/null 2>&1; then
            return
        fi
    done
    packages="$packages $1"
    skipped="$skipped
  $2: apt-get install $1"
}

[ -n "${REDIS_URL:-}" ] || want redis-server "tests on Redis" redis-server valkey-server
[ -n "${AMQP_URL:-}" ] || want rabbitmq-server "tests on RabbitMQ" rabbitmq-server

if [ -z "$packages" ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "These tests will be skipped (in CI they fail), for want of a server:$skipped"
    exit 0
fi

# Services must not be started by the installation: a port may be taken, there may be no init. Where a policy is in
# place already it stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
fi
log=$(mktemp)
echo "installing$packages"
# shellcheck disable=SC2086 # words of a list
if ! {
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
} >"$log" 2>&1; then
    cat "$log"
    echo "That did not work. These tests will be skipped (in CI they fail), for want of a server:$skipped"
fi
rm -f "$log"
