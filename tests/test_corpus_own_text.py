"""A user's own parallel text: files in, a corpus and a recipe out, faults found."""

from __future__ import annotations

import gzip
import html
import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from fairseq_plugins.corpus.checks import check_text, check_unknown
from fairseq_plugins.corpus.own_text import OwnText, import_text
from fairseq_plugins.corpus.recipe import load_recipe
from fairseq_plugins.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "data" / "builtin"
TMX = """\
<?xml version="1.0"?><tmx version="1.4"><header srclang="en"/><body>
{units}</body></tmx>
"""
UNIT = (
    '<tu><tuv xml:lang="en"><seg>{0}</seg></tuv>'
    '<tuv xml:lang="fr"><seg>{1}</seg></tuv></tu>\n'
)

Pairs = list[tuple[str, str]]


def builtin_pairs(subset: str) -> Pairs:
    sides = [
        (BUILTIN / f"{subset}.{language}").read_text(encoding="utf-8").split("\n")[:-1]
        for language in ("en", "fr")
    ]
    return list(zip(*sides))


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return builtin_pairs("train")


def write_sides(folder: Path, name: str, pairs: Pairs) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    paths = folder / f"{name}.en", folder / f"{name}.fr"
    for side, path in enumerate(paths):
        path.write_text("".join(f"{p[side]}\n" for p in pairs), encoding="utf-8")
    return paths


def read_given(folder: Path, subset: str) -> Pairs:
    sides = [
        (folder / "given" / f"{subset}.{language}").read_text(encoding="utf-8")
        for language in ("en", "fr")
    ]
    return list(zip(*(side.split("\n")[:-1] for side in sides)))


def own(train: tuple[object, ...], **options: Any) -> OwnText:
    values: dict[str, Any] = {"valid": ("50",), "test": ("60",), **options}
    return OwnText(
        train=tuple(map(str, train)),
        valid=tuple(map(str, values.pop("valid"))),
        test=tuple(map(str, values.pop("test"))),
        languages=("en", "fr"),
        **values,
    )


def write_tsv(path: Path, rows: list[tuple[str, ...]]) -> Path:
    content = "".join("\t".join(row) + "\n" for row in rows).encode()
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "wb") as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize("form", ["tsv", "tsv.gz", "tsv.xz", "header", "tmx", "two"])
def test_every_form_of_the_same_text_gives_the_same_corpus(
    tmp_path: Path, pairs: Pairs, form: str
) -> None:
    pairs = [(s.replace("&", "and"), t.replace("&", "et")) for s, t in pairs[:1000]]
    pairs = [(s.replace("<", ""), t.replace("<", "")) for s, t in pairs]
    columns = None
    if form == "two":
        files: tuple[Path, ...] = write_sides(tmp_path / "in", "text", pairs)
    elif form == "tmx":
        files = (tmp_path / "text.tmx",)
        units = "".join(UNIT.format(*pair) for pair in pairs)
        files[0].write_text(TMX.format(units=units), encoding="utf-8")
    elif form == "header":
        rows = [("id", "French", "English")]
        rows += [(str(n), t, s) for n, (s, t) in enumerate(pairs)]
        files = (write_tsv(tmp_path / "text.tsv", rows),)
        columns = ("English", "French")
    else:
        files = (write_tsv(tmp_path / f"text.{form}", pairs),)
    recipe = import_text("mine", own(files, columns=columns), tmp_path / "out")
    sizes = {name: read_given(tmp_path / "out", name) for name in ("valid", "test")}
    assert {name: len(rows) for name, rows in sizes.items()} == {
        "valid": 50,
        "test": 60,
    }
    assert set(sizes["valid"] + sizes["test"]) <= set(pairs)
    reference = tmp_path / "reference"
    import_text("mine", own((write_tsv(tmp_path / "r.tsv", pairs),)), reference)
    for subset in ("train", "valid", "test"):
        assert read_given(tmp_path / "out", subset) == read_given(reference, subset)
    assert load_recipe(str(recipe))[1].checks == "refuse"


