#!/usr/bin/env bash
# Lint, types and tests; arguments go to pytest:  bash scripts/test.sh -k operators
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh

echo "== lint"
$venv/bin/flake8
echo "== types"
$venv/bin/mypy
echo "== tests"
# One worker for each core, each with one thread; a file stays with one worker.
OMP_NUM_THREADS=1 $venv/bin/python -m pytest --numprocesses auto --dist loadfile "$@"
