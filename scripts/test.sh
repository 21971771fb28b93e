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
$venv/bin/python -m pytest "$@"