def test_one_xml_file_holds_both_sides(tmp_path: Path, pairs: Pairs) -> None:
    segments = [
        "".join(
            f'<seg id="{number}">{html.escape(pair[side])}</seg>'
            for number, pair in enumerate(pairs[:9])
        )
        for side in (0, 1)
    ]
    xml = tmp_path / "set.xml"
    xml.write_text(
        f'<dataset><doc id="d"><src lang="en">{segments[0]}</src>'
        f'<ref lang="fr" translator="A">{segments[1]}</ref></doc></dataset>',
        encoding="utf-8",
    )
    text = write_tsv(tmp_path / "t.tsv", pairs[9:1000])
    import_text("mine", own((text,), test=(str(xml),)), tmp_path / "out")
    expected = [(" ".join(s.split()), " ".join(t.split())) for s, t in pairs[:9]]
    assert read_given(tmp_path / "out", "test") == expected


def test_no_side_of_a_drawn_pair_stays_in_train(tmp_path: Path, pairs: Pairs) -> None:
    rng = random.Random(3)
    # Many sentences with several translations, in other case and spacing, too.
    pairs = [(rng.choice(pairs[:300])[0].upper(), t) for _, t in pairs[:1500]]
    pairs += [(s.lower() + " ", t) for s, t in pairs[:500]]
    import_text("mine", own((write_tsv(tmp_path / "t.tsv", pairs),)), tmp_path)
    train = read_given(tmp_path, "train")
    held_out = read_given(tmp_path, "valid") + read_given(tmp_path, "test")
    assert len(train) > 500
    for side in (0, 1):
        known = {" ".join(pair[side].casefold().split()) for pair in train}
        drawn = [" ".join(pair[side].casefold().split()) for pair in held_out]
        assert not known & set(drawn)
        assert len(set(drawn)) == len(drawn)


def test_overlap_with_given_files_is_removed_only_if_asked(
    tmp_path: Path, pairs: Pairs
) -> None:
    train = write_tsv(tmp_path / "train.tsv", pairs[:1000])
    valid = write_sides(tmp_path / "in", "valid", pairs[990:1050])
    for remove in (False, True):
        options = own((train,), valid=valid, test=("40",), remove_overlap=remove)
        import_text("mine", options, tmp_path / str(remove))
        given = set(read_given(tmp_path / str(remove), "train"))
        drawn = set(read_given(tmp_path / str(remove), "test"))
        kept = [pair for pair in pairs[990:1000] if pair in given]
        assert bool(kept) is not remove
        assert not given & drawn


def test_a_second_import_changes_nothing_and_another_seed_does(
    tmp_path: Path, pairs: Pairs
) -> None:
    file = write_tsv(tmp_path / "t.tsv", pairs[:1000])
    import_text("mine", own((file,)), tmp_path)
    first = read_given(tmp_path, "valid")
    times = [path.stat().st_mtime_ns for path in (tmp_path / "given").iterdir()]
    import_text("mine", own((file,)), tmp_path)
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "given").iterdir()]
    import_text("mine", own((file,), seed=2), tmp_path)
    assert read_given(tmp_path, "valid") != first


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([("a", "b", "c")] * 9, {}, "must have two columns .* but has 3"),
        ([("a", "b"), ("c",)], {"columns": ("1", "2")}, "line 2 .* at least 2 columns"),
        ([("a", "b")], {"columns": ("1", "3")}, "between 1 and 2"),
        ([("a", "b")], {"columns": ("en", "fr")}, "names in the first line"),
        ([("a", "b")], {"columns": ("2", "2")}, "must be two columns"),
        ([], {}, "but is empty"),
        ([("a", "b")] * 9, {}, "`--valid` must be between 1 and 20%"),
        ([("a", str(n)) for n in range(999)], {}, "only 1 pairs with different sides"),
    ],
)
def test_files_of_another_form_are_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], options: dict[str, Any], message: str
) -> None:
    file = write_tsv(tmp_path / "t.tsv", rows)
    with pytest.raises(UserError, match=message):
        import_text("mine", own((file,), **options), tmp_path)


def test_sides_of_different_length_are_refused(tmp_path: Path, pairs: Pairs) -> None:
    source, target = write_sides(tmp_path / "in", "train", pairs[:1000])
    target.write_text("".join(f"{t}\n" for _, t in pairs[:990]), encoding="utf-8")
    with pytest.raises(UserError, match="equally many lines, but have 1,000 and 990"):
        import_text("mine", own((source, target)), tmp_path)


