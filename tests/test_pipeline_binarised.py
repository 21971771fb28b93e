"""Looking into the files that fairseq-preprocess writes."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import pytest
from conftest import SHARED_DATA

from fairseq_plugins.corpus.binarize import inspect
from fairseq_plugins.utils.errors import UserError

# From the log of the fairseq that wrote them (../shared/data/fairseq_bin): sentences,
# tokens, and unknown tokens in percent as printed.
PUBLISHED = {
    "test.de-en.de": (6750, 161838, "0.0636"),
    "test.de-en.en": (6750, 156928, "0.00892"),
    "valid.de-en.de": (7283, 182592, "0.0192"),
    "valid.de-en.en": (7283, 178622, "0.00448"),
}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_that_fairseq_printed(name, tmp_path):
    for ending in ("bin", "idx"):
        packed = SHARED_DATA / "fairseq_bin" / f"{name}.{ending}.xz"
        (tmp_path / f"{name}.{ending}").write_bytes(lzma.open(packed).read())
    text = inspect(tmp_path / name)
    share = f"{100 * text.unknown / text.tokens:.3}"
    assert (text.sentences, text.tokens, share) == PUBLISHED[name]


@pytest.fixture
def prefix(tiny_data: Path, tmp_path: Path) -> Path:
    for ending in ("bin", "idx"):
        shutil.copy(tiny_data / f"valid.xx-yy.xx.{ending}", tmp_path / f"text.{ending}")
    return tmp_path / "text"


def test_every_sentence_has_its_words_and_an_end_mark(prefix, tiny_data):
    words = (tiny_data.parent / "valid.xx").read_text().split()
    text = inspect(prefix)
    assert (text.sentences, text.tokens) == (20, len(words) + 20)


@pytest.mark.parametrize("ending, length", [("bin", 8), ("idx", 30), ("idx", 3)])
def test_a_truncated_file_is_refused(prefix, ending, length):
    path = prefix.with_suffix(f".{ending}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"text.{ending}"):
        inspect(prefix)


def test_an_index_of_another_kind_is_refused(prefix):
    path = prefix.with_suffix(".idx")
    path.write_bytes(b"TNTIDX\x00\x00\x00" + path.read_bytes()[9:])
    with pytest.raises(UserError, match="text.idx` is not an index that fairseq wrote"):
        inspect(prefix)
