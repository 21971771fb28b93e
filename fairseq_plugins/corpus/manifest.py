"""The output of ``scripts/prepare.py``: a typed view of its ``manifest.json``.

The manifest lies beside ``bin`` and exists only while all files that it lists are
complete. Its paths are relative to its folder, which may be moved.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from fairseq_plugins.utils.errors import UserError, did_you_mean
from fairseq_plugins.utils.files import read_json

__all__ = ["FORMAT", "MANIFEST", "PreparedCorpus", "Subset", "refuse_split_path"]

MANIFEST = "manifest.json"
FORMAT = "fairseq-soft-topk corpus, 1"


@dataclass(frozen=True)
class Subset:
    """A subset as raw text.

    Attributes:
        title: its name in the recipe, such as ``test_2016_flickr``.
        source: raw source text, one sentence per line.
        target: raw target text, the reference.
        pairs: number of lines of each.
    """

    title: str
    source: Path
    target: Path
    pairs: int


@dataclass(frozen=True)
class PreparedCorpus:
    """A folder that ``scripts/prepare.py`` finished.

    Attributes:
        folder: the value of ``--out``.
        recipe: name of the recipe.
        subsets: by fairseq's names: ``train``, ``valid``, ``test``, ``test1``, ...
        spm_file: the SentencePiece model of both languages; ``None`` if subword-nmt
            made the pieces.
        codes_file: the merges of subword-nmt, if those made the pieces.
        bin_dir: the folder for ``fairseq-train`` and ``fairseq-generate``.
    """

    folder: Path
    recipe: str
    source_lang: str
    target_lang: str
    subsets: Mapping[str, Subset]
    spm_file: Path | None
    codes_file: Path | None
    bin_dir: Path

    @classmethod
    def load(cls, path: Path) -> PreparedCorpus:
        """Read the manifest of a folder, given the folder itself or its ``bin``.

        Raises:
            UserError: there is no manifest, so the folder is unfinished or not from
                ``scripts/prepare.py``; or the manifest cannot be used.
        """
        manifest = _find_manifest(path)
        refuse_split_path(manifest.parent)
        content = read_json(manifest)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"`{manifest}` is no manifest of scripts/prepare.py.")
        folder = manifest.parent
        try:
            has_merges = "bpe_codes" in content
            return cls(
                folder=folder,
                recipe=content["recipe"],
                source_lang=content["source_lang"],
                target_lang=content["target_lang"],
                subsets={
                    name: Subset(
                        title=entry["title"],
                        source=folder / entry["source"],
                        target=folder / entry["target"],
                        pairs=entry["pairs"],
                    )
                    for name, entry in content["subsets"].items()
                },
                spm_file=None if has_merges else folder / content["spm_model"],
                codes_file=folder / content["bpe_codes"] if has_merges else None,
                bin_dir=folder / content["bin_dir"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"`{manifest}` is damaged ({type(error).__name__}: {error}). Run "
                "scripts/prepare.py again."
            ) from None

    @property
    def spm_model(self) -> Path:
        """The SentencePiece model, which turns pieces into text.

        Raises:
            UserError: subword-nmt made the pieces, after Moses' tokenizer.
        """
        if self.spm_file is None:
            raise UserError(
                f"`{self.folder}` was prepared with `model_type: subword-nmt`, whose "
                "pieces cannot be turned into text here. Use fairseq-generate with "
                "`--remove-bpe` and detokenize, or prepare it with `bpe` or `unigram`."
            )
        return self.spm_file

    def subset(self, name: str) -> tuple[str, Subset]:
        """Return fairseq's name and the subset, found by that name or by its title.

        Raises:
            UserError: there is none of this name.
        """
        by_title = {subset.title: key for key, subset in self.subsets.items()}
        key = by_title.get(name, name)
        if key not in self.subsets:
            names = list(dict.fromkeys([*self.subsets, *by_title]))
            listed = ", ".join(f"`{name}`" for name in names)
            raise UserError(
                f"`{self.folder}` has no subset `{name}`.{did_you_mean(name, names)} "
                f"It has {listed}."
            )
        return key, self.subsets[key]


def refuse_split_path(folder: Path) -> None:
    """Refuse a data folder that fairseq would take for several.

    Raises:
        UserError: its path contains a colon.
    """
    whole = folder.resolve()
    if os.pathsep in str(whole):
        raise UserError(
            f"the path of a data folder must not contain `{os.pathsep}`, because "
            f"fairseq splits it there, but is `{whole}`. Rename the folder."
        )


def _find_manifest(path: Path) -> Path:
    path = path.expanduser().resolve()
    for folder in (path, path.parent):
        if (folder / MANIFEST).is_file():
            return folder / MANIFEST
    fault = f"holds no {MANIFEST}" if path.is_dir() else "is no folder"
    raise UserError(
        f"`{path}` must be a folder that scripts/prepare.py finished, but {fault}."
    )
