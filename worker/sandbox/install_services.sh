#!/bin/sh
# Installs the servers that the sandbox and the tests start for themselves, where they are missing:
#
#     sh worker/sandbox/install_services.sh rabbitmq [postgresql]
#
# On Debian and Ubuntu as root it asks apt; anywhere else it says in one line what to install and ends with 1.
# No system service is started: policy-rc.d answers 101, "action forbidden by policy" (invoke-rc.d(8)).
set -eu

POLICY=/usr/sbin/policy-rc.d

is_installed() {
    case "$1" in
        rabbitmq) [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null ;;
        postgresql) ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null ||
            { command -v pg_config >/dev/null && [ -x "$(pg_config --bindir)/initdb" ]; } ;;
    esac
}

packages=
names=
for service in "$@"; do
    case "$service" in
        rabbitmq) name=RabbitMQ package=rabbitmq-server ;;
        postgresql) name=PostgreSQL package=postgresql ;;
        *) echo "usage: install_services.sh [rabbitmq] [postgresql]" >&2; exit 2 ;;
    esac
    is_installed "$service" && continue
    packages="$packages $package"
    names="${names:+$names and }$name"
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "$names not found: install it first, on Debian or Ubuntu with 'sudo apt-get install$packages'." >&2
    exit 1
fi

echo "Installing $names with apt (about 10 s) ..."
log=$(mktemp)
made_policy=
clean_up() {
    rm -f "$log"
    [ -z "$made_policy" ] || rm -f "$POLICY"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ ! -e "$POLICY" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    made_policy=yes
    chmod 755 "$POLICY"
fi

export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # $packages is a list of words
if ! { apt-get update || true; apt-get -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends $packages; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "Installing $names failed: apt's own words are above." >&2
    exit 1
fi
