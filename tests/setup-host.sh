#!/bin/sh
# Install the Debian packages named as arguments that are missing, and start none of their services:
# labs run their own daemons in their own namespaces, and the host's port 179 stays free.
set -eu

missing=
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup: must be root to install:$missing" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

echo "setup: Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words on purpose
apt-get install -y -qq --no-install-recommends $missing >/dev/null

# Where systemd runs, a service that came with a package would start at the next boot.
if [ -d /run/systemd/system ]; then
    for service in frr bird etcd; do
        case "$missing" in *"$service"*) systemctl disable --quiet "$service" || true ;; esac
    done
fi
