"""Types of the public API: a user's program is judged as its types promise, all that is offered is annotated and says what it does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import typed_user

import lssvwm_gym

ROOT = Path(__file__).parent.parent
# what the documentation tells users of beside what packages list as theirs
MORE = {
    "lssvwm_gym.envs.sb3": ("DreamVecEnv", "make_sb3_vec_env"),
    "lssvwm_gym.data.episode": ("Episode", "EpisodeError", "read_episode", "read_video", "write_episode", "write_video"),
    "lssvwm_gym.io.tensors": ("TensorFileError", "load_tensors", "save_tensors"),
    "lssvwm_gym.models.segment": ("Segment",),
    "lssvwm_gym.checkpoints.checkpoint": ("Weights", "load_weights", "save_weights"),
    "lssvwm_gym.models.rollout": ("DreamState", "commit", "first_state", "imagine", "prefill"),
}


def offered() -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Dotted names of public classes and functions, and of the public methods and properties of those classes; each with its owner."""
    packages = [module.name for module in pkgutil.walk_packages(lssvwm_gym.__path__, "lssvwm_gym.") if module.ispkg]
    listed = {name: getattr(importlib.import_module(name), "__all__", ()) for name in ("lssvwm_gym", *packages)}
    for source, names in [*listed.items(), *MORE.items()]:
        for name in names:
            what = getattr(importlib.import_module(source), name)
            if not str(getattr(what, "__module__", "")).startswith("lssvwm_gym") or not isinstance(what, FunctionType | type):
                continue
            yield f"{source}.{name}", (what, what)
            for member, value in vars(what).items() if isinstance(what, type) else ():
                if not member.startswith("_") and (function := unwrapped(value)) is not None and function.__module__ == what.__module__:
                    yield f"{source}.{name}.{member}", (what, function)


def unwrapped(member: Any) -> FunctionType | None:
    """The function behind a method or property, or None."""
    for name in ("fget", "func", "__func__"):
        member = getattr(member, name, member)
    member = inspect.unwrap(member) if callable(member) else member
    return member if isinstance(member, FunctionType) else None


OFFERED = dict(offered())


def test_what_is_offered_is_found():
    wanted = {"lssvwm_gym.register", "lssvwm_gym.envs.DreamEnv.branch", "lssvwm_gym.envs.Dream.fingerprint"}
    assert wanted <= OFFERED.keys()


@pytest.mark.parametrize("name", OFFERED)
def test_it_says_what_it_does_and_with_what(name):
    owner, what = OFFERED[name]
    assert inspect.getdoc(owner if owner is what else getattr(owner, what.__name__)), f"{name} has no docstring"
    if isinstance(what, FunctionType):
        signature = inspect.signature(what)
        bare = [one.name for one in signature.parameters.values() if one.annotation is one.empty and one.name not in ("self", "cls")]
        assert not bare, f"{name}: no type of {bare}"
        assert signature.return_annotation is not signature.empty, f"{name}: no type of what it returns"


def test_a_typed_program_runs(tiny_weights, tmp_path):
    typed_user.use(tiny_weights, tmp_path)


@pytest.mark.slow
def test_a_typed_program_is_judged_as_it_should_be():
    """Strictly, by the project's own settings: an error, a type other than promised, or a wrong line that passes is told."""
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/typed_user.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_brings_types_and_weights(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        classifiers = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert "lssvwm_gym/py.typed" in names
    assert "Classifier: Typing :: Typed" in classifiers
    for world in lssvwm_gym.WORLDS.values():
        folder = world.weights.relative_to(ROOT).as_posix()
        files = {path.name for path in world.weights.iterdir()}
        assert files >= {"config.json", "model.safetensors", "README.md"}
        assert {f"{folder}/{name}" for name in files} <= names
    assert not [name for name in names if not name.startswith("lssvwm_gym")], "more than the package"
