"""The documentation holds: its Python runs, its command lines are understood, and what it says of the environments is so."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest import SkipTest

import gymnasium
import numpy as np
import pytest
import torch
import tyro
from markdown_it import MarkdownIt
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.cli import COMMANDS, main
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.envs.profiles import PROFILES, sampling_steps
from lssvwm_gym.envs.reset_options import COMBINATIONS, EPISODE_FRAMES
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.worlds import WORLDS, WorldSpec, write_world

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lssvwm_gym/weights/*/README.md"))
)
SLOW = {"README.md"}  # learns with PPO
NEEDS = {"docs/luanti.md": "luanti"}  # a page, and the fixture that skips it where its programs are missing
NOT_RUN: dict[str, int] = {}  # how many blocks a page leaves out, with `<!-- skip: next "the reason" -->` before them
ROOMS: dict[str, Any] = dict(  # what docs/own_world.md has collected
    id="LSSVWM-MiniWorld-FourRooms-v0",
    name="miniworld-fourrooms",
    image_size=64,
    actions=("turn_left", "turn_right", "move_forward"),
    keys={"w": 2, "a": 0, "d": 1},
    fps=30,
    reward_values=(0.0, 1.0),
    max_episode_steps=250,
)
SPECIFICATIONS = {f"docs/environments/{name.replace('-', '_')}.md": name for name in ("memory-maze", "minecraft", "take-cover")}


# Python


def examples_of(page: str) -> list[Example]:
    document = Document.parse(str(ROOT / page), PythonCodeBlockParser(), SkipParser())
    return list(document)


PYTHON = [page for page in PAGES if "```python" in (ROOT / page).read_text(encoding="utf-8")]


@pytest.fixture
def a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what pages take for granted; worlds that they register are forgotten again."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_tiny_weights(tmp_path / "marsh_weights", actions=10, memory_features=0)
    write_world(write_tiny_weights(tmp_path / "my_weights", actions=3), WorldSpec(**ROOMS, weights=tmp_path / "my_weights"))
    monkeypatch.chdir(tmp_path)
    worlds, ids = dict(WORLDS), dict(gymnasium.registry)
    yield tmp_path
    for table, before in ((WORLDS, worlds), (gymnasium.registry, ids)):
        for name in table.keys() - before.keys():
            del table[name]


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in PYTHON])
def test_python_of_a_page_runs(page, a_folder, request):
    """Block after block in one namespace, warnings being errors."""
    if page in NEEDS:
        request.getfixturevalue(NEEDS[page])
    torch.set_num_threads(1)
    left_out, examples = 0, examples_of(page)
    for example in examples:
        try:
            example.evaluate()
        except SkipTest:
            left_out += 1
    for value in examples[0].namespace.values():
        if isinstance(value, gymnasium.Env | gymnasium.vector.VectorEnv):
            value.close()
    assert left_out == NOT_RUN.get(page, 0)


def test_python_that_is_wrong_is_noticed(tmp_path):
    (tmp_path / "page.md").write_text("```python\na = 1\n```\n\n- ```python\n  assert a == 2\n  ```\n")
    first, second = examples_of(str(tmp_path / "page.md"))
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()


# Command lines


class Command(NamedTuple):
    """A command line of a page."""

    words: list[str]
    whole: bool  # from a block of commands; one within a sentence may leave out what must be given


def commands_of(text: str) -> Iterator[Command]:
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.info.strip() in ("", "sh", "bash", "console"):
            for line in token.content.replace("\\\n", " ").splitlines():
                yield from _commands(line.removeprefix("$ "), True)
        for child in token.children or []:
            if child.type == "code_inline" and child.content.startswith(("lssvwm-gym ", "python ", "pytest ", "make ", "pip ", "LSSVWM_")):
                yield from _commands(child.content, False)


def _commands(line: str, whole: bool) -> Iterator[Command]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no command line: a tree of files, a formula
        return
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
        if part:
            yield Command(shlex.split(part), whole and "…" not in line)


class Understood(Exception):
    """The arguments were read; nothing is to be run."""


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts and commands end as soon as they have read their arguments."""

    def then_end(read: Any) -> Any:
        def reading(*arguments: Any, **settings: Any) -> Any:
            read(*arguments, **settings)
            raise Understood

        return reading

    monkeypatch.setattr(tyro, "cli", then_end(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_end(argparse.ArgumentParser.parse_args))


def understand(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the command line is not one that would be taken."""
    program, *words = command.words
    if program == "accelerate" and "-m" in words:
        program, *words = "python", *words[words.index("-m") :]
    if program == "python" and words[:2] == ["-m", "lssvwm_gym.cli"]:
        program, words = "lssvwm-gym", words[2:]
    if program == "lssvwm-gym":
        _understand_command(words, command.whole)
    elif program == "python" and words and not words[0].startswith("-c"):
        _understand_script(words, monkeypatch)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word and word.isalpha()} <= set(targets), words
    elif program == "pip" and sys.version_info >= (3, 11):
        asked = set(chain.from_iterable(re.findall(r"[\w-]+", part) for part in re.findall(r"\[(.*?)\]", " ".join(words))))
        assert asked <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys(), words


def _understand_command(words: list[str], whole: bool) -> None:
    if whole:
        with pytest.raises((Understood, SystemExit)) as ended:
            main(words)
        assert ended.type is Understood or ended.value.code == 0, " ".join(words)  # 0 is --help
        return
    words = [word for word in words if word not in ("…", "COMMAND")]
    named = [name for name in COMMANDS if words[: len(name.split())] == name.split()]
    assert named or words[:1] == ["--help"] or any(name.startswith(" ".join(words)) for name in COMMANDS), words
    if named:
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            main([*named[0].split(), "--help"])
        known = said.getvalue()
        assert [word for word in words if word.startswith("--") and word != "--help" and not re.search(rf"{word}\b", known)] == []


def _understand_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = words[1] if words[0] == "-m" else None
    path = ROOT / (module.replace(".", "/") if module else words[0])
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    arguments = words[2:] if module else words[1:]
    code = path.read_text(encoding="utf-8")
    if "tyro.cli" not in code and "parse_args" not in code:  # reads them by itself
        assert all(word in code for word in arguments if word.startswith("--")), words
        return
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises((Understood, SystemExit)) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.type is Understood or ended.value.code == 0, " ".join(words)


WITH_COMMANDS = [page for page in PAGES if any(commands_of((ROOT / page).read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_command_lines_of_a_page_are_understood(page, read_only, monkeypatch):
    for command in commands_of((ROOT / page).read_text(encoding="utf-8")):
        understand(command, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "lssvwm-gym evaluate --data DIR --clipz 1",
        "lssvwm-gym evaluate",
        "lssvwm-gym dance",
        "accelerate launch -m lssvwm_gym.cli train world --data DIR",
        "python agents/ppo.py --wieghts my_weights",
        "python experiments/soak.py --stepz 1",
        "python docs/_scripts/update_numbers.py --chekc",
        "python -m agents.nobody",
        "pytest tests/test_nothing.py",
        "make nothing",
        "pip install 'lssvwm_gym[nothing]'",
    ],
)
def test_a_command_line_that_is_wrong_is_noticed(line, read_only, monkeypatch, capsys):
    (command,) = commands_of(f"```\n{line}\n```")
    with pytest.raises((AssertionError, OSError)):
        understand(command, monkeypatch)


def test_a_flag_that_is_wrong_is_noticed_within_a_sentence(read_only, monkeypatch):
    right, wrong = commands_of("Say `lssvwm-gym evaluate --steps 2`, not `lssvwm-gym evaluate --pases 2`.")
    understand(right, monkeypatch)
    with pytest.raises(AssertionError, match="pases"):
        understand(wrong, monkeypatch)


# Specifications of the environments


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, those of all tables one after the other, without their heads."""
    text = (ROOT / page).read_text(encoding="utf-8")
    part = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    rules = [number for number, line in enumerate(lines) if set(line) <= set("|-")]
    heads = {number - 1 for number in rules} | set(rules)
    return [[cell.strip() for cell in line.strip("|").split("|")] for number, line in enumerate(lines) if number not in heads]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


@pytest.fixture(scope="module", params=SPECIFICATIONS)
def specified(request: pytest.FixtureRequest) -> tuple[str, WorldSpec]:
    return request.param, WORLDS[SPECIFICATIONS[request.param]]


def test_a_specification_tells_the_actions(specified):
    page, world = specified
    keys = {action: "space" if keys == " " else " ".join(keys) for keys, action in world.keys.items()}
    assert rows_of(page, "Action space") == [[str(n), f"`{name}`", keys.get(n, "")] for n, name in enumerate(world.actions)]
    assert f"held for {1 / world.fps:g} s" in (ROOT / page).read_text(encoding="utf-8")


def test_a_specification_tells_spaces_lengths_and_rewards(specified):
    page, world = specified
    text = (ROOT / page).read_text(encoding="utf-8")
    summary = dict(line.strip("|").split(" | ", 1) for line in re.findall(r"^\| [A-Z].*\|$", text, re.MULTILINE)[:6])
    summary = {name.strip(): value.strip() for name, value in summary.items()}
    env = gymnasium.make(world.id)
    assert summary["Action space"] == f"`{env.action_space}`"
    assert shown(summary["Observation space"]) == shown(f"`{env.observation_space}`")
    pays = [f"{value:g}" for value in (dict(world.milestones).values() or world.reward_values)]
    assert re.findall(r"\d+", summary["Reward"]) == pays
    ends = load_weights(world.weights).world_model.config.termination
    how = "terminated where the game would end, else truncated" if ends else "truncated, never terminated"
    assert summary["Episode"] == f"{world.max_episode_steps} steps of {1 / world.fps:g} s; {how}"
    assert summary["Frames a second"] == str(world.fps)
    assert f"after {world.max_episode_steps} steps" in text
    assert [row[:2] for row in rows_of(page, "Rewards")] == [[f"`{name}`", f"{value:g}"] for name, value in world.milestones]
    assert f"border of {world.border} pixels" in text or not world.border


def test_a_specification_tells_all_observations(specified):
    page, world = specified
    told = {name.strip('"'): row[1] for row in rows_of(page, "Observation space") for name in code_in(row[0]) if name.startswith('"')}
    for name, cell in told.items():
        space = gymnasium.make(world.id, observation=name).observation_space
        assert shown(str(space)) in shown(cell) or str(space.shape) in cell, name
    with pytest.raises(ValueError, match="observation must be one of") as refused:
        DreamEnv(world, observation="nothing")
    there_are = set(str(refused.value).split("one of ")[1].split(", not")[0].split(", "))
    if not open_dream(world).weights.world_model.config.map_objects:  # which only the weights know
        there_are.remove("map+wanted+pose")
        with pytest.raises(ValueError, match="draws none"):
            DreamEnv(world, observation="map+wanted+pose")
    assert there_are == told.keys()
    assert ", ".join(world.inventory) in (ROOT / page).read_text(encoding="utf-8")


def shown(space: str) -> str:
    """A space as it is written, without what differs between releases of Gymnasium."""
    return re.sub(r"[`' ]", "", space)


def test_a_specification_tells_what_info_holds(specified):
    page, world = specified
    _, info = gymnasium.make(world.id).reset(seed=0)
    told = {code_in(name)[0]: kind for name, kind, _ in rows_of(page, "Info")}
    assert told.keys() == info.keys()
    for name, value in info.items():
        kind = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        assert told[name].startswith(kind), name


def test_a_specification_tells_the_arguments(specified):
    page, world = specified
    parameters = list(inspect.signature(DreamEnv.__init__).parameters.values())[2:]  # without self and the world
    expected = [[f"`{p.name}`", f"`{p.default!r}`".replace("'", '"')] for p in parameters]
    assert [row[:2] for row in rows_of(page, "Arguments")] == expected
    model = load_weights(world.weights).world_model
    fast, balanced, quality = (sampling_steps(model, profile) for profile in PROFILES)
    whose = "denoising steps a frame" if model.flow_head is None else "denoising steps of the flow head a frame"
    assert f"{fast}, {balanced} or {quality} {whose}" in rows_of(page, "Arguments")[1][2]


def test_a_specification_tells_the_starts(specified):
    page, world = specified
    weights = load_weights(world.weights)
    told = [tuple(sorted(re.findall(r'"(\w+)":', row[0]))) for row in rows_of(page, "Starting state")]
    assert set(told) == set(COMBINATIONS) - {()}
    text = (ROOT / page).read_text(encoding="utf-8")
    openings, walks = weights.short_contexts.latent.shape, weights.long_contexts.latent.shape
    assert f"one of {openings[0]} real short contexts of {openings[1]} frames" in text
    assert f"of 0 to {openings[0] - 1}" in text
    assert f"one of {walks[0]} real long contexts" in text
    assert f"of {walks[1]} at most" in text
    assert f"first {EPISODE_FRAMES} frames" in text


# Numbers elsewhere


def test_tables_that_a_script_fills_say_when_and_by_which_command():
    date = r"(?<![#\w-])\d{4}-\d\d-\d\d(?![\w-])"
    tables = 0
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for part in re.split(r"^#+ ", text, flags=re.MULTILINE):
            names = re.findall(r"<!-- numbers:([\w ]+) -->", part)
            tables += len(names)
            assert not names or re.search(date, part), (page, names)
            assert not names or any(commands_of(text)), page
    assert tables >= 20


def test_every_world_has_a_specification():
    assert {world.id for world in map(WORLDS.get, SPECIFICATIONS.values()) if world} == {
        spec.id for spec in gymnasium.registry.values() if spec.id.startswith("LSSVWM-") and spec.kwargs.get("world") in WORLDS
    }


def test_profiles_are_told_as_they_are():
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    for name, steps in PROFILES.items():
        assert re.search(rf"^\| `{name}`.* \| {steps.flow_steps} \| {steps.model_steps} \|$", text, re.MULTILINE), name


def test_files_and_names_to_change_exist():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Where do I change what\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for _, places, names in rows:
        paths = [ROOT / path for path in code_in(places) if "/" in path]
        files = list(chain.from_iterable(path.glob("*.py") if path.is_dir() else [path] for path in paths))
        code = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for name in code_in(names):
            assert re.search(rf"^ *(?:def|class) _?{name}\b|^{name}\b", code, re.MULTILINE), (places, name)


def test_every_example_is_listed():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    examples = [path.name for path in sorted((ROOT / "examples").iterdir()) if path.suffix in (".py", ".ipynb")]
    assert [name for name in examples if f"(../examples/{name})" not in text] == []
