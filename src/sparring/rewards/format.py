"""The response format that EasyR1 and the methods built on it reward: a thinking block, a boxed answer, the end.

Source: EasyR1 ``examples/reward_function/math.py``, ``format_reward``. Deviations, all stricter: there must be exactly
one thinking block and it must open the response; there must be exactly one box behind it, not empty, and nothing but
white space, a period or a closing math delimiter may follow; a response cut off by the length limit is never well
formed. EasyR1's pattern accepts any text around and between.
"""

from __future__ import annotations

import re
from typing import Literal

from sparring.boxed import BOX, last_box
from sparring.rewards.answer import THINK_CLOSE, THINK_OPEN, final_part
from sparring.types import FinishReason

FormatReason = Literal[
    "ok", "truncated", "no_think", "several_thinks", "text_before_think", "no_box", "several_boxes", "text_after_box"
]

_CLOSING = re.compile(r"(?:[\s.$*]|\\[)\]])*")


def check_format(text: str, finish_reason: FinishReason) -> FormatReason:
    """``ok``, or the first thing that is wrong with the format of a response."""
    if finish_reason == "length":
        return "truncated"
    opens, closes = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    if opens == 0 or closes == 0 or text.find(THINK_CLOSE) < text.find(THINK_OPEN):
        return "no_think"
    if opens > 1 or closes > 1:
        return "several_thinks"
    if not text.lstrip().startswith(THINK_OPEN):
        return "text_before_think"
    final = final_part(text)
    box = last_box(final)
    if box is None or box[1] < 0 or not final[box[0] : box[1]].strip():
        return "no_box"
    if final.count(BOX) > 1:
        return "several_boxes"
    return "ok" if _CLOSING.fullmatch(final, box[1] + 1) else "text_after_box"
