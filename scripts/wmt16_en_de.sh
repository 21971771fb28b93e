#!/usr/bin/env bash
# WMT'16 English-German from raw text to BLEU, one stage at a time or all; see --help.
#   bash scripts/wmt16_en_de.sh --smoke --source DIR all   # minutes on a CPU
#   bash scripts/wmt16_en_de.sh all                        # the full run, on GPUs
# wmt.sh holds the stages; docs/wmt.md has costs and published figures.
task=wmt16_en_de
title="WMT'16 English-German"
models="base big" default_model=base
stages="prepare baseline control soft topk evaluate all"
topk_help="
          topk      train from random weights with SOFT top-k attention"
recipe_of() { echo wmt16-en-de; }
published="Transformer 36.54, with SOFT top-k attention 37.30 (Xie et al., 2020); newstest2016."
. "$(dirname "${BASH_SOURCE[0]}")/wmt.sh"
main "$@"
