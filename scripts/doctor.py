"""Report what is missing or wrong on this system for each stage, and how to fix it.

    python3 scripts/doctor.py [--recipe wmt14-en-de] [--model base] [--source DIR]
                              [--out DIR] [--stage STAGE] [--json]

Inspects .venv if it exists, otherwise the Python that runs it. Nothing is installed,
downloaded or changed. With --recipe it finds the files as scripts/prepare.py does, and
connects once to each server of archives that are still to be downloaded. The exit
status is 1 if a stage cannot run, otherwise 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fairseq_plugins.doctor.checks import MODELS, STAGES, Finding, check_system
from fairseq_plugins.doctor.system import inspect_recipe, inspect_system

MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def main() -> int:
    arguments = _parse_arguments()
    python = arguments.python or ROOT / ".venv" / "bin" / "python"
    if not arguments.python and not python.exists():
        python = Path(sys.executable)
    recipe = None
    if arguments.recipe:
        recipe = inspect_recipe(python, arguments.recipe, arguments.source)
    system = inspect_system(python, arguments.out, recipe.hosts if recipe else ())
    findings = check_system(system, model=arguments.model, recipe=recipe)
    findings = [f for f in findings if arguments.stage in (None, f.stage)]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        _print_findings(findings)
    return int(any(finding.level == "problem" for finding in findings))


def _print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        message = finding.message.replace("\n", f"\n{'':19}")
        print(f"{finding.stage:9} {MARKS[finding.level]:8} {message}")
        if finding.fix:
            print(f"{'':18} -> {finding.fix}")
    for stage in STAGES:
        if any(f.stage == stage and f.level == "problem" for f in findings):
            print(f"{stage} cannot run yet.")


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", help="check the needs of this recipe, such as wmt14-en-de")
    add("--model", choices=MODELS, help="check the needs of the WMT runs of this model")
    add("--stage", choices=STAGES, help="report this stage only")
    add("--source", type=Path, metavar="DIR", help="folder with the recipe's files")
    add("--out", type=Path, metavar="DIR", default=ROOT / "runs",
        help="folder for results (default: runs)")  # fmt: skip
    add("--python", type=Path, metavar="FILE", help="the interpreter to inspect")
    add("--json", action="store_true", help="print a list of findings as JSON")
    arguments = parser.parse_args()
    if arguments.source is not None and not arguments.recipe:
        parser.error("--source is the folder of a recipe: pass --recipe, too.")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
