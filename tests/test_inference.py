"""Raw text in, translations out: scripts/translate.py and the package behind it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_plugins.inference.codec import MosesCodec, SentencePieceCodec
from fairseq_plugins.inference.loading import load_runs
from fairseq_plugins.inference.translator import SearchOptions, Translator, split_text
from fairseq_plugins.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "data" / "builtin"
TRAINING = """\
data: {data}
run: {run}
arch: {arch}
encoder_embed_dim: 16
decoder_embed_dim: 16
optimizer: adam
lr: 0.01
max_tokens: 1000
max_update: {updates}
max_source_positions: 100
max_target_positions: 100
no_epoch_checkpoints: true
seed: {seed}
cpu: true
"""
TRANSFORMER = """\
encoder_ffn_embed_dim: 16
decoder_ffn_embed_dim: 16
encoder_layers: 1
decoder_layers: 1
encoder_attention_heads: 2
decoder_attention_heads: 2
"""
TOPK = "topk_k: 4\n"
LSTM = "encoder_hidden_size: 16\ndecoder_hidden_size: 16\ndecoder_out_embed_dim: 16\n"


def run_script(name: str, *args: object, **options: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=300, **options)


def translate(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_script("translate.py", *args, text=True, encoding="utf-8", **options)


def train(
    folder: Path, data: Path, arch: str, *, seed: int = 1, updates: int = 25
) -> Path:
    sizes = LSTM if "lstm" in arch else TRANSFORMER
    config = folder / f"{arch}{seed}.yaml"
    run = folder / f"{arch}{seed}"
    text = TRAINING.format(data=data, run=run, arch=arch, seed=seed, updates=updates)
    config.write_text(text + sizes + (TOPK if "topk" in arch else ""))
    done = run_script("train.py", config)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "builtin"
    done = run_script("prepare.py", "builtin-en-fr", "--smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def runs(corpus: Path) -> dict[str, Path]:
    """One trained run for each kind of model; training is short, the models are bad."""
    return {
        arch: train(corpus.parent, corpus, arch)
        for arch in ("transformer", "lstm", "transformer_topk")
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (BUILTIN / "test.en").read_text(encoding="utf-8").splitlines()[:20]
    lines[3], lines[7], lines[9] = "", "   ", "hello\u2028world ☃"
    file = tmp_path_factory.mktemp("text") / "in.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def translator(runs: dict[str, Path]) -> Translator:
    return load_runs([runs["transformer"]], checkpoint="last", max_tokens=200)


@pytest.mark.parametrize("arch", ["transformer", "lstm", "transformer_topk"])
def test_line_n_of_the_output_translates_line_n_of_the_input(
    runs: dict[str, Path], text: Path, tmp_path: Path, arch: str
) -> None:
    out = tmp_path / "out.txt"
    done = translate(runs[arch], text, "-o", out, "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    translations = out.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(translations) == len(lines)
    assert [n for n, line in enumerate(translations) if not line] == [3, 7]
    single = translate(
        runs[arch], "--checkpoint", "last", "--buffer", 1, input=f"{lines[12]}\n"
    )
    assert single.stdout == translations[12] + "\n"


def test_hypotheses_are_those_of_fairseq_interactive(
    runs: dict[str, Path], corpus: Path, text: Path
) -> None:
    checkpoint = runs["transformer"] / "checkpoints" / "checkpoint_last.pt"
    model = corpus / "spm" / "joint.model"
    command = [sys.executable, "-m", "fairseq_cli.interactive", corpus / "bin"]
    command += ["--user-dir", ROOT / "fairseq_plugins", "--path", checkpoint]
    command += ["--source-lang", "en", "--target-lang", "fr", "--bpe", "sentencepiece"]
    command += ["--sentencepiece-model", model, "--beam", "4", "--nbest", "3"]
    command += ["--max-tokens", "300", "--buffer-size", "100", "--cpu"]
    lines = [line for line in text.read_text("utf-8").split("\n") if line.strip()]
    lines = [line.replace("\u2028", " ") for line in lines]  # fairseq ends a line there
    done = subprocess.run(
        list(map(str, command)),
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    rows = [row.split("\t") for row in done.stdout.splitlines() if row[:2] == "D-"]
    expected = [text for _, _, text in rows]
    ours = translate(
        "--path", checkpoint, "--data-bin", corpus / "bin", "--sentencepiece-model",
        model, "--beam", 4, "--nbest", 3, "--max-tokens", 300, "--format", "jsonl",
        "--cpu", input="\n".join(lines) + "\n",
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    records = list(map(json.loads, ours.stdout.splitlines()))
    found = [each for record in records for each in record["hypotheses"]]
    assert [each["text"] for each in found] == expected
    assert [each["score"] for each in found] == pytest.approx(
        [float(score) * 0.6931471805599453 for _, score, _ in rows], abs=1e-4
    )
    assert all(each["length"] == len(each["tokens"]) for each in found)


def test_translations_do_not_depend_on_the_buffer(
    translator: Translator, text: Path
) -> None:
    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    whole = list(translator.translate(lines))
    by_three = list(translator.translate(iter(lines), buffer_lines=3))
    assert [each.source for each in by_three] == lines
    assert [each.hypotheses[0].text for each in by_three] == [
        each.hypotheses[0].text for each in whole
    ]


def test_output_begins_before_the_input_ends(translator: Translator) -> None:
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "the report is late."

    translations = translator.translate(lines(), buffer_lines=4)
    for _ in range(5):
        next(translations)
    assert read == 8


def test_nbest_lists_are_ordered_by_score(translator: Translator) -> None:
    options = SearchOptions(beam=5, nbest=5)
    (translation,) = translator.translate(["the report is late."], options)
    scores = [hypothesis.score for hypothesis in translation.hypotheses]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_an_ensemble_of_one_model_twice_is_that_model(
    runs: dict[str, Path], text: Path
) -> None:
    run = runs["lstm"]
    once = translate(run, text, "--checkpoint", "last", "--score")
    twice = translate(run, run, text, "--checkpoint", "last", "--score")
    assert once.returncode == twice.returncode == 0, twice.stderr
    assert once.stdout == twice.stdout
    mixed = translate(run, runs["transformer"], text, "--score")
    assert mixed.returncode == 0, mixed.stderr
    assert mixed.stdout != once.stdout


def test_models_with_other_subwords_are_no_ensemble(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    args = ("builtin-en-fr", "--smoke", "--vocab-size", 600, "--out", other)
    assert run_script("prepare.py", *args).returncode == 0
    run = train(tmp_path, other, "lstm")
    done = translate(runs["lstm"], run, "-", input="hello\n")
    assert done.returncode == 2
    assert "must have the same languages, dictionaries and subwords" in done.stderr


def test_a_line_that_is_no_utf8_is_named_and_nothing_is_written(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    file, out = tmp_path / "in.txt", tmp_path / "out.txt"
    file.write_bytes(b"good\nbad \xff\n")
    done = translate(runs["lstm"], file, "-o", out, "--checkpoint", "last")
    assert done.returncode == 2
    assert "must be UTF-8 text, but line 2 is not" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_a_long_line_is_refused_split_or_cut(translator: Translator) -> None:
    line = "The report is late. " * 30
    with pytest.raises(UserError, match="line 2 must have at most 99 subwords"):
        list(translator.translate(["short", line]))
    for on_long in ("split", "truncate"):
        short, long = translator.translate(["short", line], on_long=on_long)
        assert len(long.hypotheses) == 1
        assert long.hypotheses[0].text


def test_a_long_line_is_split_between_sentences_where_that_is_enough() -> None:
    text = "One two three. Four five, six seven eight nine ten. Eleven."
    parts = split_text(text, count_tokens=lambda part: len(part.split()), limit=5)
    assert parts == [
        "One two three.",
        "Four five,",
        "six seven eight nine ten.",
        "Eleven.",
    ]


@given(st.text(alphabet="ab ,.\u3002\u00e9", max_size=80), st.integers(1, 12))
def test_parts_of_a_line_fit_and_lose_only_white_space(text: str, limit: int) -> None:
    parts = split_text(text, count_tokens=len, limit=limit)
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_subwords_of_moses_and_subword_nmt_are_joined_to_text(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\nl o\nlo w</w>\n", encoding="utf-8")
    codec = MosesCodec(codes, "en", "en")
    subwords = codec.encode('Don\'t say "low & behold" (twice), slow!')
    assert "@@" in subwords
    assert codec.decode(subwords) == 'Don\'t say "low & behold" (twice), slow!'


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model"
    with pytest.raises(UserError, match="but is no file"):
        SentencePieceCodec(file)
    file.write_text("no model")
    with pytest.raises(UserError, match="cannot be read as one"):
        SentencePieceCodec(file)


def test_nbest_lists_need_a_format_that_holds_them(runs: dict[str, Path]) -> None:
    done = translate(runs["lstm"], "-", "--nbest", 2, input="hello\n")
    assert done.returncode == 2
    assert "`--nbest` must be 1 with `--format text`" in done.stderr


@pytest.mark.parametrize(
    "num_lines", [20_000, pytest.param(200_000, marks=pytest.mark.soak)]
)
def test_memory_does_not_grow_with_the_number_of_lines(
    translator: Translator, num_lines: int
) -> None:
    options = SearchOptions(beam=1, max_len_b=2)
    lines = [f"the report {n} is late." for n in range(2000)]
    for _ in translator.translate(lines, options, buffer_lines=1000):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = (f"the report {n % 5000} is late." for n in range(num_lines))
    count = sum(1 for _ in translator.translate(many, options, buffer_lines=1000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert count == num_lines
    assert after - before < 50_000  # kilobytes