def test_one_file_for_both_sides_is_refused(tmp_path: Path, pairs: Pairs) -> None:
    source, _ = write_sides(tmp_path / "in", "train", pairs[:100])
    with pytest.raises(UserError, match="names .* twice"):
        own((source, source))
    with pytest.raises(UserError, match="names `en` twice"):
        OwnText(("a",), ("1",), ("1",), ("en", "en"))


def shift(pairs: Pairs, offset: int) -> Pairs:
    sources, targets = zip(*pairs)
    return list(zip(sources[:-offset], targets[offset:]))


FAULTS: dict[str, tuple[str, Callable[[Pairs], Pairs]]] = {
    "shifted": ("train", lambda pairs: shift(pairs, 1)),
    "shifted from the middle": ("train", lambda p: p[:3000] + shift(p[3000:], 2)),
    "shifted valid": ("valid", lambda pairs: shift(pairs, 1)),
    "swapped valid": ("valid", lambda pairs: [(t, s) for s, t in pairs]),
    "swapped in one part": (
        "train",
        lambda p: p[:2000] + [(t, s) for s, t in p[2000:4000]] + p[4000:],
    ),
    "copies": ("train", lambda p: [(s, s) if n % 3 else (s, t)
                                   for n, (s, t) in enumerate(p)]),
    "unrelated": ("train", lambda p: [(s, p[n * 991 % len(p)][1])
                                      for n, (s, _) in enumerate(p)]),
    "overlap of valid": ("valid", lambda _: builtin_pairs("train")[:500]),
    "equal to test": ("valid", lambda _: builtin_pairs("test")[:500]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_text_is_refused_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    texts = {subset: builtin_pairs(subset) for subset in ("train", "valid", "test")}
    subset, change = FAULTS[fault]
    changed = change(texts[subset])
    texts[subset] = changed
    subsets = {name: write_sides(tmp_path, name, text) for name, text in texts.items()}
    with pytest.raises(UserError, match=rf"\({fault.split()[0]}"):
        check_text(subsets, ("en", "fr"), mode="refuse")
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert any(source[:70] in shown for source, _ in changed)


def test_correct_text_passes_and_its_overlap_is_counted(tmp_path: Path) -> None:
    texts = {subset: builtin_pairs(subset) for subset in ("train", "valid", "test")}
    texts["valid"] += texts["train"][:3]
    subsets = {name: write_sides(tmp_path, name, text) for name, text in texts.items()}
    counts = check_text(subsets, ("en", "fr"), mode="refuse")
    assert counts["valid_pairs_in_train"] >= 3
    assert counts["test_pairs_in_train"] <= counts["test_sources_in_train"]


def test_many_unknown_pieces_are_refused() -> None:
    counts = {"test.fr": {"tokens": 1000, "unknown": 11, "sentences": 10}}
    with pytest.raises(UserError, match=r"\(unknown\)"):
        check_unknown(counts, mode="refuse")
    check_unknown({"test.fr": {**counts["test.fr"], "unknown": 9}}, mode="refuse")


def test_one_command_prepares_own_text_and_its_recipe_repeats_it(
    tmp_path: Path, pairs: Pairs
) -> None:
    file = write_tsv(tmp_path / "mine.tsv", pairs[:2500])
    script = [sys.executable, str(ROOT / "scripts" / "prepare.py")]
    command = [*script, "mine", "--langs", "en", "fr", "--train", str(file)]
    command += ["--valid", "100", "--test", "100", "--vocab-size", "1000"]
    command += ["--out", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "scripts/train.py" in first.stderr  # the next command
    again = subprocess.run(command, capture_output=True, text=True)
    assert "nothing to do" in again.stderr
    repeat = [*script, str(tmp_path / "out" / "mine.yaml"), "--vocab-size", "1000"]
    repeat += ["--out", str(tmp_path / "out")]
    third = subprocess.run(repeat, capture_output=True, text=True)
    assert "nothing to do" in third.stderr, third.stderr
