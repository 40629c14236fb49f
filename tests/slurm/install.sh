#!/usr/bin/env bash
# Installs Debian's Slurm for the tests of tests/slurm. Run by `make test-slurm` only; safe to run again.
# The installation starts no service (on a machine with systemd they are enabled for its next boot: `systemctl disable`
# them there); the tests start their own daemons, privately.
set -euo pipefail

packages=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server)
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "install.sh: ${packages[*]} are installed, nothing to do"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "install.sh: no apt-get here; install ${missing[*]} with this system's package manager" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: apt-get needs root; run: sudo $0" >&2
    exit 1
fi

# Debian asks this script before it starts a service; 101 means no. One that is already there is kept.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

echo "install.sh: apt-get update"
apt-get update -qq
echo "install.sh: apt-get install ${missing[*]}"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "install.sh: Slurm $(dpkg-query -W -f '${Version}' slurmctld) is installed"
