"""scripts/report.py on tiny runs, and its HTML file in a browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from browsers import CONTRAST, start_browser
from test_evaluate_script import CONFIG, MAX_POSITIONS, ROOT, SIZES, prepare, python

from fairseq_plugins import compat
from fairseq_plugins.evaluation.compare import compare_runs
from fairseq_plugins.evaluation.report.page import render_page, safe_json

SYSTEMS = ("control", "other")
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- <script>"
HOSTILE_TO_HTML = HOSTILE + " \u2028 &amp; @@data@@ ▁"


def report(*args: object) -> subprocess.CompletedProcess:
    return python(ROOT / "scripts" / "report.py", *args)


def make_decisive(run: Path) -> None:
    """Scale the output layer, so that rounding decides no search.

    After a few updates all words are about equally likely to the model, and rounding
    differs between processors.
    """
    compat.allow_checkpoint_classes()
    for path in (run / "checkpoints").glob("*.pt"):
        checkpoint = torch.load(path)
        checkpoint["model"]["decoder.output_projection.weight"] *= 30
        torch.save(checkpoint, path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny runs, scored on a test set with a hostile sentence in it."""
    folder = tmp_path_factory.mktemp("report")
    corpus = folder / "corpus"
    prepare(corpus)
    for side in ("xx", "yy"):
        path = corpus / f"test.{side}"
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[3] = HOSTILE
        path.write_text("\n".join(lines), encoding="utf-8")
    config = folder / "config.yaml"
    text = CONFIG.format(positions=MAX_POSITIONS).replace("max_update: 2", "")
    config.write_text(f"{text}log_format: simple\nlog_interval: 1\n")

    def make(name: str, updates: int) -> Path:
        run, data = folder / name, f"data={corpus}"
        steps = f"max_update={updates}"
        train, evaluate = (ROOT / "scripts" / f"{x}.py" for x in ("train", "evaluate"))
        for command in (
            [train, config, f"run={run}", data, steps],
            [evaluate, run, "--beam", 1, 3],
        ):
            made = python(*command)
            assert made.returncode == 0, made.stdout + made.stderr
            if train in command:
                make_decisive(run)
        return run

    with ThreadPoolExecutor() as side_by_side:
        return list(side_by_side.map(make, SYSTEMS, (2, 4)))


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    out = runs[0].parent / "report.html"
    made = report(*runs, "-o", out, "--explore", 5)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="module")
def seeds(runs: list[Path]) -> list[list[Path]]:
    """Two systems of two seeds."""
    folder = runs[0].parent / "seeds"
    made: dict[str, Path] = {"a_1": runs[0], "a_2": runs[1], "b_1": runs[1]}
    for name, run in {**made, "b_2": runs[1]}.items():
        made[name] = shutil.copytree(run, folder / name)
    return [[made[f"{system}_{seed}"] for seed in (1, 2)] for system in "ab"]


@pytest.fixture(scope="module")
def page_of_seeds(seeds: list[list[Path]]) -> Path:
    out = seeds[0][0].parent / "report.html"
    systems = [",".join(map(str, of_system)) for of_system in seeds]
    made = report(*systems, "-o", out, "--explore", 0)
    assert made.returncode == 0, made.stdout + made.stderr
    return out


def test_seeds_are_pooled_as_in_compare(page_of_seeds, seeds):
    data = data_of(page_of_seeds)
    assert [system["label"] for system in data["systems"]] == ["a", "b"]
    test = data["tests"][0]
    for row in test["pooled"]:
        control, judge = compare_runs(seeds[0], [seeds[1]], beams=[row["beam"]])
        compared = judge if row["system"] else control
        assert row["bleu"] == pytest.approx(compared["bleu"])
        assert row["deviation"] == pytest.approx(compared["bleu_deviation"])
        if row["system"]:
            assert row["p_bleu"] == compared["bleu_p_value"]
            assert row["p_chrf"] == compared["chrf_p_value"]
            assert row["change"] == pytest.approx(compared["bleu_difference"])
            assert row["change_interval"] == pytest.approx(compared["bleu_interval"])
        else:
            assert "p_bleu" not in row
    assert len(test["pooled"]) == 4
    # Each run is compared with the control's run of the same seed.
    second = [row for row in test["rows"] if row["run"] == 3]
    assert [(row["change"], row["p_bleu"]) for row in second] == [(0, 1)] * 2
    assert all("change" not in row for row in test["rows"] if row["run"] < 2)


def test_systems_need_equally_many_seeds(seeds):
    made = report(seeds[0][0], ",".join(map(str, seeds[1])), "-o", "no.html")
    assert made.returncode == 2
    assert "must have as many runs as the control, 1, but" in made.stderr


def data_of(page: Path) -> Any:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_has_the_scores_and_the_searches_of_the_runs(page, runs):
    data = data_of(page)
    scores = json.loads((runs[1] / "eval" / "scores.json").read_text())
    rows = [row for row in data["tests"][0]["rows"] if row["run"] == 1]
    assert [row["bleu"] for row in rows] == [row["bleu"] for row in scores]
    assert all(0 <= row["p_bleu"] <= 1 for row in rows)
    assert all(row["ci"][0] <= row["ci"][1] for row in rows)
    assert len(data["samples"]["sentences"]) == SIZES["test"]
    assert data["samples"]["sentences"][3]["source"] == HOSTILE
    searches = data["explorer"]["searches"]
    assert [len(each) for each in searches] == [5, 5]
    # Our search returns first what fairseq-generate returned.
    numbers = [each["number"] for each in data["explorer"]["sentences"]]
    for run, found in enumerate(searches):
        hypotheses = (runs[run] / "eval" / "test.beam3.hyp.txt").read_text().split("\n")
        for number, search in zip(numbers, found):
            best, second, *_ = (each["score"] for each in search["finished"])
            assert best > second + 1e-3, "a near tie proves nothing"
            text = "".join(search["finished"][0]["pieces"]).replace("▁", " ").strip()
            assert text == hypotheses[number].strip()


