#!/usr/bin/env bash
# The main job: does training for the beam pay? On the corpus that comes with the
# project: cross entropy, then as many more updates of (a) cross entropy, the control,
# and (b) SOFT beam training; all three evaluated at beam 1 and 5. About nine minutes on
# two cores. Started again after an interruption it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
python=$venv/bin/python
# These models are small: a second thread gains little on idle cores, and waiting for it
# costs a lot on busy ones.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "== 1/6 prepare the built-in corpus"
$python scripts/prepare.py builtin-en-fr
echo "== 2/6 train by cross entropy"
$python scripts/train.py configs/builtin_lstm.yaml
echo "== 3/6 control: go on by cross entropy"
$python scripts/train.py configs/builtin_lstm_control.yaml
echo "== 4/6 go on by SOFT beam training"
$python scripts/train.py configs/builtin_lstm_soft_beam.yaml
echo "== 5/6 evaluate and compare"
$python scripts/compare.py runs/demo/control runs/demo/start runs/demo/soft_beam \
  --beam 1 5 --json runs/demo/results.json
echo "The same as JSON: runs/demo/results.json"
echo "== 6/6 write the report"
report=$($python scripts/report.py runs/demo/control runs/demo/start runs/demo/soft_beam \
  -o runs/demo/report.html)
echo "A page to look at, with the searches step by step: $PWD/$report"
