#!/usr/bin/env bash
# The whole workflow on the built-in corpus: train an LSTM with cross entropy, continue
# with (a) cross entropy, the control, and (b) beam-aware training for as many updates,
# and compare all three at beam 1 and 5. It takes about nine minutes on two cores. After
# an interruption, the same command continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
python=$venv/bin/python
# These models are too small to gain from a second thread.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "== 1/6 prepare the built-in corpus"
$python scripts/prepare.py builtin-en-fr
echo "== 2/6 train with cross entropy"
$python scripts/train.py configs/builtin_lstm.yaml
echo "== 3/6 control: continue with cross entropy"
$python scripts/train.py configs/builtin_lstm_control.yaml
echo "== 4/6 continue with beam-aware training"
$python scripts/train.py configs/builtin_lstm_soft_beam.yaml
echo "== 5/6 evaluate and compare"
$python scripts/compare.py runs/demo/control runs/demo/start runs/demo/soft_beam \
  --beam 1 5 --json runs/demo/results.json
echo "As JSON: runs/demo/results.json"
echo "== 6/6 write the report"
report=$($python scripts/report.py runs/demo/control runs/demo/start runs/demo/soft_beam \
  -o runs/demo/report.html)
echo "Report with curves, translations and beams: $PWD/$report"
echo "p-values are over sentences, for one training each. Other seeds and processors give other"
echo "results: this demo shows the workflow and the cost; docs/results.md shows the gain."
echo "Next: your own text (docs/quickstart.md), or scripts/translate.py runs/demo/control FILE"
