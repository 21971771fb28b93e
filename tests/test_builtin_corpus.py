"""The built-in corpus: its files, how they are made again, and their difficulty."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.utils.files import read_lines, sha256_of

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "data" / "builtin"
SCRIPT = CORPUS / "make_corpus.py"
COUNTS = {"train": 6000, "valid": 500, "test": 1000}
LANGUAGES = ("en", "fr")
FILES = [f"{split}.{language}" for split in COUNTS for language in LANGUAGES]


def recorded_babel() -> str:
    match = re.search(r'^BABEL_VERSION = "(.+?)"', SCRIPT.read_text(), re.MULTILINE)
    assert match
    return match[1]


def installed_babel() -> str | None:
    try:
        return importlib.metadata.version("babel")
    except importlib.metadata.PackageNotFoundError:
        return None


needs_recorded_babel = pytest.mark.skipif(
    installed_babel() != recorded_babel(),
    reason=f"remaking the corpus needs babel {recorded_babel()}",
)


def make(
    *arguments: object, python: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def corpus_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test import the modules that stand beside the script."""
    monkeypatch.syspath_prepend(str(CORPUS))


def lines(split: str, language: str) -> list[str]:
    return read_lines(CORPUS / f"{split}.{language}")


def words(text: str) -> set[str]:
    """Return the words of a line; numbers are no words."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def test_the_recorded_checksums_are_those_of_the_files() -> None:
    actual = [f"{sha256_of(CORPUS / name)}  {name}" for name in FILES]
    assert read_lines(CORPUS / "SHA256SUMS") == actual


@needs_recorded_babel
def test_the_script_makes_every_byte_again(tmp_path: Path) -> None:
    result = make("--out", tmp_path, PYTHONHASHSEED="12345")
    assert result.returncode == 0, result.stderr
    for name in [*FILES, "SHA256SUMS"]:
        assert (tmp_path / name).read_bytes() == (CORPUS / name).read_bytes(), name


@needs_recorded_babel
def test_another_seed_makes_another_corpus_of_the_same_size(tmp_path: Path) -> None:
    assert make("--out", tmp_path, "--seed", 2).returncode == 0
    for split, count in COUNTS.items():
        other = read_lines(tmp_path / f"{split}.en")
        assert len(other) == count
        assert len(set(other) & set(lines(split, "en"))) < count / 10


def test_another_babel_is_refused_by_default(tmp_path: Path) -> None:
    fake = tmp_path / "site" / "babel"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text('__version__ = "0.1"\n')
    result = make("--out", tmp_path / "out", PYTHONPATH=str(fake.parent))
    assert result.returncode == 2
    assert f"`babel` must be {recorded_babel()}" in result.stderr
    assert "but is 0.1. Pass --any-babel" in result.stderr
    assert not (tmp_path / "out").exists()


@needs_recorded_babel
def test_any_babel_is_accepted_with_the_option(tmp_path: Path) -> None:
    real = importlib.metadata.distribution("babel").locate_file("babel")
    fake = tmp_path / "site" / "babel"
    fake.mkdir(parents=True)
    # The real library under another version number.
    (fake / "__init__.py").write_text(
        f"__path__ = [{str(real)!r}]\n"
        f"exec(open({str(Path(str(real)) / '__init__.py')!r}).read())\n"
        "__version__ = '0.1'\n"
    )
    result = make("--out", tmp_path, "--any-babel", PYTHONPATH=str(fake.parent))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "train.fr").read_bytes() == (CORPUS / "train.fr").read_bytes()


def test_a_missing_babel_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    result = make("--out", tmp_path, python=("-I", "-S"))  # no site-packages
    assert result.returncode == 2
    assert f"pip install babel=={recorded_babel()}" in result.stderr


def test_the_requirements_pin_the_babel_that_made_the_corpus() -> None:
    pinned = read_lines(ROOT / "requirements.txt")
    assert f"babel=={recorded_babel()}" in [line.lower() for line in pinned]


@pytest.mark.parametrize("split", COUNTS)
def test_both_sides_have_the_promised_number_of_lines(split: str) -> None:
    assert [len(lines(split, side)) for side in LANGUAGES] == [COUNTS[split]] * 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_occurs_twice_in_or_across_the_splits(language: str) -> None:
    everything = [line for split in COUNTS for line in lines(split, language)]
    assert len(set(everything)) == len(everything) == sum(COUNTS.values())


@pytest.mark.parametrize("name", FILES)
def test_lines_are_clean_text_of_bounded_length(name: str) -> None:
    for line in read_lines(CORPUS / name):
        assert line == " ".join(line.split()) != ""  # plain single spaces only
        assert line == unicodedata.normalize("NFC", line)
        assert 4 <= len(line.split()) <= 32
        assert line[0].isdigit() or not line[0].islower()
        assert line[-1] in ".?"
        assert not set(line) & set("{}<>|@*")  # nothing left of a template


def test_years_are_the_same_on_both_sides() -> None:
    """A year is the only number with the same form in both locales."""
    year = re.compile(r"(?<![\d.,])(?:19[6-9]\d|20[0-3]\d)(?![.,]?\d)")
    checked = 0
    for english, french in zip(lines("train", "en"), lines("train", "fr")):
        if "/" not in english + french:
            years = [sorted(year.findall(text)) for text in (english, french)]
            checked += bool(years[0])
            assert years[0] == years[1], english
    assert checked > 500


def test_french_has_its_elisions_contractions_and_spaces() -> None:
    vowel = "aàâeéèêiîoôuœ"
    wrong = re.compile(
        rf"\b(?:[dljmnst]e|que|lorsque|la|si(?= ils?\b)) (?=[{vowel}])"  # "de Oslo"
        r"|\b(?:de|à) les? "  # "de le", "à les"
        rf"|\b[dljmnst]’(?=[^{vowel}hy])"  # "d’Paris"
        r"|\w[?;:](?!\d)|«\S|\S»",  # French puts a space there
        re.IGNORECASE,
    )
    for split in COUNTS:
        for line in lines(split, "fr"):
            assert not wrong.search(line), line


def test_a_tenth_to_a_third_of_the_test_set_has_words_that_train_lacks() -> None:
    for language in LANGUAGES:
        seen = set().union(*map(words, lines("train", language)))
        unseen = [line for line in lines("test", language) if words(line) - seen]
        assert 0.1 < len(unseen) / COUNTS["test"] < 0.35


def test_one_english_question_has_several_french_forms() -> None:
    """The choice that beam search has to make: "vous" or "tu", and synonyms."""
    pairs = zip(lines("train", "en"), lines("train", "fr"))
    openings = {fr.split()[0] for en, fr in pairs if en.startswith("Do you speak ")}
    assert openings == {"Est-ce", "Parlez-vous", "Parles-tu"}


def test_a_greeting_determines_the_register() -> None:
    for english, french in zip(lines("train", "en"), lines("train", "fr")):
        if english.startswith("Dear customer"):
            assert not re.search(r"\b(tu|toi|ton|ta|tes)\b|\bt’", french), french
        if english.startswith("Hi "):
            assert not re.search(r"\b(?<!-)(vous|votre|vos|veuillez)\b", french), french


def test_the_readme_has_the_counts_of_the_files() -> None:
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for split, count in COUNTS.items():
        texts = (" ".join(lines(split, side)) for side in LANGUAGES)
        english, french = (len(text.split()) for text in texts)
        row = f"| `{split}.en`, `{split}.fr` | {count:,} | {english:,} | {french:,} |"
        assert row in readme


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = make("--out", tmp_path / "out")
    assert result.returncode == 2
    assert "`--out` must be a folder" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_the_committed_files_stay_below_two_megabytes() -> None:
    assert sum((CORPUS / name).stat().st_size for name in FILES) < 2_000_000


@needs_recorded_babel
def test_every_template_can_be_filled_in_both_registers(corpus_modules: None) -> None:
    from synchronous import Dice, Grammar, Rule, read_rules
    from vocabulary import Vocabulary

    dice = Dice(7)
    sources = Vocabulary(CORPUS / "lexicon.txt", dice).sources(rare_share=0.5)
    rules: dict[str, list[Any]] = {}
    for path in (CORPUS / "grammar").glob("*.txt"):
        rules.update(read_rules(path))
    one_by_one = [
        Rule(rule.english, [(1, french)])
        for section in rules.values()
        for rule in section
        for _, french in rule.french
    ]
    assert len(one_by_one) > 400
    for rule in one_by_one:
        grammar = Grammar({**rules, "probe": [rule]}, sources)
        for formal in (True, False):
            phrase = grammar.expand("probe", dice, formal=formal)
            assert not set("{}<>|") & set(phrase.en[""] + phrase.fr[""])


def test_french_nouns_contract_elide_and_agree(corpus_modules: None) -> None:
    from french import noun_forms

    hotel, school = noun_forms("hôtel", "m"), noun_forms("école", "f")
    assert [hotel[form] for form in ("le", "du", "au", "ce", "nouveau", "son")] == [
        "l’hôtel",
        "de l’hôtel",
        "à l’hôtel",
        "cet hôtel",
        "le nouvel hôtel",
        "son hôtel",
    ]
    assert [school[form] for form in ("le", "ce", "nouveau", "ton", "dun")] == [
        "l’école",
        "cette école",
        "la nouvelle école",
        "ton école",
        "d’une école",
    ]
    plural = noun_forms("oignons", "mp")
    assert [plural[form] for form in ("le", "du", "de", "au", "un", "e")] == [
        "les oignons",
        "des oignons",
        "d’oignons",
        "aux oignons",
        "des oignons",
        "s",
    ]


@pytest.mark.parametrize(
    ("name", "kind", "where", "origin"),
    [
        ("Italie", "f", "en Italie", "d’Italie"),
        ("Hongrie", "f", "en Hongrie", "de Hongrie"),
        ("Japon", "m", "au Japon", "du Japon"),
        ("Irak", "m", "en Irak", "d’Irak"),
        ("Pays-Bas", "mp", "aux Pays-Bas", "des Pays-Bas"),
        ("Chypre", "n", "à Chypre", "de Chypre"),
    ],
)
def test_countries_take_the_preposition_of_their_gender(
    corpus_modules: None, name: str, kind: str, where: str, origin: str
) -> None:
    from french import territory_forms

    forms = territory_forms(name, kind)
    assert (forms["en"], forms["de"]) == (where, origin)


def test_que_and_si_elide_before_the_content_of_a_slot(corpus_modules: None) -> None:
    from french import elide

    assert elide("parce que Anna dit que il vient") == "parce qu’Anna dit qu’il vient"
    assert elide("puisque le train part, si il part") == (
        "puisque le train part, s’il part"
    )
