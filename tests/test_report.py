"""The report's data: curves, samples, lengths, names, and text that must stay text."""

from __future__ import annotations

import html.parser
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.corpus.manifest import FORMAT
from fairseq_plugins.evaluation.compare import short_names, system_names
from fairseq_plugins.evaluation.metrics import score
from fairseq_plugins.evaluation.report.assets import render_page, safe_json
from fairseq_plugins.evaluation.report.curves import read_curves
from fairseq_plugins.evaluation.report.runs import (
    load_runs,
    references_of,
    shared_test_sets,
)
from fairseq_plugins.evaluation.report.samples import chosen_sentences, score_sentences
from fairseq_plugins.evaluation.report.scores import bleu_by_length, length_buckets
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import sha256_of

HOSTILE = "</script><img src=x onerror=alert(1)> <!-- <script> \u2028 &amp; @@data@@ ▁"
STAMP = "2026-01-01 00:00:00 | INFO |"
INNER = [(20, 5.5, 0.25), (40, 5.0, 0.30), (60, 4.5, 0.35)]


def simple_log() -> list[str]:
    lines = [
        f"{STAMP} train_inner | epoch 001:  {n} / 99 loss={loss}, gold_in_beam={gold}, "
        f"epsilon=2, num_updates={n}, lr=0.001, wall=9"
        for n, loss, gold in INNER
    ]
    lines.append(
        f"{STAMP} valid | epoch 001 | valid on 'valid' subset | loss 4.2 | "
        "bleu 11.54 | num_updates 60 | best_bleu 11.54"
    )
    return lines + [f"{STAMP} train | epoch 001 | loss 5 | num_updates 60 | lr 0.001"]


def json_log() -> list[str]:
    lines = []
    for n, loss, gold in INNER:
        values = {"epoch": 1, "update": 0.2, "loss": str(loss), "epsilon": "2",
                  "gold_in_beam": str(gold), "num_updates": str(n)}  # fmt: skip
        lines.append(f"{STAMP} train_inner | {json.dumps(values)}")
    valid = {"valid_loss": "4.2", "valid_bleu": "11.54", "valid_num_updates": "60"}
    return lines + [f"{STAMP} valid | {json.dumps({'epoch': 1, **valid})}"]


@pytest.mark.parametrize("lines", [simple_log(), json_log()], ids=["simple", "json"])
def test_every_log_format_gives_the_same_curves(lines: list[str], tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_text("\n".join(["noise", *lines, f"{STAMP} train_inner | {{cut o"]))
    curves = read_curves(log)
    assert curves["train_loss"] == {n: loss for n, loss, _ in INNER}
    assert curves["train_gold_in_beam"] == {n: gold for n, _, gold in INNER}
    assert curves["train_epsilon"] == {20: 2.0, 40: 2.0, 60: 2.0}
    assert curves["valid_loss"] == {60: 4.2} and curves["valid_bleu"] == {60: 11.54}


def test_after_an_interruption_the_later_line_counts_and_order_is_kept(tmp_path: Path):
    log = tmp_path / "train.log"
    again = simple_log()[0].replace("loss=5.5", "loss=9.5")
    log.write_text("\n".join([*simple_log(), again]))
    losses = read_curves(log)["train_loss"]
    assert list(losses) == [20, 40, 60] and losses[20] == 9.5
    assert read_curves(tmp_path / "none.log") == {}


def test_many_points_are_averaged_and_keep_their_mean(tmp_path: Path):
    log = tmp_path / "train.log"
    line = "{} train_inner | epoch 001: 1 / 9 loss={}, num_updates={}"
    log.write_text("\n".join(line.format(STAMP, n % 7, n) for n in range(1, 4001)))
    losses = read_curves(log)["train_loss"]
    assert len(losses) <= 400 and max(losses) == 4000
    mean = sum(n % 7 for n in range(1, 4001)) / 4000
    assert sum(losses.values()) / len(losses) == pytest.approx(mean)


def test_chosen_sentences_are_extremes_of_both_signs_and_others():
    rng = random.Random(3)
    changes = [rng.gauss(0, 1) for _ in range(500)]
    chosen = chosen_sentences(changes, 20, seed=1)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen)
    order = sorted(range(500), key=lambda i: changes[i])
    assert set(order[:8]) | set(order[-8:]) <= set(chosen)
    assert chosen == chosen_sentences(changes, 20, seed=1)
    assert chosen != chosen_sentences(changes, 20, seed=2)
    assert chosen_sentences(changes, 900, seed=1) == list(range(500))
    assert len(chosen_sentences([0.0] * 30, 10, seed=1)) == 10


def test_bleu_by_length_covers_every_sentence_once_and_one_bucket_is_corpus_bleu():
    rng = random.Random(4)
    gold = [" ".join(rng.choices("abcdefg", k=rng.randint(1, 30))) for _ in range(400)]
    ours = [line.replace("a", "b") for line in gold]
    buckets = length_buckets(gold)
    assert 2 <= len(buckets) <= 6
    assert all(one[1] + 1 == two[0] for one, two in zip(buckets, buckets[1:]))
    lengths = [len(line.split()) for line in gold]
    assert buckets[0][0] == min(lengths) and buckets[-1][1] == max(lengths)
    assert None not in bleu_by_length(ours, gold, buckets)
    whole = bleu_by_length(ours, gold, [(0, 99)])
    assert whole == [pytest.approx(score(ours, gold).bleu)]
    assert bleu_by_length(ours, gold, [(90, 99)]) == [None]


