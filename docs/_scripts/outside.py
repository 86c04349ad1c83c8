"""A hook of mkdocs: files outside `docs/` that its pages link to become pages of the site.

A link such as `../agents/ppo.py` works where the repository is browsed; on the site it leads to a copy. Markdown becomes a
page, a notebook one with what its cells have shown, anything else a page that shows its text. What such a page links to itself follows
in the same way.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
FENCES = {".py": "python", "Makefile": "make"}
PLACE = "repository"  # folder of the site for what comes from outside


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside that pages link to, and those that these link to."""
    waiting = list(files.documentation_pages())
    while waiting:
        file = waiting.pop()
        for path in outside(file.content_string, home(file)):
            if files.get_file_from_path(placed(path)) is None:
                copy = File.generated(config, placed(path), content=shown(path))
                files.append(copy)
                waiting += [copy] if path.endswith((".md", ".ipynb")) else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links that leave `docs/`, and links of pages from outside, to where these files are on the site."""
    folder, here = home(page.file), posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        target = path.removeprefix("docs/") if path.startswith("docs/") else placed(path)
        return posixpath.relpath(target, here or ".") if (ROOT / path).is_file() else link[1]

    return LINK.sub(turned, markdown)


def home(file: File) -> str:
    """The folder of the repository from which a page's links are to be read."""
    folder = posixpath.dirname(file.src_uri)
    if file.src_uri.startswith(f"{PLACE}/"):
        return folder.removeprefix(PLACE).lstrip("/")
    return posixpath.join("docs", folder)


def outside(markdown: str, folder: str) -> list[str]:
    """Files of the repository, outside `docs/`, that a text links to from `folder`."""
    paths = [posixpath.normpath(posixpath.join(folder, link)) for link in LINK.findall(markdown)]
    return [path for path in paths if not path.startswith(("docs/", "../")) and (ROOT / path).is_file()]


def placed(path: str) -> str:
    """Where a file of the repository is on the site; no README.md, which the menu would make the title of its section."""
    return f"{PLACE}/{path.replace('README.md', 'readme.md')}" if path.endswith(".md") else f"{PLACE}/{path}.md"


def shown(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        return "\n\n".join(chain.from_iterable(map(cell_shown, json.loads(text)["cells"]))) + "\n"
    kind = FENCES.get(Path(path).suffix or path, "text")
    return f"# {path}\n\n````{kind}\n{text}````\n"


def cell_shown(cell: dict[str, Any]) -> Iterator[str]:
    """The Markdown of a notebook's cell: its text, or its code and the pictures and text that it has shown."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        picture = next((kind for kind in ("image/jpeg", "image/png") if kind in data), None)
        if picture:
            yield f"![What this cell shows](data:{picture};base64,{''.join(data[picture]).strip()})"
        else:
            yield f"````text\n{''.join(output.get('text') or data.get('text/plain', '')).rstrip()}\n````"
