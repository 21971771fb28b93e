#!/usr/bin/env bash
# WMT'14 English-German from raw text to BLEU, one stage at a time or all; see --help.
#   bash scripts/wmt14_en_de.sh --smoke --source DIR all   # minutes on a CPU
#   bash scripts/wmt14_en_de.sh all                        # the full run, on GPUs
# wmt.sh holds the stages; docs/wmt.md has costs and published figures.
task=wmt14_en_de
title="WMT'14 English-German"
models="base big" default_model=base
stages="prepare baseline control soft evaluate all"
recipe_of() { echo wmt14-en-de; }
published="base 27.3, big 28.4 (Vaswani et al., 2017); newstest2014, tokenized BLEU."
. "$(dirname "${BASH_SOURCE[0]}")/wmt.sh"
main "$@"
