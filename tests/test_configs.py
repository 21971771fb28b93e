"""Every shipped configuration, and what README.md says of the options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import ROOT

from fairseq_plugins.training.config import PROJECT_KEYS, read_config

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_fairseqs_own_parser_takes_the_config(path, task):
    from fairseq_plugins.training.fairseq_options import build_arguments

    config = read_config(path)
    options = {key: value for key, value in config.items() if key not in PROJECT_KEYS}
    if "start_from" in config:  # the checkpoint gives the architecture
        options.setdefault("arch", "transformer")
    arguments = build_arguments(options, also_known=PROJECT_KEYS)
    assert arguments[arguments.index("--arch") + 1] == options["arch"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# .venv/bin/python scripts/train.py configs/{path.name}"


def test_a_control_differs_from_its_beam_run_in_the_criterion_only(task):
    from fairseq_plugins.criterions.options import SoftBeamSearchConfig

    criterion = {field.name for field in dataclasses.fields(SoftBeamSearchConfig)}
    controls = [path for path in CONFIGS if path.stem.endswith("_control")]
    assert controls
    for control in controls:
        expected = read_config(control)
        for beam in CONFIGS:
            stem = control.stem.removesuffix("_control")
            if beam.stem.startswith(f"{stem}_") and beam != control:
                config = read_config(beam)
                if any(
                    config.get(key) != expected.get(key) for key in ("arch", "data")
                ):
                    continue  # another experiment
                differing = {
                    key
                    for key in config | expected
                    if config.get(key) != expected.get(key)
                }
                assert differing <= criterion | {"criterion", "run"}, beam


def test_every_file_that_the_readme_names_is_there():
    readme = (ROOT / "README.md").read_text()
    named = set(
        re.findall(r"(?<![\w/])((?:scripts|configs|data|docs)/[\w./-]+\w)", readme)
    )
    assert named
    missing = [name for name in sorted(named) if not (ROOT / Path(name)).exists()]
    assert not missing


def test_the_page_on_top_k_attention_has_every_option_with_its_default(task):
    from argparse import ArgumentParser, Namespace

    from fairseq_plugins.models.topk_attention import TopkSettings, add_options

    parser, defaults = ArgumentParser(), Namespace()
    add_options(parser)
    TopkSettings.from_args(defaults)
    page = (ROOT / "docs" / "topk_attention.md").read_text()
    written: dict[str, str] = {}
    for names, values in re.findall(r"^\| (`--topk.*?) \| (.*?) \|", page, re.M):
        options = re.findall(r"`--([a-z-]+)`", names)
        written.update(zip(options, values.replace("`", "").split(", ")))
    for action in parser._actions:
        name = action.option_strings[-1].removeprefix("--")
        if name == "help":
            continue
        default = getattr(defaults, name.replace("-", "_"))
        shown = f"--{name.removesuffix('-end')}" if default is None else default
        shown = f"{shown:g}" if isinstance(shown, float) else str(shown)
        assert written.pop(name) == shown, name
        if default is not None:
            assert f"default: {shown}" in action.help
    assert not written
