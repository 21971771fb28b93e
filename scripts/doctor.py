"""Say what is missing or wrong on this machine for each stage, and how to mend it.

    python3 scripts/doctor.py [--recipe wmt14-en-de] [--model base] [--source DIR]
                              [--out DIR] [--stage STAGE] [--json]

Looks at .venv if it is there, else at the Python that runs it. Nothing is installed,
downloaded or changed. With --recipe its files are looked for as by scripts/prepare.py,
and each host of archives that are still to be downloaded is asked for one answer. The
exit status is 1 if a stage cannot run, else 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fairseq_plugins.doctor.checks import MODELS, STAGES, Finding, check
from fairseq_plugins.doctor.system import examine, recipe_needs

MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def main() -> int:
    arguments = _parse_arguments()
    python = arguments.python or _environments_python()
    needs, fault = None, None
    if arguments.recipe:
        needs, fault = recipe_needs(python, arguments.recipe, arguments.source)
    has_source = arguments.source is not None
    hosts = needs.hosts if needs and not has_source else ()
    findings = check(
        examine(python, arguments.out, hosts),
        model=arguments.model,
        needs=needs,
        fault=fault,
        has_source=has_source,
    )
    # With a recipe that was looked at already, and is a fault.
    if has_source and not arguments.recipe and not arguments.source.is_dir():
        what = f"`--source` is no folder: {arguments.source}"
        findings.append(Finding("prepare", "problem", what, "give another one"))
    findings = [f for f in findings if arguments.stage in (None, f.stage)]
    _show(findings, as_json=arguments.json)
    return int(any(finding.level == "problem" for finding in findings))


def _environments_python() -> Path:
    python = ROOT / ".venv" / "bin" / "python"
    return python if python.exists() else Path(sys.executable)


def _show(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
        return
    for stage in STAGES:
        for finding in findings:
            if finding.stage == stage:
                what = finding.what.replace("\n", f"\n{'':19}")
                print(f"{stage:9} {MARKS[finding.level]:8} {what}")
                if finding.mend:
                    print(f"{'':18} -> {finding.mend}")
    for stage in STAGES:
        if any(f.stage == stage and f.level == "problem" for f in findings):
            print(f"{stage} cannot run yet.")


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", help="look at what this recipe needs, such as wmt14-en-de")
    add("--model", choices=MODELS, help="look at what the WMT runs of it need")
    add("--stage", choices=STAGES, help="only this stage")
    add("--source", type=Path, metavar="DIR", help="the recipe's files are here")
    add("--out", type=Path, metavar="DIR", default=ROOT / "runs",
        help="where results would go (default: runs)")  # fmt: skip
    add("--python", type=Path, metavar="FILE", help="the interpreter to look at")
    add("--json", action="store_true", help="print a list of findings as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