def test_sentence_scores_are_100_for_the_reference_itself():
    scores = score_sentences(["the cat sat on it", "no"], ["the cat sat on it", "yes"])
    assert scores.bleu[0] == pytest.approx(100) and scores.chrf[0] == pytest.approx(100)
    assert scores.bleu[1] < 1 and scores.chrf[1] < 20


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["de-en_lstm_soft_1", "de-en_lstm_control_1"], ["soft_1", "control_1"]),
        (["m30k/lstm", "m30k/lstm_soft"], ["lstm", "lstm_soft"]),
        (["start", "control"], ["start", "control"]),
        (["lstm_a"], ["lstm_a"]),
    ],
)
def test_names_lose_only_what_all_share(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


@pytest.mark.parametrize(
    ("systems", "names"),
    [
        ([["r/lstm_soft_1", "r/lstm_soft_2"], ["r/lstm_x_1", "r/lstm_x_2"]],
         ["soft", "x"]),
        ([["r/1", "r/2"], ["s/1", "s/2"]], ["r", "s"]),
        ([["a_1", "b_1"], ["a_2", "b_2"]], ["a_1,b_1", "a_2,b_2"]),
        ([["r/lstm"], ["r/lstm_soft"]], ["lstm", "lstm_soft"]),
        ([["a/x.txt"], ["b/x.txt"], ["a/x.txt"]], ["a/x.txt", "b/x.txt", "a/x.txt"]),
    ],
)  # fmt: skip
def test_seeds_of_a_system_share_its_name(
    systems: list[list[str]], names: list[str]
) -> None:
    assert system_names([[Path(p) for p in paths] for paths in systems]) == names


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][1].get("id") == "data":
            self.texts["data"] = self.texts.get("data", "") + data
        elif self.tags[-1:] and self.tags[-1][0] == "title":
            self.texts["title"] = self.texts.get("title", "") + data


def test_hostile_text_stays_text_and_the_page_needs_no_other_file():
    page = render_page({"text": [HOSTILE]}, title=HOSTILE)
    elements = Elements()
    elements.feed(page)
    assert json.loads(elements.texts["data"]) == {"text": [HOSTILE]}
    assert "<img" not in elements.texts["data"]
    names = [tag for tag, _ in elements.tags]
    assert names.count("script") == 3 and "img" not in names
    for tag, attributes in elements.tags:
        assert "src" not in attributes
        assert attributes.get("href", "#")[:1] == "#" or attributes["href"] == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    assert "sourceMappingURL" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1]
    assert policy[1].count("'sha256-") == 2 and "script-src 'unsafe" not in policy[1]


def test_json_in_a_script_holds_nothing_that_ends_it():
    text = safe_json({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE}
    with pytest.raises(ValueError):
        safe_json({"a": float("nan")})


def evaluated(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a run folder with these rows, on a corpus of two sentences."""
    corpus, run = folder / "corpus", folder / "run"
    (corpus / "bin").mkdir(parents=True)
    (run / "eval").mkdir(parents=True)
    (run / "config.yaml").write_text(f"data: {corpus}\nrun: {run}\n")
    part = {"title": "whole", "source": "t.x", "target": "t.y", "pairs": 2}
    manifest = {
        "format": FORMAT, "recipe": "tiny", "source_lang": "x", "target_lang": "y",
        "spm_model": "spm", "bin_dir": "bin", "subsets": {"test": part},
    }  # fmt: skip
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    for name in (corpus / "t.x", corpus / "t.y", run / "eval" / "hyp.txt"):
        name.write_text("one\ntwo\n")
    row = {
        "subset": "test", "title": "whole", "checkpoint": "checkpoint_best.pt",
        "lenpen": 1.0, "beam": 1, "hypotheses": "hyp.txt", "sentences": 2,
        "reference_sha256": sha256_of(corpus / "t.y"), "bleu": 1.0, "chrf": 1.0,
        "bleu_signature": "", "chrf_signature": "",
    }  # fmt: skip
    (run / "eval" / "scores.json").write_text(json.dumps([row | more for more in rows]))
    return run


def test_a_part_of_a_test_set_does_not_take_the_place_of_the_whole(tmp_path: Path):
    part = {"title": "whole/1", "lines_of": "whole", "reference_sha256": "0", "bleu": 2}
    (run,) = load_runs([evaluated(tmp_path, [{}, part, part | {"beam": 5}])])
    assert list(run.scores["test"]) == [1] and run.scores["test"][1].row["bleu"] == 1
    assert references_of(run, "test") == ["one", "two"]
    assert shared_test_sets([run]) == ["test"]


def test_of_checkpoints_with_as_many_scores_the_best_is_shown(tmp_path: Path):
    others = ["average2-0.pt", "checkpoint_average.pt", "checkpoint_last.pt"]
    rows: list[dict[str, Any]] = [{"checkpoint": name} for name in others]
    folder = evaluated(tmp_path, [*rows, {}])
    (run,) = load_runs([folder])
    assert run.scores["test"][1].row["checkpoint"] == "checkpoint_best.pt"
    (run,) = load_runs([folder], checkpoint="last")
    assert run.scores["test"][1].row["checkpoint"] == "checkpoint_last.pt"


def test_an_average_is_looked_for_where_evaluating_puts_it(tmp_path: Path):
    row = {"checkpoint": "average2-0.pt", "averaged": ["a.pt", "b.pt"]}
    (run,) = load_runs([evaluated(tmp_path, [row])])
    with pytest.raises(UserError, match="average2-0.pt` does not exist"):
        run.checkpoint("test")
    average = run.path / "eval" / "average2-0.pt"
    average.write_text("")
    assert run.checkpoint("test") == average


def test_a_run_without_scores_is_answered_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a run folder"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is given 2 times"):
        load_runs([tmp_path, tmp_path])
