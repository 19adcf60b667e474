"""A contact sheet: pictures with their questions and answers, for a person to judge."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sparring.types import Problem

_SCALE, _TEXT_HEIGHT, _GAP, _COLUMNS = 2, 92, 14, 5


def contact_sheet(problems: Sequence[Problem], *, with_boxes: bool = False) -> Image.Image:
    """Pictures at twice their size, five to a row; the question, answer, family and difficulty below each.

    Args:
        with_boxes: outline the objects that the answer depends on.
    """
    side = max(problem.images[0].shape[-1] for problem in problems) * _SCALE
    rows = -(-len(problems) // _COLUMNS)
    width, height = side + _GAP, side + _TEXT_HEIGHT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    for number, problem in enumerate(problems):
        left, top = _GAP + number % _COLUMNS * width, _GAP + number // _COLUMNS * height
        picture = Image.fromarray(problem.images[0].permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
        if with_boxes:
            for box in problem.boxes:
                corners = [left + box.left * _SCALE, top + box.top * _SCALE, left + box.right * _SCALE]
                draw.rectangle((*corners, top + box.bottom * _SCALE), outline="white")
        question = textwrap.wrap(problem.question, width=30)
        draw.multiline_text((left, top + side + 4), "\n".join(question), fill="black", font=font, spacing=2)
        line = top + side + 4 + 17 * len(question)
        draw.text((left, line), f"{problem.answer}", fill="#0a6b2d", font=font)
        note = f"{problem.family} · difficulty {problem.difficulty:.2f}"
        draw.text((left, line + 17), note, fill="#666666", font=small)
    return sheet
