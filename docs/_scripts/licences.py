"""Write docs/licences.md: what each installed dependency says its licence is. `python docs/_scripts/licences.py`

The packages are those that the extras of lssvwm_gym bring, found from its own metadata; nothing is downloaded.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, metadata
from pathlib import Path

from packaging.requirements import Requirement

OUT = Path(__file__).parent.parent / "licences.md"
EXTRAS = ("", *(metadata("lssvwm_gym").get_all("Provides-Extra") or []))
LONGEST = 60  # characters; some packages put the whole text where the name belongs


def main() -> None:
    needed: dict[str, set[str]] = {}
    for extra in EXTRAS:
        for name in everything(normal("lssvwm_gym"), extra):
            needed.setdefault(name, set()).add(extra or "core")
    rows = [row(name, extras) for name, extras in sorted(needed.items())]
    begin, end = "<!-- packages -->", "<!-- end -->"
    text = OUT.read_text(encoding="utf-8")
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    table = "\n".join(["| package | release | licence, as its metadata says | with |", "|---|---|---|---|", *rows])
    OUT.write_text(f"{before}\n{table}\n{after}", encoding="utf-8")
    print(f"{len(rows)} packages in {OUT}")


def everything(name: str, extra: str) -> set[str]:
    """All that a package needs where it is installed with an extra, itself left out."""
    found: set[str] = set()
    known: set[tuple[str, str]] = set()
    stack = [(name, extra)]
    while stack:
        one, part = stack.pop()
        if (one, part) in known or (dist := installed(one)) is None:
            continue
        known.add((one, part))
        if one != name:
            found.add(one)
        for text in dist.requires or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": part}):
                stack += [(normal(need.name), inner) for inner in ("", *need.extras)]
    return found


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def row(name: str, extras: set[str]) -> str:
    dist = distribution(name)
    where = "core" if "core" in extras else ", ".join(sorted(extras - {"dev"})) or "dev"
    return f"| {dist.metadata['Name']} | {dist.version} | {licence(dist)} | {where} |"


def licence(dist: Distribution) -> str:
    """The expression, the classifiers or the field, whichever is there first."""
    meta = dist.metadata
    kinds = [kind.split(" :: ")[-1] for kind in meta.get_all("Classifier") or [] if kind.startswith("License :: ")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    said = meta.get("License-Expression") or "; ".join(kinds) or (meta.get("License") or "").strip().splitlines()[:1] or "not said"
    text = said if isinstance(said, str) else said[0]
    return text.replace("|", "/")[:LONGEST]


if __name__ == "__main__":
    main()
