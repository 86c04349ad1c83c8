"""Rules of the house that no single module can keep: what imports what, what is read from disk, how large a file may be."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import lssvwm_gym

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lssvwm_gym"
LONGEST_FILE = 400  # lines
FILES = sorted(path for folder in ("lssvwm_gym", "agents", "examples") for path in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# The floors of the house, from the ground up: a part may know of those below it, and of none above.
FLOORS = (
    "io",
    "models",
    "worlds",
    "real_envs",
    "data",
    "checkpoints",
    "training",
    "envs",
    "registry",
    "generate",
    "onnx_dream",
    "export",
    "evaluation",
    "play",
    "own_world",
    "cli",
)
FREE = {"malloc"}  # parts that know of no other
SHORT = {"worlds", "examples"}  # folders of files that may be short
SHORTEST_FILE = 40  # lines
MOST_LINES = 18_920  # of the package and the agents together
SCRIPTS = {"agents", "examples", "tests"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def imports(tree: ast.AST, path: str) -> Iterator[str]:
    """Dotted names of all that `tree` imports, wherever in the file; relative imports are spelt out."""
    package = Path(path).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of its functions: what runs when the module is imported."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...
        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None: ...

    return WithoutFunctions().visit(copy.deepcopy(tree))


def own_part(name: str) -> str:
    """`envs` of `lssvwm_gym.envs.simulator`; empty for what is not of this package."""
    return name.split(".")[1] if name.startswith("lssvwm_gym.") else ""


def is_public(path: str) -> bool:
    return not any(part.startswith("_") for part in path.removesuffix("/__init__.py").split("/"))


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_there_are_files_to_judge():
    assert "lssvwm_gym/__init__.py" in TREES


def test_importing_the_package_is_light_and_registers_the_ids():
    run_python(
        """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("importing lssvwm_gym reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse
import gymnasium
import lssvwm_gym
heavy = {"torch", "mujoco", "dm_control", "memory_maze", "pygame", "stable_baselines3", "av", "tyro"} & set(sys.modules)
assert not heavy, f"importing lssvwm_gym imported {sorted(heavy)}"
assert "LSSVWM-MemoryMaze-v0" in gymnasium.registry, sorted(id for id in gymnasium.registry if "LSSVWM" in id)
"""
    )


def test_dreaming_needs_no_extra():
    """Worlds, models and envs import where none of the extras is installed; the SB3 adapter may want its own."""
    run_python(
        """
import importlib, pkgutil, sys
extras = "av matplotlib tqdm tyro tensorboard torchmetrics accelerate pygame mujoco dm_control memory_maze".split()
for name in extras:
    sys.modules[name] = None  # as if it were not installed
for part in ("worlds", "models", "envs"):
    package = importlib.import_module(f"lssvwm_gym.{part}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
    )


@pytest.mark.parametrize("part", FLOORS)
def test_imports_point_downwards(part):
    above = FLOORS[FLOORS.index(part) + 1 :]
    wrong = {
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.startswith(f"lssvwm_gym/{part}/") or path == f"lssvwm_gym/{part}.py"
        for name in imports(tree, path)
        if own_part(name) in above
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_every_part_has_its_floor():
    parts = {path.split("/")[1].removesuffix(".py") for path in TREES if path.startswith("lssvwm_gym/")} - {"__init__"}
    assert parts - set(FLOORS) == FREE


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by way of any others."""
    reached = {name: set(direct) for name, direct in imported.items()}
    for middle in imported:
        for name in imported:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    found = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in imported if name in reached[name]}
    return sorted(sorted(circle) for circle in found)


def test_no_modules_import_each_other():
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): (path, tree) for path, tree in TREES.items()}
    imported = {module: ({*imports(tree, path)} & modules.keys()) - {module} for module, (path, tree) in modules.items()}
    without_packages = {module: direct for module, direct in imported.items() if not modules[module][0].endswith("__init__.py")}
    assert circles({module: direct & without_packages.keys() for module, direct in without_packages.items()}) == []


def test_circles_are_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_a_name_means_one_thing():
    """Classes of the package and the agents; every script has its own `Args`."""
    places: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name != "Args" and not path.startswith("examples/"):
                places.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_file_is_a_function_of_its_neighbour():
    short = {
        path: lines
        for path in TREES
        if not path.endswith("__init__.py") and not SHORT & set(path.split("/"))
        if (lines := (ROOT / path).read_text(encoding="utf-8").count("\n")) < SHORTEST_FILE
    }
    assert not short


def test_the_house_stays_small():
    lines = sum((ROOT / path).read_text(encoding="utf-8").count("\n") for path in TREES if not path.startswith("examples/"))
    assert lines <= MOST_LINES


def test_the_package_imports_no_scripts():
    wrong = {
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.startswith("lssvwm_gym/")
        for name in imports(tree, path)
        if name.split(".")[0] in SCRIPTS
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_nothing_is_unpickled():
    wrong = [f"{path}:{line} {what}" for path, tree in TREES.items() for line, what in unpickling(tree, path)]
    assert not wrong, "\n".join(wrong)


def unpickling(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Line and name of each way a file could run code out of data that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imports(ast.Module([node], []), path):
                if name.split(".")[0] in PICKLES or name == "torch.load":
                    yield node.lineno, name
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield node.lineno, "torch.load"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield node.lineno, "allow_pickle"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", 1),
        ("from torch import load", 1),
        ("import torch\ntorch.load(path)", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=False)", 0),
        ("from safetensors.torch import load_file", 0),
    ],
)
def test_unpickling_is_noticed(code, found):
    assert len(list(unpickling(ast.parse(code), "lssvwm_gym/file.py"))) == found


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import lssvwm_gym.envs.simulator", "lssvwm_gym.envs.simulator"),
        ("from lssvwm_gym import envs", "lssvwm_gym.envs"),
        ("from ..envs import dream", "lssvwm_gym.envs.dream"),
        ("from .. import envs", "lssvwm_gym.envs"),
        ("def late():\n    from lssvwm_gym.envs import dream", "lssvwm_gym.envs.dream"),
    ],
)
def test_every_kind_of_import_is_noticed(code, name):
    tree = ast.parse(code)
    assert name in set(imports(tree, "lssvwm_gym/models/file.py"))
    assert (name in set(imports(at_import(tree), "lssvwm_gym/models/file.py"))) == (not code.startswith("def"))


@pytest.mark.parametrize("path", TREES)
def test_a_file_is_read_in_one_sitting(path):
    lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{path} has {lines} lines"


@pytest.mark.parametrize("path", [path for path, tree in TREES.items() if tree.body and is_public(path)])
def test_a_public_module_says_what_it_is(path):
    assert ast.get_docstring(TREES[path]), f"{path} has no docstring"


def test_the_installed_version_is_the_source_version():
    assert version("lssvwm_gym") == lssvwm_gym.__version__, "installed from older sources: touch pyproject.toml and make test"
