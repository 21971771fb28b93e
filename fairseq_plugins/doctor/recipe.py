"""What a recipe asks for, found as scripts/prepare.py does, but without downloads."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fairseq_plugins.doctor.machine import ROOT, ask

__all__ = ["RecipeFault", "RecipeNeeds", "recipe_needs"]

_DOWNLOADS = ROOT / "runs" / "downloads"  # the default of scripts/prepare.py

# Paths mean what they mean where the command was typed. The imports come first: what
# lies there must not be taken for one of them.
_PROBE = """
import json, os, sys
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.recipe import load_recipe
from fairseq_plugins.pipeline.sources import locate, source_folder
from pathlib import Path
where, name, source, downloads = sys.argv[1:]
os.chdir(where)
found = {"archives": [], "lines": None, "fault": None}
cause = "recipe"
try:
    file, recipe = load_recipe(name)
    found["lines"] = [part.lines for part in recipe.train]
    cause = "source"
    folder = source_folder(file, recipe, Path(source) if source else None)
    located = locate(recipe, folder, downloads=None if folder else Path(downloads))
    found["archives"] = [{"bytes": each.bytes, "url": each.url}
                         for path, each in located.archives.items()
                         if not path.is_file()]
except UserError as error:
    found["fault"] = [cause, str(error)]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class RecipeNeeds:
    """What a recipe asks for.

    Attributes:
        download: bytes of the archives to be downloaded whose size is known.
        unknown: number of archives to be downloaded whose size is not known.
        pairs: lines of the training parts whose number is known.
        unknown_parts: number of training parts whose lines are not known.
        hosts: where the archives come from.
    """

    download: int
    unknown: int
    pairs: int
    unknown_parts: int
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class RecipeFault:
    """Why a recipe cannot be prepared.

    Attributes:
        cause: ``recipe`` (there is none of this name, or it is wrong), ``source`` (its
            files are not there) or ``python`` (nothing could be asked).
        message: what scripts/prepare.py would say, or the interpreter said.
    """

    cause: str
    message: str


def recipe_needs(
    python: Path, recipe: str, source: Path | None = None
) -> tuple[RecipeNeeds | None, RecipeFault | None]:
    """Return what a recipe asks for, as far as that is known, and what is wrong.

    Args:
        python: the interpreter that would prepare it.
        recipe: its name or file.
        source: what ``--source`` of scripts/prepare.py would be.
    """
    given = str(source) if source is not None else ""
    found, error = ask(python, _PROBE, os.getcwd(), recipe, given, str(_DOWNLOADS))
    if not found:
        return None, RecipeFault("python", error or "it gave no answer")
    fault = RecipeFault(*found["fault"]) if found["fault"] else None
    if found["lines"] is None:
        return None, fault
    sizes = [each["bytes"] for each in found["archives"]]
    hosts = [urlsplit(each["url"]).hostname for each in found["archives"]]
    needs = RecipeNeeds(
        download=sum(filter(None, sizes)),
        unknown=sizes.count(None),
        pairs=sum(filter(None, found["lines"])),
        unknown_parts=found["lines"].count(None),
        hosts=tuple(dict.fromkeys(filter(None, hosts))),
    )
    return needs, fault
