"""An extension of griffe: the comment beside a field is its docstring on the API pages, as it is its help on the command line."""

from __future__ import annotations

import io
import textwrap
import tokenize
from typing import Any

from griffe import Attribute, Docstring, Extension


class FieldComments(Extension):
    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.lineno and (comment := beside(attr.source)):
            attr.docstring = Docstring(comment, lineno=attr.lineno, parent=attr)


def beside(source: str) -> str:
    """The comments in a statement, without what is meant for tools."""
    tokens = tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(comment for comment in comments if not comment.startswith(("noqa", "type:")))
