#!/usr/bin/env bash
# make TARGET... with Debian 13's own Python (3.13), in a chroot of its own.
# Needs root and debootstrap; makes QVL_DEBIAN13_PYTHON (default /var/tmp/qvl-debian13-python, 3 GB).
# PIP_FLAGS and TORCH as for make. QVL_BIND: further folders to be seen in there, for example one
# with wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${QVL_DEBIAN13_PYTHON:-/var/tmp/qvl-debian13-python}
packages=python3,python3-venv,make,git,procps,util-linux,iproute2,ca-certificates,strace,g++,python3-dev

if [ ! -x "$root/usr/bin/python3.13" ]; then
  command -v debootstrap >/dev/null || apt-get -o DPkg::Lock::Timeout=120 install -y debootstrap
  debootstrap --variant=minbase --include="$packages" trixie "$root"
fi

for each in /etc/hosts /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  if [ -f "$each" ]; then cp --remove-destination "$each" "$root$each"; fi
done

# Mounts in a namespace of their own: they end with this command.
exec unshare --mount --propagation private bash -euo pipefail -c '
  root=$1 checkout=$2; shift 2
  for each in /proc /dev /sys "$checkout" ${QVL_BIND:-}; do
    mkdir -p "$root$each"
    mount --rbind "$each" "$root$each"
  done
  mount -t tmpfs -o size=8g tmpfs "$root/tmp"
  exec chroot "$root" env -C "$checkout" HOME=/root make VENV=/opt/qvl PYTHON=python3.13 \
    PIP_FLAGS="${PIP_FLAGS:-}" TORCH="${TORCH:-torch==2.13.0}" "$@"
' debian13_python "$root" "$PWD" "$@"
