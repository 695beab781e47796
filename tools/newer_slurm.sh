#!/usr/bin/env bash
# The tests of `make test-slurm` with Debian 13's Slurm (24.11), in a chroot of their own.
# Needs root and debootstrap; makes QVL_DEBIAN13 (default /var/tmp/qvl-debian13, 0.6 GB).
# Without accounting: no database runs in there. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
root=${QVL_DEBIAN13:-/var/tmp/qvl-debian13}
python=$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')
packages=slurmctld,slurmd,slurm-client,munge,iproute2,procps,util-linux
libraries=libsqlite3-0,libssl3t64,libffi8,libbz2-1.0,liblzma5,libreadline8t64,zlib1g

if [ ! -x "$root/usr/sbin/slurmctld" ]; then
  command -v debootstrap >/dev/null || apt-get -o DPkg::Lock::Timeout=120 install -y debootstrap
  debootstrap --variant=minbase --include="$packages,$libraries" trixie "$root"
fi

cp /etc/hosts "$root/etc/hosts"

# Mounts in a namespace of their own: they end with this command.
exec unshare --mount --propagation private bash -euo pipefail -c '
  root=$1 checkout=$2 python=$3; shift 3
  for each in /proc /dev /sys /tmp "$python" "$checkout"; do
    mkdir -p "$root$each"
    mount --rbind "$each" "$root$each"
  done
  exec chroot "$root" env -C "$checkout" .venv/bin/python -m pytest tests/integration/slurm "$@"
' newer_slurm "$root" "$checkout" "$python" "$@"
