"""What a reader must know before a card's figures: how it is said on the card, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BAD_ROWS = "bad-rows.txt"
"""File of a test's folder: what was wrong with each row of the data that was left out."""

WORTH_SAYING = 0.05
"""Share of responses from which on it is said that they could not be right; ours."""


def problems_in_words(data: Mapping[str, Any]) -> str:
    """``6 problems``, and how many rows of the file were left out, if any; ``data`` as a card tells of it."""
    text, num_bad = f"{data.get('num_problems')} problems", data.get("num_bad")
    if not num_bad:
        return text
    return f"{text}, {num_bad} bad row{'s' if num_bad != 1 else ''} left out ({BAD_ROWS} says why)"


def cautions(card: Mapping[str, Any]) -> list[str]:
    """What a model was asked in a way that says little of it.

    Of responses to clean pictures: those that were cut, and those without the box in which rules look for the answer (a
    judge reads them all), each with the option that mends it. Fewer than ``WORTH_SAYING`` are not spoken of. And the
    hints at wrong answers that name none, and a benchmark of which only a part was asked.
    """
    clean = card.get("threats", {}).get("clean", {})
    longest, reasons = card.get("decoding", {}).get("max_new_tokens"), clean.get("reasons", {})
    is_judged = card.get("grading", {}).get("answer_by") == "judge"
    benchmark = card.get("benchmark") or {}
    without = r"\boxed{}, where the answer is looked for"
    if benchmark:
        without = f"answer that the rules for {benchmark.get('title')} find"
    found = [
        (clean.get("truncated"), f"were cut at {longest} tokens: raise --max-new-tokens"),
        (
            0.0 if is_judged else reasons.get("no_answer"),
            f"have no {without}: --model.instruction tells a model how to answer",
        ),
    ]
    lines = [
        f"{100 * share:.0f} % of the responses to clean pictures {what}"
        for share, what in found
        if isinstance(share, int | float) and share >= WORTH_SAYING
    ]
    for name, entry in card.get("threats", {}).items():
        share = entry.get("empty_hints")
        if isinstance(share, int | float) and share > 0:
            lines.append(f"{100 * share:.0f} % of the hints of {name} name no answer: of a free text no other is made")
    data, num_rows = card.get("data", {}), benchmark.get("num_rows")
    num, num_bad = data.get("num_problems"), data.get("num_bad") or 0
    if isinstance(num, int) and isinstance(num_rows, int) and num + num_bad < num_rows:
        lines.append(
            f"only {num} of the {num_rows} problems of {benchmark.get('title')} were asked: its own figures are over "
            f"all of them (--num-problems {num_rows})"
        )
    return lines
