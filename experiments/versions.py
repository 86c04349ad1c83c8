"""The package at the lowest, or the newest, releases that pyproject.toml allows, in an environment of its own.

    python experiments/versions.py lowest --python python3.10
    python experiments/versions.py newest --python python3.13

The lowest are those after each ">=" of pyproject.toml, for what the package itself asks for; what those need is as new as they bear. A
fast selection of the tests is run, and what was installed and how many passed is kept in docs/scores/versions.json. Exits with 1 where
a test fails. An environment that is there already is used as it is found, so a build of torch for CPUs can be put into it before.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs/scores/versions.json"
EXTRAS = ("agents", "minari", "play", "train", "video")
TESTERS = ("hypothesis", "moviepy", "pytest")  # of the extra dev: style and types are judged at one release only
TESTS = ("env_state", "envs", "episode", "minari", "models", "play", "public_types", "sb3", "vector_env", "worlds", "wrappers")


def main() -> int:
    args = arguments()
    requirements = asked_for()
    if not (args.folder / "bin/python").exists():
        run(args.python, "-m", "venv", args.folder)
    python = args.folder / "bin/python"
    version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    pins = [pin for one in requirements if (pin := lowest(one, version)) and plain(one.name) not in args.free]
    constraints = args.folder / "constraints.txt"
    constraints.write_text("\n".join(pins if args.which == "lowest" else []) + "\n", encoding="utf-8")
    testers = [str(one) for one in requirements if plain(one.name) in TESTERS]
    upgrade = ["--upgrade"] if args.which == "newest" else []
    install = ["-m", "pip", "install", "--quiet", *upgrade, "-c", constraints, "-e", f"{ROOT}[{','.join(EXTRAS)}]", *testers]
    if not args.installed:
        run(python, *install, *args.pip_args.split())
    counts = tested(python, args.folder / "tests.xml", args.tests)
    keep(f"{args.which}, Python {version}", {"releases": releases(python, requirements), **counts})
    print(counts)
    return int(counts["failed"] > 0 or not counts["passed"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--python", default=sys.executable, help="the Python of the new environment")
    parser.add_argument("--folder", type=Path, help="of the environment; runs/versions/... if not given")
    parser.add_argument("--installed", action="store_true", help="install nothing: the environment is complete")
    parser.add_argument("--free", nargs="*", default=[], help="packages that need not be at their lowest, such as torch")
    parser.add_argument("--pip-args", default="", help='more for pip, such as "--find-links DIR"')
    parser.add_argument("--tests", nargs="*", default=TESTS, help="names of the files of tests, without test_")
    args = parser.parse_args()
    args.folder = (args.folder or ROOT / "runs/versions" / f"{args.which}-{Path(args.python).name}").absolute()
    return args


def asked_for() -> list[Requirement]:
    """What the package and the extras that are tested ask for, and what tests them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    wanted += [line for line in extras["dev"] if plain(Requirement(line).name) in TESTERS]
    return [one for line in wanted if (one := Requirement(line)).name != "lssvwm_gym"]


def lowest(requirement: Requirement, python: str) -> str | None:
    """The requirement at its lower bound, or None where it has none or this Python doesn't need it."""
    if requirement.marker and not requirement.marker.evaluate({"python_version": python.rsplit(".", 1)[0], "python_full_version": python}):
        return None
    bounds = [one.version for one in requirement.specifier if one.operator == ">="]
    return f"{requirement.name}=={bounds[0]}" if bounds else None


def tested(python: Path, report: Path, tests: Iterable[str]) -> dict[str, Any]:
    """Run the tests; how many passed, failed and were skipped, and why those."""
    files = [f"tests/test_{name}.py" for name in tests]
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-m", "not slow and not simulator", f"--junitxml={report}", *files]
    subprocess.run(command, cwd=ROOT, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    number = {kind: int(suite.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    reasons = sorted({skip.get("message", "") for skip in suite.iter("skipped")})
    return {"passed": number["tests"] - failed - number["skipped"], "failed": failed, "skipped": number["skipped"], "why": reasons}


def releases(python: Path, requirements: list[Requirement]) -> dict[str, str]:
    """What is installed of all that is asked for."""
    there = {plain(one["name"]): one["version"] for one in json.loads(run(python, "-m", "pip", "list", "--format=json"))}
    return {name: there[name] for name in sorted({plain(one.name) for one in requirements}) if name in there}


def keep(name: str, result: dict[str, Any]) -> None:
    """Put a result beside those of other environments."""
    results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    command = "python experiments/versions.py " + " ".join(sys.argv[1:])
    results[name] = {"command": command, "date": str(date.today()), "machine": platform.machine(), **result}
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
