"""An average has the mean of every parameter; wrong files leave no output."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_plugins.evaluation.average import average_checkpoints
from fairseq_plugins.utils.errors import UserError


def write(path: Path, model: dict[str, Any], **more: Any) -> Path:
    state = {"model": model, "args": None, "cfg": {"model": Namespace(arch="lstm")}}
    torch.save({**state, "last_optimizer_state": {"big": torch.ones(5)}, **more}, path)
    return path


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def make(tmp_path: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        torch.manual_seed(number)
        shared = torch.randn(4, 3)
        model = {
            "encoder.embed": shared,
            "decoder.embed": shared,
            "half": torch.randn(7).half(),
            "steps": torch.tensor(10 * number),
        }
        name = tmp_path / f"checkpoint{number}.pt"
        paths.append(write(name, model, optimizer_history=[number]))
    return paths


def test_every_parameter_is_the_mean_in_its_own_type(tmp_path: Path) -> None:
    paths = make(tmp_path, 3)
    average_checkpoints(paths, tmp_path / "mean.pt")
    models = [read(path)["model"] for path in paths]
    for name, mean in read(tmp_path / "mean.pt")["model"].items():
        values = torch.stack([model[name].double() for model in models])
        assert mean.dtype == models[0][name].dtype
        expected = values.mean(dim=0)
        tolerance = 1e-3 if mean.dtype == torch.float16 else 1e-7
        torch.testing.assert_close(mean.double(), expected, rtol=tolerance, atol=0)


def test_one_checkpoint_is_its_own_average(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    average_checkpoints([path], tmp_path / "mean.pt")
    mean, model = read(tmp_path / "mean.pt")["model"], read(path)["model"]
    assert all(torch.equal(mean[name], model[name]) for name in model)


def test_other_entries_are_those_of_the_last_checkpoint_without_its_optimizer(
    tmp_path: Path,
) -> None:
    average_checkpoints(make(tmp_path, 3), tmp_path / "mean.pt")
    state = read(tmp_path / "mean.pt")
    assert state["optimizer_history"] == [2]
    assert state["cfg"]["model"].arch == "lstm"
    assert state["last_optimizer_state"] is None


def test_shared_parameters_stay_shared_and_bytes_repeat(tmp_path: Path) -> None:
    paths = make(tmp_path, 3)
    average_checkpoints(paths, tmp_path / "one.pt")
    average_checkpoints(paths, tmp_path / "other.pt")
    model = read(tmp_path / "one.pt")["model"]
    assert model["encoder.embed"].data_ptr() == model["decoder.embed"].data_ptr()
    assert model["half"].data_ptr() != model["steps"].data_ptr()
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


def test_float32_sums_do_not_lose_what_float32_would(tmp_path: Path) -> None:
    values = [1e8, 1.0, -1e8]
    paths = [
        write(tmp_path / f"{i}.pt", {"w": torch.tensor([value])})
        for i, value in enumerate(values)
    ]
    average_checkpoints(paths, tmp_path / "mean.pt")
    assert read(tmp_path / "mean.pt")["model"]["w"].item() == pytest.approx(1 / 3)


def test_files_older_than_torch_1_6_are_read(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2)}}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    average_checkpoints([tmp_path / "a.pt"] * 2, tmp_path / "mean.pt")
    assert read(tmp_path / "mean.pt")["model"]["w"].tolist() == [1, 1]


class Foreign:
    """A class that the safe loader refuses."""


def test_wrong_files_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    good, _ = make(tmp_path, 2)
    shape = write(tmp_path / "shape.pt", {"w": torch.ones(3)})
    other = write(tmp_path / "other.pt", {"w": torch.ones(2)})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:200])
    foreign = write(tmp_path / "foreign.pt", {"w": torch.ones(3)}, thing=Foreign())
    torch.save([1], tmp_path / "list.pt")
    cases: list[tuple[list[Path], str]] = [
        ([], "at least one checkpoint"),
        ([tmp_path / "no.pt"], "no.pt` does not exist"),
        ([good, shape], "only `.*0.pt`, not `.*shape.pt`, has `decoder.embed`"),
        ([shape, other], r"`w` is \[3\] in .* and \[2\] in `.*other.pt`"),
        ([cut], "cut.pt` cannot be read"),
        ([foreign], "foreign.pt` must hold only tensors, numbers and options"),
        ([tmp_path / "list.pt"], "list.pt` must be a mapping"),
    ]
    for paths, message in cases:
        with pytest.raises(UserError, match=message):
            average_checkpoints(paths, tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()
