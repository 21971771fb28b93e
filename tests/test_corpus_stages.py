"""Which stages run again, with toy stages that only join text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.corpus.manifest import FORMAT
from fairseq_plugins.corpus.stages import Stage, StageRunner
from fairseq_plugins.utils.errors import UserError

# stage: its inputs. `left` and `right` are files from outside.
GRAPH = {
    "a": ["left"],
    "b": ["right"],
    "c": ["out/a"],
    "d": ["out/b", "out/c"],
}
DEPENDENTS = {"a": "acd", "b": "bd", "c": "cd", "d": "d"}


class Factory:
    """Builds the stages, counts their runs and can make one of them fail."""

    def __init__(self, root: Path) -> None:
        self.outside, self.folder = root / "outside", root / "work"
        self.outside.mkdir()
        self.folder.mkdir()
        self.settings = {name: 1 for name in GRAPH}
        self.ran: list[str] = []
        self.failing = ""
        for name in ("left", "right"):
            self.write(name, name)

    def write(self, name: str, text: str) -> None:
        (self.outside / name).write_text(text)

    def path(self, name: str) -> Path:
        return (self.folder if "/" in name else self.outside) / name

    def stage(self, name: str) -> Stage:
        inputs = {key: self.path(key) for key in GRAPH[name]}
        return Stage(
            name=name,
            title=name,
            inputs=inputs,
            outputs=[f"out/{name}"],
            settings={"size": self.settings[name]},
            versions={},
            run=lambda: self.run(name, list(inputs.values())),
        )

    def run(self, name: str, inputs: list[Path]) -> dict[str, int]:
        self.ran.append(name)
        if name == self.failing:
            raise UserError("as planned")
        out = self.folder / "out" / name
        out.parent.mkdir(exist_ok=True)
        out.write_text(self.expected(name))
        assert all(path.is_file() for path in inputs)
        return {"letters": 1}

    def expected(self, name: str) -> str:
        """The output of a run from scratch."""
        inputs = [
            self.expected(key[4:]) if "/" in key else self.path(key).read_text()
            for key in GRAPH[name]
        ]
        return f"{name}{self.settings[name]}({','.join(inputs)})"

    def update(self, names: str = "abcd") -> str:
        """Act as a new process and return which stages ran."""
        self.ran = []
        runner = StageRunner(self.folder, recipe="toy")
        runner.run([self.stage(name) for name in names])
        runner.finish({"note": "hello"})
        return "".join(self.ran)

    def files(self) -> set[str]:
        names = {path.name for path in self.folder.rglob("*") if path.is_file()}
        return names - {".digests.json"}


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    factory = Factory(tmp_path)
    assert factory.update() == "abcd"
    return factory


def test_a_second_run_does_nothing_at_all(factory):
    before = {path: path.stat().st_mtime_ns for path in factory.folder.rglob("*")}
    assert factory.update() == ""
    assert before == {p: p.stat().st_mtime_ns for p in factory.folder.rglob("*")}


@pytest.mark.parametrize("name", GRAPH)
def test_a_changed_setting_redoes_exactly_the_stages_that_depend_on_it(factory, name):
    factory.settings[name] = 2
    assert factory.update() == DEPENDENTS[name]


def test_a_changed_input_redoes_the_stages_that_depend_on_it(factory):
    factory.write("right", "other")
    assert factory.update() == "bd"
    assert (factory.folder / "out/d").read_text() == factory.expected("d")


@pytest.mark.parametrize("name", GRAPH)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("x")])
def test_only_the_stage_of_a_deleted_or_damaged_output_runs_again(
    factory: Factory, name: str, damage: Callable[[Path], object]
):
    damage(factory.folder / "out" / name)
    assert factory.update() == name


def test_a_failure_leaves_no_manifest_and_no_output_of_the_former_settings(factory):
    factory.settings["a"] = 2
    factory.failing = "a"
    with pytest.raises(UserError, match="as planned"):
        factory.update()
    assert factory.files() == {"b", ".progress.json"}


def test_after_a_failure_finished_stages_do_not_run_again(factory):
    factory.settings["a"] = 2
    factory.failing = "d"
    with pytest.raises(UserError):
        factory.update()
    factory.failing = ""
    assert factory.update() == "d"
    assert factory.files() == {"a", "b", "c", "d", "manifest.json"}


def test_outputs_of_a_stage_that_is_gone_are_removed(factory):
    assert factory.update("abc") == ""
    assert factory.files() == {"a", "b", "c", "manifest.json"}
    stages = json.loads((factory.folder / "manifest.json").read_text())["stages"]
    assert list(stages) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[1]", '{"format": "0"}', f'{{"format": "{FORMAT}"}}']
)
def test_without_a_usable_manifest_all_is_done_again(factory, content):
    manifest = factory.folder / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    assert factory.update() == "abcd"
    assert factory.update() == ""


def test_a_new_description_is_written_without_running_anything(factory):
    runner = StageRunner(factory.folder, recipe="toy")
    runner.finish({"note": "new"})
    assert json.loads((factory.folder / "manifest.json").read_text())["note"] == "new"
    assert factory.update() == ""


def test_a_folder_of_another_recipe_is_refused(factory):
    with pytest.raises(UserError, match="holds `toy` and not `other`"):
        StageRunner(factory.folder, recipe="other")


_EVENTS = st.one_of(
    st.tuples(st.just("set"), st.sampled_from("abcd"), st.integers(1, 2)),
    st.tuples(st.just("write"), st.sampled_from(["left", "right"]), st.integers(1, 2)),
    st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just(0)),
    st.tuples(st.just("damage"), st.sampled_from("abcd"), st.just(0)),
    st.tuples(st.just("fail"), st.sampled_from("abcd"), st.just(0)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(events=st.lists(_EVENTS, min_size=1, max_size=6))
def test_after_any_events_a_run_ends_with_the_output_of_a_fresh_one(
    tmp_path_factory, events
):
    factory = Factory(tmp_path_factory.mktemp("factory"))
    factory.update()
    for event, name, value in events:
        out = factory.folder / "out" / name
        if event == "set":
            factory.settings[name] = value
        elif event == "write":
            factory.write(name, str(value))
        elif event == "delete":
            out.unlink(missing_ok=True)
        elif event == "damage":
            if out.exists():
                out.write_text("damaged")
        else:
            factory.failing = name
            try:
                factory.update()
            except UserError:
                assert not (factory.folder / "manifest.json").exists()
            factory.failing = ""
    factory.update()
    for name in GRAPH:
        assert (factory.folder / "out" / name).read_text() == factory.expected(name)
    assert factory.update() == ""
