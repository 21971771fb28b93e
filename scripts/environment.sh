# Read by the other shell scripts from the repository root: makes .venv if need be.
venv=.venv
if [ ! -e $venv/.complete ]; then
  echo "No complete $venv yet: running scripts/setup.sh first."
fi
bash scripts/setup.sh
