#!/usr/bin/env bash
# What Debian 12's own Python, 3.11.2, saves and loads: it pickles enums otherwise than later ones.
# debian12_python.sh COMMAND...: with QVL_TEST_PYTHON, an environment of that Python which has the
# packages of .venv themselves: the same minor version, so no room and a second are enough.
set -euo pipefail
cd "$(dirname "$0")/.."
python=/usr/bin/python3.11
own=.venv-debian12

found=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none)
if [ "$found" != 3.11.2 ]; then
  echo "not tested: $python is not Debian 12's Python 3.11.2 here, but $found"
  exit 0
fi
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
case "$packages" in
  */python3.11/*) ;;
  *)
    echo "not tested: .venv is not of Python 3.11 (make setup PYTHON=$python makes one that is)"
    exit 0
    ;;
esac
"$python" -m venv --without-pip "$own"
echo "import site; site.addsitedir('$packages')" >"$own/lib/python3.11/site-packages/shared.pth"
QVL_TEST_PYTHON=$PWD/$own/bin/python exec "$@"
