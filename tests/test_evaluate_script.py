"""scripts/evaluate.py on a real, tiny model: from checkpoint to scores."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from fairseq_plugins.corpus.manifest import FORMAT
from fairseq_plugins.evaluation.translate import PartialSearch, Subset, Translator
from fairseq_plugins.utils.files import read_lines

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": 100, "valid": 10, "test": 13, "test1": 2}
MAX_POSITIONS = 60
CONFIG = """\
arch: transformer
encoder_embed_dim: 8
decoder_embed_dim: 8
encoder_ffn_embed_dim: 8
decoder_ffn_embed_dim: 8
encoder_layers: 1
decoder_layers: 1
encoder_attention_heads: 2
decoder_attention_heads: 2
max_source_positions: {positions}
max_target_positions: {positions}
optimizer: adam
lr: 0.05
max_tokens: 500
max_update: 2
cpu: true
"""


def python(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def evaluate(*args: object) -> subprocess.CompletedProcess:
    return python(ROOT / "scripts" / "evaluate.py", *args)


def prepare(folder: Path) -> None:
    """Write a corpus like scripts/prepare.py, with a line of test1 that is too long."""
    rng = random.Random(5)
    syllables = ["ba", "do", "ki", "lu", "mé", "no", "ra", "su"]
    texts = {}
    for name, size in SIZES.items():
        texts[name] = [
            " ".join(
                "".join(rng.choices(syllables, k=3)) for _ in range(rng.randint(1, 9))
            )
            for _ in range(size)
        ]
    texts["test1"][1] = " ".join(["bakimé"] * 2 * MAX_POSITIONS)
    (folder / "pieces").mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts["train"]),
        model_prefix=str(folder / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    for name, lines in texts.items():
        pieces = [" ".join(model.encode(line, out_type=str)) + "\n" for line in lines]
        for language in ("xx", "yy"):
            raw = "".join(line + "\n" for line in lines)
            (folder / f"{name}.{language}").write_text(raw, encoding="utf-8")
            path = folder / "pieces" / f"{name}.{language}"
            path.write_text("".join(pieces), encoding="utf-8")
    made = python(
        "-m", "fairseq_cli.preprocess", "-s", "xx", "-t", "yy", "--joined-dictionary",
        "--trainpref", folder / "pieces" / "train",
        "--validpref", folder / "pieces" / "valid",
        "--testpref", f"{folder}/pieces/test,{folder}/pieces/test1",
        "--destdir", folder / "bin",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    subsets = {
        name: {
            "title": name,
            "source": f"{name}.xx",
            "target": f"{name}.yy",
            "pairs": size,
        }
        for name, size in SIZES.items()
    }
    manifest = {
        "format": FORMAT,
        "recipe": "tiny",
        "source_lang": "xx",
        "target_lang": "yy",
        "spm_model": "spm.model",
        "bin_dir": "bin",
        "subsets": subsets,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after two updates."""
    folder = tmp_path_factory.mktemp("evaluate")
    prepare(folder / "corpus")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(positions=MAX_POSITIONS))
    run, corpus = f"run={folder / 'run'}", f"data={folder / 'corpus'}"
    trained = python(ROOT / "scripts" / "train.py", config, run, corpus)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    return folder / "run"


def test_a_test_set_is_translated_and_scored_once(run: Path, tmp_path: Path) -> None:
    first = evaluate(run, "--beam", 1, 3, "--json", tmp_path / "rows.json")
    assert first.returncode == 0, first.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows == json.loads((run / "eval" / "scores.json").read_text())
    assert [row["beam"] for row in rows] == [1, 3]
    references = run.parent / "corpus" / "test.yy"
    for row in rows:
        path = run / "eval" / row["hypotheses"]
        hypotheses = read_lines(path)
        assert len(hypotheses) == SIZES["test"] == row["sentences"]
        assert not any("▁" in line for line in hypotheses)
        # Compare with the command line of sacrebleu.
        judge = ["-m", "sacrebleu", references, "-i", path, "-m", "bleu", "chrf"]
        scores = json.loads(python(*judge, "-w", 4).stdout)
        assert [score["score"] for score in scores] == [
            round(row["bleu"], 4),
            round(row["chrf"], 4),
        ]
        assert row["tokens_per_second"] > 0
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a" in first.stdout
    assert f"{rows[1]['chrf']:.2f}" in first.stdout
    assert "test, beam 3: 13 sentences" in first.stderr

    second = evaluate(run, "--beam", 1, 3)
    assert second.stdout == first.stdout
    assert "test, beam 1: already evaluated" in second.stderr
    assert "sentences" not in second.stderr
    assert not list((run / "eval").glob(".*"))


# fairseq-generate several times, as a user would run it.
GENERATE = """
import json, sys
from fairseq_cli import generate
for words in json.loads(sys.argv[1]):
    sys.argv = ["fairseq-generate", *words]
    generate.cli_main()
    print("====", flush=True)
"""


