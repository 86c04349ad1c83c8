"""What the package says about itself: README, changelog and declared dependencies agree with the code."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import gymnasium
import pytest

import lssvwm_gym

ROOT = Path(__file__).parent.parent
IDS = sorted(id for id in gymnasium.registry if id.startswith("LSSVWM-"))


@pytest.mark.parametrize("id", IDS)
def test_readme_names_every_id(id):
    assert id in (ROOT / "README.md").read_text(encoding="utf-8")


def test_changelog_has_this_version():
    assert f"## [{lssvwm_gym.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_everything_imported_is_declared():
    declared = {plain(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requires("lssvwm_gym") or []}
    sources = packages_distributions()
    undeclared = {name for name in third_party_imports() if not declared & {plain(source) for source in sources.get(name, [name])}}
    assert not undeclared, f"imported by the package, in no dependency or extra: {sorted(undeclared)}"


def third_party_imports() -> set[str]:
    nodes = [node for path in (ROOT / "lssvwm_gym").rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"lssvwm_gym", "__future__"}


def plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
