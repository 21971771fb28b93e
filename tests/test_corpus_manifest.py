"""The typed view of a prepared folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairseq_plugins.corpus.manifest import FORMAT, PreparedCorpus
from fairseq_plugins.utils.errors import UserError


def entry(title: str, subset: str) -> dict[str, object]:
    source, target = f"raw/{subset}.de", f"raw/{subset}.en"
    return {"title": title, "source": source, "target": target, "pairs": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = {
        "format": FORMAT,
        "recipe": "mine",
        "source_lang": "de",
        "target_lang": "en",
        "subsets": {
            "train": entry("train", "train"),
            "test": entry("spring", "test"),
            "test1": entry("autumn", "test1"),
        },
        "spm_model": "spm/joint.model",
        "bin_dir": "bin",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.mark.parametrize("given", ["", "bin"])
def test_a_folder_and_its_bin_give_the_same_corpus(folder, given, monkeypatch):
    corpus = PreparedCorpus.load(folder / given)
    assert corpus.folder == folder
    assert (corpus.source_lang, corpus.target_lang) == ("de", "en")
    assert corpus.spm_model == folder / "spm/joint.model"
    assert corpus.bin_dir == folder / "bin"
    assert corpus.subsets["test1"].target == folder / "raw/test1.en"
    monkeypatch.chdir(folder)
    assert PreparedCorpus.load(Path(given)) == corpus


def test_a_subset_is_found_by_fairseq_s_name_and_by_its_title(folder):
    corpus = PreparedCorpus.load(folder)
    assert corpus.subset("test1") == corpus.subset("autumn")
    assert corpus.subset("autumn")[0] == "test1"
    with pytest.raises(UserError, match="no subset `autum`. Did you mean `autumn`?"):
        corpus.subset("autum")


def test_without_a_manifest_the_folder_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="prepare.py finished, but holds no manifest"):
        PreparedCorpus.load(folder)
    with pytest.raises(UserError, match="nowhere` must be .* but is no folder"):
        PreparedCorpus.load(folder / "nowhere")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_another_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"):
        PreparedCorpus.load(folder)


def test_pieces_of_subword_nmt_are_not_treated_as_those_of_sentencepiece(folder):
    content = json.loads((folder / "manifest.json").read_text())
    del content["spm_model"]
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged .*spm_model"):
        PreparedCorpus.load(folder)
    (folder / "manifest.json").write_text(
        json.dumps({**content, "bpe_codes": "bpe/codes"})
    )
    corpus = PreparedCorpus.load(folder)
    with pytest.raises(UserError, match="`model_type: subword-nmt`.*`bpe`"):
        corpus.spm_model


def test_a_folder_whose_path_fairseq_would_split_is_refused(folder):
    renamed = folder.rename(folder.with_name("a:b"))
    link = folder.with_name("link")
    link.symlink_to(renamed)
    for path in (renamed, renamed / "bin", link):
        with pytest.raises(UserError, match="must not contain `:`, because fairseq"):
            PreparedCorpus.load(path)