def generated(run: Path, *options: list[str]) -> list[dict[str, dict[int, Any]]]:
    """Return the output of fairseq-generate by kind of line and sentence."""
    base = [
        str(run.parent / "corpus" / "bin"), "--user-dir", str(ROOT / "fairseq_plugins"),
        "--source-lang", "xx", "--target-lang", "yy", "--max-tokens", "200",
        "--path", str(run / "checkpoints" / "checkpoint_best.pt"),
    ]  # fmt: skip
    made = python("-c", GENERATE, json.dumps([base + words for words in options]))
    assert made.returncode == 0, made.stderr
    answers = []
    for output in made.stdout.split("====\n")[:-1]:
        found: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        for line in output.split("\n"):
            kind, _, rest = line.partition("-")
            if kind in ("T", "H", "P") and "\t" in rest:
                number, *values = rest.split("\t")
                found[kind][int(number)].append(values)
        answers.append(found)
    return answers


def test_one_process_returns_the_hypotheses_of_fairseq_generate(
    run: Path, tmp_path: Path
) -> None:
    narrow, wide, gold = generated(
        run,
        ["--beam", "1", "--lenpen=0.5"],
        ["--beam", "4", "--nbest", "4"],
        ["--score-reference"],
    )
    checkpoint, data = run / "checkpoints" / "checkpoint_best.pt", run.parent / "corpus"
    log, subset = tmp_path / "log", Subset("test", SIZES["test"])
    with Translator(
        checkpoint, data / "bin", ("xx", "yy"), max_tokens=200
    ) as translator:
        references = translator.score_references(subset, log=log)
        for beam, lenpen, theirs in ((1, 0.5, narrow), (4, 1.0, wide)):
            part = PartialSearch(tmp_path / str(beam), {})
            ours = translator.translate(
                subset, beam=beam, lenpen=lenpen, log=log, part=part
            )
            # To the last digit; fairseq's logarithms are binary.
            assert [[(h.score, h.pieces) for h in ranked] for ranked in ours.nbest] == [
                [(float(score) * math.log(2), text) for score, text in theirs["H"][n]]
                for n in range(SIZES["test"])
            ]
        # A beam of 4 must not change how references are scored afterwards.
        again = translator.score_references(subset, log=log)
    assert again == references
    lengths = [len(gold["P"][n][0][0].split()) for n in range(SIZES["test"])]
    assert [(r.log_prob, r.tokens) for r in references] == [
        (float(gold["H"][n][0][0]) * math.log(2) * length, length)
        for n, length in enumerate(lengths)
    ]
    # fairseq returns another order, and numbers them as in the corpus.
    assert list(gold["T"]) != sorted(gold["T"])
    texts = [gold["T"][n][0][0] for n in range(SIZES["test"])]
    assert [t.replace(" ", "").replace("▁", " ")[1:] for t in texts] == read_lines(
        data / "test.yy"
    )


def test_a_killed_search_resumes_and_writes_the_same_files(
    run: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(run, killed, ignore=shutil.ignore_patterns("eval"))
    command = ["--subset", "train", "--beam", 10, "--max-tokens", 200, "--force"]
    script = str(ROOT / "scripts" / "evaluate.py")
    process = subprocess.Popen(
        [sys.executable, script, str(killed), *map(str, command)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    part = killed / "eval" / ".train.beam10.search.partial"
    while not part.is_file() or part.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # its worker dies with it
    process.wait()
    time.sleep(0.2)
    lines = part.read_text().split("\n")[1:-1]
    done = sum(len(json.loads(line)["sentences"]) for line in lines)
    assert 0 < done < SIZES["train"]
    assert not (killed / "eval" / "scores.json").exists()

    resumed = evaluate(killed, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert f"train, beam 10: 100 sentences, {done} of them done" in resumed.stderr
    whole = evaluate(run, *command)
    assert whole.returncode == 0, whole.stderr
    for name in ("hyp.txt", "nbest.tsv"):
        ours, theirs = (r / "eval" / f"train.beam10.{name}" for r in (killed, run))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not part.exists()


def test_several_test_sets_are_scored_and_reported(
    run: Path,
) -> None:
    result = evaluate(run, "--subset", "test", "valid", "--beam", 1)
    assert result.returncode == 0, result.stderr
    titles = [line.partition(":")[0] for line in result.stdout.split("\n")
              if " sentences; " in line]  # fmt: skip
    assert titles == ["test", "valid"]


def test_a_score_that_only_some_beams_have_gets_a_column(run: Path) -> None:
    assert evaluate(run, "--beam", 1, 3).returncode == 0
    path = run / "eval" / "scores.json"
    rows = json.loads(path.read_text())
    more = {"comet": 0.75, "comet_model": "some/model"}
    path.write_text(json.dumps([rows[0], rows[1] | more]))
    result = evaluate(run, "--beam", 1, 3)
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[-1] for line in table if line[0] != "-"] == [
        "COMET", "-", "0.7500",
    ]  # fmt: skip
    assert "COMET: some/model" in result.stdout
    path.write_text(json.dumps(rows))


def test_a_sentence_that_is_too_long_is_named_and_not_skipped(run: Path) -> None:
    result = evaluate(run, "--subset", "test1", "--beam", 1)
    assert result.returncode == 2
    assert "sentence 2 of `test1` must fit the model" in result.stderr
    assert "np.int" not in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((run / "eval").glob("test1*.hyp.txt"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "`nowhere` must be a run folder"),
        (["x", "--beam", "0"], "must be 1 or more, but is 0"),
        (["x", "--lenpen", "nan"], "must be a finite number"),
    ],
)
def test_a_mistake_is_explained(args: list[str], message: str) -> None:
    result = evaluate(*args)
    assert result.returncode == 2
    assert message in result.stderr
