"""Words and numbers as a page prints them: what others wrote is made fit to be shown, shares are in percent.

Escaping of HTML is jinja2's, which is on for the whole page. This is about what escaping leaves alone: controls that
turn the direction of the text around, characters without width, halves of surrogate pairs, and sheer size.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

SHORT, LONG = 160, 4000
"""Most characters of a name and of a response."""

# Zero-width joiner and non-joiner stay: scripts and emoji need them.
_KEPT = frozenset("\n\t\u200c\u200d")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """The text with every control, format character and lone surrogate spelled out, e.g. ``⟨U+202E⟩``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(char):04X}⟩" if _is_hidden(char) else char for char in text)


def shortened(text: str, limit: int) -> str:
    """The first ``limit`` characters, with a note of how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def name_of(value: object) -> str:
    """A name or a number as one short visible line; empty for None."""
    return "" if value is None else shortened(visible(" ".join(str(value).split())), SHORT)


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    """What became of a text, word by word: (``same``, ``gone`` or ``new``, words), in reading order."""
    old, new = (re.findall(r"\s+|[^\s]+", shortened(text, LONG)) for text in (before, after))
    parts: list[tuple[str, str]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(old[i:j])))
            continue
        parts += [(label, "".join(words)) for label, words in (("gone", old[i:j]), ("new", new[k:m])) if words]
    return parts


def settings_apart(compared: Mapping[str, Any]) -> list[str]:
    """One line for each setting in which two compared tests differ, with the threats that it bears on."""
    lines = []
    for entry in compared["settings"]:
        threats = entry["threats"]
        named = ", ".join(threats[:3]) + (f" and {len(threats) - 3} more" if len(threats) > 3 else "")
        where = "all threats" if len(threats) == len(compared["threats"]) > 1 else named
        lines.append(f"{entry['setting']}: {name_of(entry['a'])} in A, {name_of(entry['b'])} in B ({name_of(where)})")
    return lines


def percent(share: float | None) -> str:
    """A share of one in percent, without the sign; a dash where it is not known."""
    return "–" if share is None else _rounded(share, "")


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign unless it rounds to zero."""
    return _rounded(difference, "+")


def p_value(p: float | None) -> str:
    """A p-value to three places; a dash where there is none."""
    return "–" if p is None else "< 0.001" if p < 0.0005 else f"{p:.3f}"


def _rounded(share: float, sign: str) -> str:
    text = f"{100 * share:{sign}.1f}"
    return text.replace("-", "−") if text.strip("+-0.") else text.lstrip("+-")


def _is_hidden(char: str) -> bool:
    is_noncharacter = ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF
    return char not in _KEPT and (is_noncharacter or unicodedata.category(char) in _HIDDEN)
