#!/usr/bin/env bash
# Create .venv with everything the project needs; do nothing if it is complete.
set -euo pipefail
usage() {
  cat <<'EOF'
usage: [PYTHON=python3.11] bash scripts/setup.sh [--help]

Creates .venv in the repository with the exact versions of requirements.txt, compiles
fairseq, installs the plug-in and checks that fairseq finds it. Nothing outside the
repository changes, except pip's cache. Run it again after an interruption: finished
steps are fast. It does nothing if .venv is complete.

PYTHON     the interpreter: Python 3.10, 3.11 or 3.12; default: python3
Needs      a C++ compiler, Python's headers (Debian: build-essential python3-dev), and
           up to 8 GB of disk
Downloads  torch, fairseq's sources and the other packages from pip's package index.
           torch is the default build of the platform: on Linux the one for CUDA
           (several GB, runs on a CPU, too), on macOS the one for CPU and MPS. For
           another build set PIP_EXTRA_INDEX_URL to the index of that build, or install
           it into .venv afterwards (pytorch.org, Get Started).
Log        .venv/setup.log
EOF
}
case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; echo "error: unknown argument \`$1\`." >&2; exit 2 ;;
esac
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

# A complete environment is one of these versions, this folder and this Python.
fingerprint=$(cat requirements.txt setup.cfg <(echo "$PWD $version") | sha256sum | cut -d' ' -f1)
is_complete() { [ "$(cat $venv/.complete 2>/dev/null)" = "$fingerprint" ] && [ -x $venv/bin/fairseq-train ]; }
if is_complete; then
  echo "$venv is ready."
  exit 0
fi

# If two set-ups run at once, the second one waits and then has nothing to do.
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
step() { # NUMBER TITLE COMMAND...: run a command, log its output, show its end on failure
  local started=$SECONDS
  echo "[$1/6] $2 ..."
  shift 2
  if ! "$@" >>$log 2>&1; then
    tail -n 25 $log >&2
    fail "this failed: $*
The whole log is in $log. Run the same command again to continue."
  fi
  echo "      done in $((SECONDS - started)) s"
}
install() { $venv/bin/pip install --disable-pip-version-check --constraint <(grep -v ' --hash' requirements.txt) "$@"; }
install_group() { install --requirement <(group "$1"); }
# The hash is that of the sources; their dependencies are installed above.
build_fairseq() {
  $venv/bin/pip install --disable-pip-version-check --no-build-isolation --no-deps --require-hashes \
    --requirement <(group fairseq) && return
  explain_failed_build
  return 1
}
explain_failed_build() {
  local header
  header=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"] + "/Python.h")')
  echo "fairseq is compiled from source. Its build failed."
  command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    echo "Missing: a C++ compiler (Debian, Ubuntu: apt install build-essential)."
  [ -f "$header" ] || echo "Missing: Python's headers, $header (Debian, Ubuntu: apt install python3-dev)."
  [ "$(df -Pk . | awk 'NR == 2 {print $4}')" -gt 1000000 ] || echo "Missing: disk space, less than 1 GB is free."
}
check() {
  local help
  help=$($venv/bin/fairseq-train --user-dir fairseq_plugins --help) || return 1
  grep -q soft_beam_search <<<"$help" || { echo "fairseq-train does not list the criterion soft_beam_search"; return 1; }
}

step 1 "installing torch" install_group torch
step 2 "installing the build tools of fairseq" install_group build
step 3 "installing the other requirements" install_group run
step 4 "installing test tools" install_group dev
step 5 "building fairseq (2 to 5 minutes the first time)" build_fairseq
step 6 "installing the plug-in and checking that fairseq finds it" install --no-build-isolation --no-deps --editable .
check >>$log 2>&1 || { tail -n 25 $log >&2; fail "fairseq does not load the plug-in; the whole log is in $log."; }
echo "$fingerprint" >$venv/.complete
echo "Set-up is complete: $venv/bin/fairseq-train --user-dir fairseq_plugins ..."