def test_memberships_sum_to_the_beam_and_shares_to_one_in_each_slot(page):
    for search in data_of(page)["explorer"]["searches"][1]:
        for step in search["steps"]:
            scores = [candidate[2] for candidate in step["candidates"]]
            assert scores == sorted(scores, reverse=True)
            if len(scores) < search["beam"]:
                continue
            for members, shares in zip(step["members"], step["shares"]):
                # Each percentage is rounded.
                assert sum(members) == pytest.approx(100 * search["beam"], abs=12)
                for slot in zip(*shares):
                    assert sum(slot) == pytest.approx(100, abs=12)


def test_a_second_report_repeats_no_test(page, runs, tmp_path):
    made = report(*runs, "-o", tmp_path / "again.html", "--explore", 0)
    assert made.returncode == 0 and "significance" not in made.stderr
    assert data_of(tmp_path / "again.html")["tests"] == data_of(page)["tests"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "must be a run folder of scripts/train.py"),
        (["nowhere", "--explore-beam", "1"], "must be 2 or more, but is 1"),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(args, message):
    made = report(*args)
    assert made.returncode == 2 and message in made.stderr
    assert "Traceback" not in made.stderr


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
    page = render_page({"text": [HOSTILE_TO_HTML]}, title=HOSTILE_TO_HTML)
    elements = Elements()
    elements.feed(page)
    assert json.loads(elements.texts["data"]) == {"text": [HOSTILE_TO_HTML]}
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
    text = safe_json({"a": HOSTILE_TO_HTML})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE_TO_HTML}
    with pytest.raises(ValueError):
        safe_json({"a": float("nan")})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


@pytest.fixture
def open_page(browser: Any, page: Path) -> Iterator[Any]:
    """Open the page; any message on the console is an error."""
    opened, messages = [], []

    def open_tab(
        shown: Path = page, *, width: int = 1000, scheme: str = "light"
    ) -> Any:
        tab = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        tab.on("request", lambda request: messages.append(f"request {request.url}")
               if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip
        tab.goto(shown.as_uri())
        tab.wait_for_selector("html[data-ready=true]", state="attached")
        opened.append(tab)
        return tab

    yield open_tab
    for tab in opened:
        tab.close()
    assert messages == []


def test_hostile_sentences_are_shown_as_they_are(open_page):
    tab = open_page()
    tab.select_option("#sample-controls select >> nth=2", "corpus")
    shown = tab.locator('.sample[data-number="3"] .source p').text_content()
    assert shown == HOSTILE
    assert tab.locator("img").count() == 0


def test_the_table_sorts_by_a_heading_and_by_keyboard(open_page):
    tab = open_page()
    column = "#score-table tbody td:nth-child(3)"
    heading = tab.locator("#score-table thead th:nth-child(3)")
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    falling = [float(text) for text in tab.locator(column).all_text_contents()]
    assert heading.get_attribute("aria-sort") == "descending"
    tab.keyboard.press("Enter")
    rising = [float(text) for text in tab.locator(column).all_text_contents()]
    assert falling == sorted(falling, reverse=True) and rising == sorted(falling)
    assert len(rising) == 4


def test_the_table_has_the_means_over_seeds(open_page, page_of_seeds):
    tab = open_page(page_of_seeds)
    names = tab.locator("#score-table tbody td:first-child").all_text_contents()
    assert [name for name in names if "seeds" in name] == [
        "a, mean of 2 seeds", "a, mean of 2 seeds", "b, mean of 2 seeds",
        "b, mean of 2 seeds",
    ]  # fmt: skip
    assert len(names) == 4 + 8
    assert tab.locator("#finding").text_content().endswith("over 2 seeds")


def test_samples_sort_by_change_and_can_be_searched(open_page):
    tab = open_page()
    tab.select_option("#sample-controls select >> nth=2", "gain")
    cards = tab.locator(".sample")
    gains = [float(card.get_attribute("data-change")) for card in cards.all()]
    assert gains == sorted(gains, reverse=True)
    tab.fill("#sample-controls input", "onerror")
    assert cards.count() == 1


def test_a_sentence_opens_in_the_explorer_and_keys_walk_its_tree(open_page):
    tab = open_page()
    button = tab.locator(".sentences button").nth(2)
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-current") == "true"
    assert "eference" in tab.locator("#fate").text_content()
    assert tab.locator(".tree .node").count() > 3
    assert tab.locator(".tree .cell").count() > 10
    tab.locator("#step-range").fill("1")
    assert tab.locator("#step-name").text_content().startswith("Step 1 of")
    tab.locator("#tree").focus()
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.locator(".tree .node.chosen").count() == 1
    assert "nats" in tab.locator("#description").text_content()
    assert tab.locator("#candidates tbody tr").count() >= 3
    assert "false" not in tab.locator("#candidates").text_content()


@pytest.mark.parametrize("width", [390, 1000])
def test_nothing_is_wider_than_the_window(open_page, width):
    tab = open_page(width=width)
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(open_page, scheme):
    tab = open_page(scheme=scheme)
    ratio, where = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
