#!/usr/bin/env bash
# Make .venv with everything the project needs; do nothing if it is already there.
#   bash scripts/setup.sh              with python3
#   PYTHON=python3.11 bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=.venv
log=$venv/setup.log

fail() { echo "error: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "\`$python\` was not found; set PYTHON to a Python 3.10, 3.11 or 3.12."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "\`$python\` does not run; set PYTHON to a Python 3.10, 3.11 or 3.12."
case $version in
  3.10 | 3.11 | 3.12) ;;
  *) fail "Python must be 3.10, 3.11 or 3.12, but \`$python\` is $version; set PYTHON to one of these." ;;
esac

# The environment is whole only for these pins, this place and this Python.
fingerprint=$(cat requirements.txt setup.cfg <(echo "$PWD $version") | sha256sum | cut -d' ' -f1)
is_complete() { [ "$(cat $venv/.complete 2>/dev/null)" = "$fingerprint" ] && [ -x $venv/bin/fairseq-train ]; }
if is_complete; then
  echo "$venv is ready."
  exit 0
fi

# Of two set-ups at once the second waits for the first and then finds nothing to do.
exec 9>.setup.lock
if ! flock --nonblock 9; then
  echo "Another set-up is running; waiting for it."
  flock 9
  if is_complete; then exit 0; fi
fi

if [ -e $venv ] && [ "$($venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
  rm -rf $venv
fi
rm -f $venv/.complete
"$python" -m venv $venv
: >$log

group() { # the pins of one group of requirements.txt
  awk -v name="$1" '/^# group: /{inside = ($3 == name)} inside && !/^#/ && NF' requirements.txt
}
step() { # NUMBER WHAT COMMAND...: run a command, keep what it prints, show it on failure
  local started=$SECONDS
  echo "[$1/6] $2 ..."
  shift 2
  if ! "$@" >>$log 2>&1; then
    tail -n 25 $log >&2
    fail "this failed: $*
The whole log is in $log. Run the same command again to go on."
  fi
  echo "      done in $((SECONDS - started)) s"
}
install() { $venv/bin/pip install --disable-pip-version-check --constraint <(grep -v ' --hash' requirements.txt) "$@"; }
install_group() { install --requirement <(group "$1"); }
# The hash holds for the sources; dependencies were installed above, pinned.
build_fairseq() {
  $venv/bin/pip install --disable-pip-version-check --no-build-isolation --no-deps --require-hashes \
    --requirement <(group fairseq) ||
    { echo "fairseq is compiled from source: a C++ compiler and Python's headers are needed (Debian: build-essential python3-dev)."; return 1; }
}
check() {
  local help
  help=$($venv/bin/fairseq-train --user-dir fairseq_plugins --help) || return 1
  grep -q soft_beam_search <<<"$help" || { echo "fairseq-train does not list the criterion soft_beam_search"; return 1; }
}

step 1 "installing torch" install_group torch
step 2 "installing what fairseq is built with" install_group build
step 3 "installing the other requirements" install_group run
step 4 "installing test tools" install_group dev
step 5 "building fairseq (2 to 5 minutes the first time)" build_fairseq
step 6 "installing the plug-in and checking that fairseq finds it" install --no-build-isolation --no-deps --editable .
check >>$log 2>&1 || { tail -n 25 $log >&2; fail "fairseq does not load the plug-in; the whole log is in $log."; }
echo "$fingerprint" >$venv/.complete
echo "Set-up is complete: $venv/bin/fairseq-train --user-dir fairseq_plugins ..."
