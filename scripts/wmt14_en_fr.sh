#!/usr/bin/env bash
# WMT'14 English-French from raw text to BLEU, one stage at a time or all; see --help.
#   bash scripts/wmt14_en_fr.sh --smoke --source DIR all   # minutes on a CPU
#   bash scripts/wmt14_en_fr.sh all                        # the full run, on GPUs
# wmt.sh holds the stages; docs/wmt.md has costs and published figures.
task=wmt14_en_fr
title="WMT'14 English-French"
models="lstm base big" default_model=lstm
stages="prepare baseline control soft evaluate all"
# The LSTMs of the literature were trained on the selection of 12 million pairs.
recipe_of() { if [ "$1" = lstm ]; then echo wmt14-en-fr-12m; else echo wmt14-en-fr; fi; }
published="LSTM 35.38, beam-aware 36.27 (Xie et al., 2020); base 38.1, big 41.8 (Vaswani et al., 2017); newstest2014, tokenized BLEU."
. "$(dirname "${BASH_SOURCE[0]}")/wmt.sh"
main "$@"
