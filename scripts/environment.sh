# Sourced by the other shell scripts in the repository root: creates .venv if needed.
venv=.venv
if [ ! -e $venv/.complete ]; then
  echo "No complete $venv yet: running scripts/setup.sh first."
fi
bash scripts/setup.sh
