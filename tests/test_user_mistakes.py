"""The table of users' mistakes and the messages that they get."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.corpus.recipe import Recipe, load_recipe
from fairseq_plugins.corpus.stages import lock_output_dir
from fairseq_plugins.evaluation.compare import compare_runs
from fairseq_plugins.evaluation.evaluate import evaluate_run
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.operators import get_sorted_operator, soft_topk, sorted_soft_topk
from fairseq_plugins.training.config import pin_inputs, read_config
from fairseq_plugins.training.fairseq_options import build_arguments
from fairseq_plugins.training.launch import count_processes
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json, read_lines
from fairseq_plugins.utils.typed_yaml import read_dataclass

TRAIN = {"arch": "lstm", "optimizer": "adam", "lr": 0.1, "max_tokens": 100}
SCORES = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(text: str | bytes, *overrides: str) -> Callable[[], Any]:
    def read() -> Any:
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(Path("c.yaml"), overrides)

    return read


CONFIGS = {
    "no file": (lambda: read_config(Path("x.yaml")), "`x.yaml` does not exist."),
    "a folder": (lambda: read_config(Path(".")), "`.` must be a file, but is a"),
    "empty": (config(""), "must hold lines of `key: value`"),
    "a list": (config("- data\n"), "must hold lines of `key: value`"),
    "a set": (config("!!set {data, run}"), "must hold lines of `key: value`"),
    "no YAML": (config("data: [1\n"), "is not valid YAML: line 2, column 1"),
    "a tab": (config("data:\n\tx: 1\n"), "is not valid YAML: line 2"),
    "not UTF-8": (config(b"data: \xff\n"), "`c.yaml` must be UTF-8 text"),
    "an object": (config("data: !!python/name:os.system\n"), "could not determine"),
    "no such day": (config("data: 2001-99-99\nrun: x\n"), "is not valid YAML"),
    "too deep": (config("data: " + "[" * 1500), "not valid YAML: too deeply nested"),
    "twice": (config("data: x\nlr: 1\nlr: 2\n"), "gives `lr` twice, on lines 2 and 3"),
    "no data": (config("run: x\n"), "must give `data`, or add `data=...`"),
    "no run": (config("data: x\n"), "must give `run`, or add `run=...`"),
    "null data": (config("data: null\nrun: x\n"), "must give `data`"),
    "no equals": (config("data: x\n", "lr"), "`lr` must be written as `key=value`"),
    "no key": (config("data: x\n", "=3"), "`=3` must be written as `key=value`"),
    "no value": (config("data: x\n", "lr=[1"), "`lr=[1` is not valid YAML"),
}


def pinned(**change: Any) -> Callable[[], Any]:
    def pin() -> Any:
        Path("bin").mkdir()
        Path("bin/dict.xx.txt").write_text("a 1\n")
        return pin_inputs({"data": "bin", "run": "run", **change}, recorded=None)

    return pin


def options(**change: Any) -> Callable[[], Any]:
    given = {**TRAIN, **change}
    return lambda: build_arguments({k: v for k, v in given.items() if v is not None})


TRAINING = {
    "data is not there": (pinned(data="no"), "`data` must be a folder that"),
    "data is no corpus": (pinned(data="."), "holds neither"),
    "data has changed": (pinned(data_sha256="a1"), "`data_sha256` is a1, but `bin`"),
    "no start": (pinned(start_from="a.pt"), "`start_from` must be a file, but `a.pt`"),
    "unknown key": (options(dropuot=0.1), "`dropuot`. Did you mean `dropout`?"),
    "other architecture": (options(encoder_attention_heads=2), "has no such option"),
    "no arch": (options(arch=None), "`arch` must be given."),
    "no optimizer": (options(optimizer=None), "`optimizer` must be given."),
    "no batch size": (options(max_tokens=None), "`max_tokens` or `batch_size` must be"),
    "wrong arch": (options(arch="lstmm"), "but is `lstmm`. Did you mean `lstm`?"),
    "wrong criterion": (options(criterion="soft_beem_search"), "`soft_beam_search`?"),
    "wrong optimizer": (options(optimizer="adm"), "but is `adm`. Did you mean `adam`"),
    "words as number": (options(max_tokens="many"), "must be a whole number, but is"),
    "fraction": (options(max_tokens=1.5), "`max_tokens` must be a whole number"),
    "a flag's value": (options(cpu=3), "`cpu` must be true or false, but is `3`."),
    "a number's flag": (options(dropout=True), "`dropout` must be a number, but is"),
    "yes": (options(source_lang=True), "YAML reads on, off, yes and no so"),
    "save_dir": (options(save_dir="x"), "`save_dir` must not be given: it is always"),
    "user_dir": (options(user_dir="x"), "`user_dir` must not be given: it is always"),
    "restore_file": (options(restore_file="x"), "use `start_from`, or an earlier"),
    "finetune": (options(finetune_from_model="x"), "not be given: use `start_from`."),
    "wrong mixing": (
        options(criterion="soft_beam_search", mixing="sofft"), "Did you mean `soft`?"
    ),
}  # fmt: skip


def other_configuration() -> None:
    run = RunFolder(Path("run"))
    run.record_start({"data": "x", "run": "run", "lr": 0.1}, "command")
    run.checkpoints.mkdir()
    run.last_checkpoint.write_bytes(b"")
    run.check_resumable({"data": "x", "run": "run", "lr": 0.2})


def resumed_with(**change: Any) -> Callable[[], Any]:
    def resume() -> None:
        run = RunFolder(Path("run"))
        run.record_start({"data": "x", "run": "run"}, "command")
        run.checkpoints.mkdir()
        run.last_checkpoint.write_bytes(b"")
        run.check_resumable({"data": "x", "run": "run", **change})

    return resume


def run_twice() -> None:
    with RunFolder(Path("run")).lock(), RunFolder(Path("run")).lock():
        pass


def checkpoint(content: bytes) -> Callable[[], Any]:
    def read() -> Any:
        Path("c.pt").write_bytes(content)
        return read_checkpoint(Path("c.pt"))

    return read


SHELL = b"cposix\nsystem\n(Vtouch marker\ntR."
RUNS = {
    "other configuration": (other_configuration, "`lr` was 0.1 and is 0.2."),
    "batches": (resumed_with(batches_per_update="many"), "number, but is `many`."),
    "frequency": (resumed_with(update_freq=["x"]), "`update_freq` must be a whole num"),
    "processes": (
        lambda: count_processes({"distributed_world_size": "two"}), "but is `two`."
    ),
    "two at once": (run_twice, "another training uses `run` now."),
    "empty checkpoint": (checkpoint(b""), "`c.pt` cannot be read"),
    "text as checkpoint": (checkpoint(b"hello"), "`c.pt` cannot be read"),
    "cut checkpoint": (checkpoint(b"PK\3\4" + bytes(90)), "`c.pt` cannot be read"),
    "foreign checkpoint": (checkpoint(SHELL), "nothing in it was run"),
}  # fmt: skip


def recipe(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    def read() -> Any:
        from soak_tools import write_corpus

        path = write_corpus(Path("corpus"), pairs={"train": 1, "dev": 1, "new": 1})
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))
        return read_dataclass(path, Recipe)

    return read


def with_archive(**facts: Any) -> Callable[[], Any]:
    archive = {"file": "a.tgz", "url": "https://host/a.tgz", **facts}
    return recipe(lambda r: r.update(archives=[archive]))


def subwords(**change: Any) -> Callable[[], Any]:
    return recipe(lambda r: r["subwords"].update(change))


def cleaning(**change: Any) -> Callable[[], Any]:
    return recipe(lambda r: r["cleaning"].update(change))


def out(path: str) -> Callable[[], Any]:
    def claim() -> None:
        Path("file").write_text("mine")
        with lock_output_dir(Path(path)):
            pass

    return claim


RECIPES = {
    "unknown name": (lambda: load_recipe("multi30k-dee-n"), "`multi30k-de-en`?"),
    "no file": (lambda: load_recipe("no.yaml"), "there is no recipe `no.yaml`"),
    "misspelt key": (recipe(lambda r: r.update(tets=1)), "`tets` in the file"),
    "missing key": (recipe(lambda r: r.pop("train")), "key `train` is missing"),
    "no parts": (recipe(lambda r: r.update(valid=[])), "`valid` must be a list with"),
    "same language": (recipe(lambda r: r.update(source_lang="yy")), "must differ."),
    "bad language": (recipe(lambda r: r.update(source_lang="x/y")), "language code"),
    "number as text": (recipe(lambda r: r.update(licence=3)), "Put it in quotes."),
    "vocabulary": (subwords(vocab_size=0), "`vocab_size` must be positive, but is 0"),
    "model type": (subwords(model_type="bpee"), "Did you mean `bpe`?"),
    "coverage": (subwords(character_coverage=2.0), "above 0 and at most 1, but is 2"),
    "max words": (cleaning(max_words=-1), "`max_words` must be positive, but is -1"),
    "ratio": (cleaning(max_ratio=0.5), "`max_ratio` must be at least 1, but is 0.5"),
    "letters": (cleaning(min_letters=7.0), "`min_letters` must be above 0"),
    "flag": (cleaning(normalise=1), "`cleaning.normalise` must be"),
    "file url": (with_archive(url="file:///etc/passwd"), "begin with http or https"),
    "url with a space": (with_archive(url=" http://host/a"), "begin with http"),
    "climbing file": (with_archive(file="../a"), "must be the name of a file"),
    "short digest": (with_archive(sha256="abc"), "`sha256` must be 64 lower-case"),
    "no bytes": (with_archive(bytes=0), "`bytes` must be positive, but is 0"),
    "out is a file": (out("file"), "`--out` must be a folder, not a file"),
    "out is taken": (out("."), "`.` holds other files"),
    "comma in out": (out("a,b"), "`--out` must not contain `,`"),
    "colon in out": (out("a:b"), "`--out` must not contain `:`"),
}


def manifest(content: Any) -> Callable[[], Any]:
    def load() -> Any:
        Path("manifest.json").write_text(json.dumps(content))
        return PreparedCorpus.load(Path("."))

    return load


FORMAT = "fairseq-soft-topk corpus, 1"
EVALUATION = {
    "no run": (lambda: evaluate_run(Path("no")), "`no` must be a run folder of"),
    "no beam": (lambda: evaluate_run(Path("no"), beams=[0]), "`--beam` must be 1 or"),
    "unfinished": (lambda: compare_runs([Path("no")], []), "must be a finished run"),
    "unprepared": (lambda: PreparedCorpus.load(Path(".")), "but holds no manifest."),
    "no folder": (lambda: PreparedCorpus.load(Path("no")), "but is no folder"),
    "other manifest": (manifest({}), "is no manifest of scripts/prepare.py"),
    "half manifest": (manifest({"format": FORMAT}), "is damaged (KeyError: 'recipe')"),
    "no file": (lambda: read_lines(Path("no")), "`no` does not exist."),
    "no JSON": (lambda: read_json(Path("no")), "`no` does not exist."),
    "unequal": (lambda: score(["a"], ["a", "b"]), "must have the same number of lines"),
    "none": (lambda: score([], []), "1 or more, but have 0 and 0"),
    "pieces": (lambda: score(["\u2581a"], ["a"]), "must be plain text, but contains"),
    "no method": (
        lambda: paired_test(["a"], ["a"], ["a"], method="t"), "`method` must be"
    ),
    "no samples": (
        lambda: paired_test(["a"], ["a"], ["a"], samples=0), "`samples` must be 1 or"
    ),
}  # fmt: skip
OPERATORS = {
    "k too great": (lambda: soft_topk(SCORES, 4, epsilon=1.0), "between 1 and 3"),
    "k is 0": (lambda: soft_topk(SCORES, 0, epsilon=1.0), "`k` must be between 1"),
    "k is a negative fraction": (
        lambda: soft_topk(SCORES, -0.5, epsilon=1.0),
        "`k` must be above 0",
    ),
    "epsilon is 0": (lambda: soft_topk(SCORES, 1, epsilon=0.0), "positive number"),
    "epsilon is NaN": (lambda: soft_topk(SCORES, 1, epsilon=math.nan), "but is nan"),
    "whole numbers": (lambda: soft_topk(SCORES.int(), 1, epsilon=1.0), "floating poin"),
    "nothing": (lambda: soft_topk(SCORES[:0], 1, epsilon=1.0), "one candidate"),
    "wrong mask": (
        lambda: soft_topk(SCORES, 1, epsilon=1.0, mask=SCORES), "must be boolean"
    ),
    "short mask": (
        lambda: soft_topk(SCORES, 1, epsilon=1.0, mask=torch.ones(2) > 0),
        "`mask` must broadcast",
    ),
    "sorted k": (lambda: sorted_soft_topk(SCORES, 9, epsilon=1.0), "but is 9."),
    "operator": (lambda: get_sorted_operator("topk"), "but is 'topk'."),
}  # fmt: skip
CRITERION = [
    (dict(rho=1.5), "`--rho` must be between 0 and 1, but is 1.5."),
    (dict(beam=0), "`--beam` must be at least 1, but is 0."),
    (dict(beam_start=0), "`--beam-start` must be at least 1, but is 0."),
    (dict(beam=500), "`--beam` must be below"),
    (dict(pool_size=2), "`--pool-size` must be above the beam (5)"),
    (dict(epsilon=0.0), "`--epsilon` must be positive and finite, but is 0.0."),
    (dict(epsilon=math.nan), "`--epsilon` must be positive and finite, but is nan."),
    (dict(epsilon=math.inf), "`--epsilon` must be positive and finite, but is inf."),
    (dict(epsilon_end=-1.0), "`--epsilon-end` must be positive and finite"),
    (dict(epsilon_updates=-1), "`--epsilon-updates` must be 0 or more and"),
    (dict(selection_clip=-1.0), "`--selection-clip` must be 0 or more"),
    (dict(risk_epsilon=0.0), "`--risk-epsilon` must be positive"),
    (dict(mrt_alpha=0.0), "`--mrt-alpha` must be positive"),
    (dict(beam_max_len_b=-1), "`--beam-max-len-b` must be 0 or more"),
    (dict(beam_loss="rsk"), "has `rsk`. Did you mean `risk`?"),
    (dict(beam_loss=""), "`--beam-loss` must name losses out of"),
    (dict(beam_loss="risk,risk"), "`--beam-loss` must name `risk` only once."),
    (dict(beam_loss="risk=0"), "must give `risk` a positive weight, but has `0`."),
    (dict(beam_loss="risk=x"), "must give `risk` a positive weight, but has `x`."),
    (dict(engine="two-pass", mixing="soft"), "must be rollout unless mixing is hard"),
    (dict(beam_loss="risk", reset_to_gold=True), "when the beam is reset to the ref"),
    (dict(ignore_prefix_size=1), "`--ignore-prefix-size` must be 0, but is 1."),
]


ARGUMENTS = [
    ("evaluate", ["run", "--beam", "0"], "must be 1 or more, but is 0"),
    ("evaluate", ["run", "--beam", "x"], "argument --beam: invalid"),
    ("evaluate", ["run", "--lenpen", "nan"], "must be a finite number, but is nan"),
    ("evaluate", ["run", "--max-tokens", "-1"], "must be 1 or more, but is -1"),
    ("evaluate", [], "the following arguments are required: RUN"),
    ("compare", ["control"], "the following arguments are required: SYSTEM"),
    ("compare", ["control", ","], "must name a system, but is `,`"),
    ("compare", ["a", "b", "--beam", "0"], "must be 1 or more, but is 0"),
    (
        "compare",
        ["a", "b", "--reference", "r", "--beam", "5"],
        "--beam is an option for run folders, but with --reference",
    ),
    ("compare", ["a", "b", "--lenpen", "inf"], "must be a finite number, but is inf"),
    ("compare", ["a", "b", "--sentences", "-1"], "must be 0 or more, but is -1"),
    ("train", [], "the following arguments are required: CONFIG.yaml"),
    ("train", ["c.yaml", "--dry"], "`c.yaml` does not exist."),
    ("prepare", [], "the following arguments are required: recipe"),
]


# A mistake is a function, or options of the criterion, or a command line.
TABLE: dict[str, tuple[Any, str]] = {
    f"{group}: {name}": mistake
    for group, mistakes in (
        ("config", CONFIGS), ("train", TRAINING), ("run", RUNS), ("prepare", RECIPES),
        ("evaluate", EVALUATION), ("operators", OPERATORS),
        ("criterion", {str(given): (given, text) for given, text in CRITERION}),
        ("script", {" ".join([name, *words]): ([name, *words], text)
                    for name, words, text in ARGUMENTS}),
    )
    for name, mistake in mistakes.items()
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_gets_a_message_that_names_it_and_the_rule(
    name: str,
    here: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake, message = TABLE[name]
    errors = ValueError if name.startswith(("operators", "criterion")) else UserError
    with pytest.raises((errors, SystemExit)) as error:
        if isinstance(mistake, dict):
            request.getfixturevalue("make_criterion")(**mistake)
        elif isinstance(mistake, list):
            run_script(*mistake)
        else:
            mistake()
    if isinstance(error.value, SystemExit):
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    else:
        assert message in str(error.value)
    assert not (here / "marker").exists()


def run_script(name: str, *arguments: str) -> None:
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        run_command_line(module.main)
