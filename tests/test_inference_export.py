"""scripts/export.py: models that translate without this toolkit, and refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_inference import run_script, train

from fairseq_plugins.evaluation.evaluate import choose_checkpoint
from fairseq_plugins.inference.export import QUANTIZATIONS, export_run
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transformer, trained just long enough to end its sentences."""
    pytest.importorskip("ctranslate2")
    folder = tmp_path_factory.mktemp("export")
    data = folder / "builtin"
    done = run_script("prepare.py", "builtin-en-fr", "--smoke", "--out", data)
    assert done.returncode == 0, done.stderr
    return train(folder, data, "transformer", updates=300)


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with two packages, without fairseq and torch."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    names = ("ctranslate2", "sentencepiece", "numpy", "pyyaml")
    packages = [pin for pin in pins if pin.partition("==")[0] in names]
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-I", "-m", "pip", "install", *packages],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"{packages} cannot be installed: {done.stderr[-500:]}")
    for name in ("torch", "fairseq", "fairseq_plugins"):
        command = [python, "-I", "-c", f"import {name}"]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    return python


def check_readme(folder: Path, python: Path) -> None:
    """Run the lines of a README and compare their output with the README."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search("```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) == 3
    done = subprocess.run(
        [python, "-I", "-c", code[1]],
        cwd=folder, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = text.partition("The lines print:\n\n    ")[2]
    assert expected.strip()
    assert done.stdout == expected


def test_the_folder_translates_without_this_toolkit(
    run: Path, other_python: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "model"
    done = run_script(
        "export.py", run, "--to", "ctranslate2", out, "--checkpoint", "last", text=True
    )
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[2:4]] == ["fairseq", "CTranslate2"]
    assert "100 of 100" in rows[3]
    names = {"README.md", "config.json", "model.bin", "sentencepiece.model"}
    assert names < {path.name for path in out.iterdir()}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    check_readme(out, other_python)


def test_a_package_of_argos_translate_is_one_folder_with_model_and_languages(
    run: Path, other_python: Path, tmp_path: Path
) -> None:
    out = tmp_path / "en_fr.argosmodel"
    export_run(run, out, to="argos", checkpoint="last", quantization="int8")
    assert list(tmp_path.iterdir()) == [out]
    with zipfile.ZipFile(out) as package:
        package.extractall(tmp_path / "packages")
    (folder,) = (tmp_path / "packages").iterdir()
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["from_code"], metadata["to_code"]) == ("en", "fr")
    assert (metadata["from_name"], metadata["to_name"]) == ("English", "French")
    assert (folder / "model" / "model.bin").is_file()
    check_readme(folder, other_python)


def test_smaller_weights_are_compared_with_fairseq_beside_float32(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    fairseq, exact, small = export_run(
        run, out, to="ctranslate2", checkpoint="last", quantization="int8"
    )
    assert fairseq.same == exact.same == exact.sentences == 100
    assert exact.bleu == fairseq.bleu
    assert exact.megabytes and small.megabytes
    assert small.megabytes < exact.megabytes / 2
    assert (out / "model.bin").stat().st_size == pytest.approx(small.megabytes * 1e6)
    assert 50 < small.same <= 100


def test_a_faulty_conversion_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignore_positions(spec, module):
        spec.encodings = 0 * module.weights.numpy()[module.padding_idx + 1 :]

    monkeypatch.setattr(
        "ctranslate2.converters.fairseq.set_position_encodings", ignore_positions
    )
    with pytest.raises(UserError, match="must be those of fairseq, but .* of 100"):
        export_run(run, tmp_path / "m", to="ctranslate2", checkpoint="last")
    assert not list(tmp_path.iterdir())


def test_a_model_that_the_converter_refuses_is_refused_with_its_reason(
    run: Path, tmp_path: Path
) -> None:
    import torch

    import fairseq_plugins

    fairseq_plugins.register()
    state = torch.load(run / "checkpoints" / "checkpoint_last.pt")
    state["cfg"]["model"].encoder_normalize_before = True
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    with pytest.raises(UserError, match="CTranslate2: .*normalize-before"):
        export_run(run, tmp_path / "m", to="ctranslate2", checkpoint=str(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arch, reason",
    [
        ("lstm", "CTranslate2 has no LSTM"),
        ("lstm_topk", "CTranslate2 has no LSTM"),
        ("transformer_topk", "CTranslate2 cannot restrict attention to k positions"),
        ("fconv", "has not been tried"),
    ],
)
def test_other_models_are_refused_before_a_checkpoint_is_looked_for(
    tmp_path: Path, arch: str, reason: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"arch: {arch}\ndata: nowhere\nrun: run\n")
    with pytest.raises(UserError, match=f"is `{arch}`: .*{reason}"):
        export_run(tmp_path, tmp_path / "model", to="ctranslate2")


def test_output_is_not_overwritten_and_has_the_right_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must not exist, but does"):
        export_run(tmp_path, tmp_path, to="ctranslate2")
    with pytest.raises(UserError, match="must write a file `NAME.argosmodel`"):
        export_run(tmp_path, tmp_path / "model.zip", to="argos")


def test_average_is_the_checkpoint_that_average_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "checkpoint_average.pt"
    path.parent.mkdir()
    path.touch()
    assert choose_checkpoint(RunFolder(tmp_path), "average").path == path


def test_a_corpus_of_subword_nmt_is_refused(tmp_path: Path) -> None:
    manifest = {
        "format": "fairseq-soft-topk corpus, 1", "recipe": "r", "source_lang": "en",
        "target_lang": "de", "subsets": {}, "bpe_codes": "codes", "bin_dir": "bin",
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "config.yaml").write_text(
        f"arch: transformer\ndata: {tmp_path}\nrun: run\n"
    )
    with pytest.raises(UserError, match="prepared with SentencePiece"):
        export_run(tmp_path, tmp_path / "model", to="ctranslate2")


def test_the_types_of_weights_are_those_of_ctranslate2() -> None:
    specs = pytest.importorskip("ctranslate2.specs.model_spec")
    assert set(QUANTIZATIONS) <= set(specs.ACCEPTED_MODEL_TYPES)
