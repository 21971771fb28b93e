# Read by wmt14_en_fr.sh, wmt14_en_de.sh and wmt16_en_de.sh, which set `task`, `title`,
# `models`, `default_model`, `stages`, `published` and the function `recipe_of MODEL`. Every
# step is a command of scripts/, which is printed before it runs and skips finished work.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
run() { echo "+ $*"; "$@"; }

usage() {
  cat <<END
$title: from raw text to BLEU.

  scripts/$task.sh [--smoke] [--source DIR] [--out DIR] [--model MODEL] STAGE [key=value ...]

STAGE     prepare   convert text to the format of fairseq
          baseline  train with cross entropy, then average the last checkpoints
          control   continue from there with cross entropy, for as many updates as soft
          soft      continue from there with beam-aware training${topk_help:-}
          evaluate  BLEU with signature of all trained systems, tested against the control
          all       all of these in this order
--smoke   a tiny slice and tiny models: minutes on a CPU, to test all stages
--source  folder with the files of the corpus; without it they are downloaded
--out     folder for all results (default: runs, with --smoke: runs/smoke)
--model   $(echo $models | sed 's/ / or /g') (default: $default_model)
key=value options of fairseq-train for all training stages, such as max_tokens=2048
All GPUs are used; CUDA_VISIBLE_DEVICES selects some of them.

Published: $published
END
}

parse() {
  smoke='' source='' out='' model=$default_model stage='' changes=()
  while [ $# -gt 0 ]; do
    case $1 in
      --smoke) smoke=yes ;;
      --source | --out | --model)
        [ $# -gt 1 ] || fail "\`$1\` must have a value."
        declare -g "${1#--}=$2"; shift ;;
      -h | --help) usage; exit 0 ;;
      -*) fail "unknown option \`$1\`; see scripts/$task.sh --help." ;;
      *=*) changes+=("$1") ;;
      *) [ -z "$stage" ] || fail "there must be one STAGE, but are \`$stage\` and \`$1\`."; stage=$1 ;;
    esac
    shift
  done
  [[ " $models " == *" $model "* ]] || fail "\`--model\` must be one of $models, but is \`$model\`."
  [[ " $stages " == *" ${stage:-none} "* ]] || fail "STAGE must be one of $stages, but is \`$stage\`."
  [ -z "$source" ] || source=$(absolute "$source")
  [ -z "$source" ] || [ -d "$source" ] || fail "\`--source\` must be a folder, but \`$source\` is not."
  if [ -n "$out" ]; then out=$(absolute "$out"); else out=$PWD/runs${smoke:+/smoke}; fi
  recipe=$(recipe_of "$model")
  data=$out/data/$(basename "$recipe" .yaml)
}

# Tiny sizes for --smoke; they override the configurations.
smoke_model() {
  case $model in
    lstm) echo encoder_embed_dim=32 encoder_hidden_size=48 decoder_embed_dim=32 decoder_hidden_size=48 decoder_out_embed_dim=24 ;;
    *) echo encoder_embed_dim=32 encoder_ffn_embed_dim=64 encoder_layers=2 encoder_attention_heads=2 \
         decoder_embed_dim=32 decoder_ffn_embed_dim=64 decoder_layers=2 decoder_attention_heads=2 ;;
  esac
}
smoke_training() { # UPDATES
  echo cpu=true bf16=null distributed_world_size=1 num_workers=0 batches_per_update=1 max_tokens=1000 lr=3e-3 warmup_updates=null \
    warmup_init_lr=null total_num_update=null lr_scheduler=fixed max_update="$1" save_interval_updates=7 log_interval=5 "$(smoke_model)"
}

train() { # CONFIG RUN UPDATES-OF-A-SMOKE [key=value ...]
  local config=configs/$1.yaml to=$out/$task/$2 of_smoke=$3
  shift 3
  local options=("data=$data" "run=$to" "$@")
  if [ -n "$smoke" ]; then
    read -ra tiny <<<"$(smoke_training "$of_smoke")"
    options+=("${tiny[@]}")
  fi
  run "$python" scripts/train.py "$config" "${options[@]}" ${changes[@]+"${changes[@]}"}
  run "$python" scripts/average.py "$to" --last-updates "$(awk '$1 == "keep_interval_updates:" {print $2}' "$to/config.yaml")"
}
continue_baseline() { # CONFIG RUN
  train "$1" "$2" 14 "start_from=$out/$task/$model/checkpoints/checkpoint_average.pt"
}

prepare() { run "$python" scripts/prepare.py "$recipe" --out "$data" ${source:+--source "$source"} ${smoke:+--smoke} ; }
baseline() { train "${task}_$model" "$model" 105; }
control() { continue_baseline "${task}_${model}_control" "${model}_control"; }
soft() { continue_baseline "${task}_${model}_soft_beam" "${model}_soft_beam"; }
topk() { train "${task}_topk_$model" "topk_$model" 105; }

# Every system is the average of its last checkpoints, so that no checkpoint is chosen by its
# score. The control of top-k attention is the baseline.
evaluate() {
  local to=$out/$task
  compare "$to/${model}_control" "$to/$model" "$to/${model}_soft_beam"
  [[ " $stages " != *" topk "* ]] || compare "$to/$model" "$to/topk_$model"
}
compare() { # CONTROL RUN...: the first trained system is the control
  local trained=() each
  for each; do
    [ ! -f "$each/checkpoints/checkpoint_average.pt" ] || trained+=("$each")
  done
  case ${#trained[@]} in
    0) fail "nothing has been trained in \`$out/$task\` yet: run the stage baseline." ;;
    1) run "$python" scripts/evaluate.py "${trained[@]}" --checkpoint checkpoint_average.pt --beam 1 5 ;;
    *)
      [[ $1 = "${trained[0]}" ]] ||
        echo "warning: \`$1\` has not been trained, so \`${trained[0]}\`, which had fewer updates, is the control" >&2
      run "$python" scripts/compare.py "${trained[@]}" --checkpoint checkpoint_average.pt --beam 1 5 --sentences 0 ;;
  esac
}

main() {
  parse "$@"
  python=${PYTHON:-python3} # the scripts switch to .venv and create it if necessary
  [ -z "$smoke" ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  local all each
  if [ "$stage" = all ]; then all=${stages% all}; else all=$stage; fi
  for each in $all; do
    echo "== $title, $model: $each"
    "$each"
  done
}
