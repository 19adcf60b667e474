"""The final answer in ``\\boxed{...}`` or between answer tags: where it stands in a text, in linear time."""

from __future__ import annotations

import re

BOX = "\\boxed{"

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_box(text: str) -> tuple[int, int] | None:
    """Start and end of the content of the last ``\\boxed{...}`` in ``text``; end is -1 if its braces do not close."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return start, match.start()
    return start, -1


def boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` in ``text``, stripped; None if there is none, or it is open."""
    span = last_box(text)
    return None if span is None or span[1] < 0 else text[span[0] : span[1]].strip()


def tagged(text: str) -> str | None:
    """What stands in the last ``<answer>...</answer>``, stripped; None if there is none, or nothing in it."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip() or None
