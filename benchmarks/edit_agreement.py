"""Do edit programs do to pictures what they do to scenes? Every object of random scenes is recoloured, removed, moved.

    python benchmarks/edit_agreement.py [--scenes 100]

*Same object*: the middle of what the pixels' finder takes lies within 2.5 pixels of that of the thing that the edit
means on the scene; with and without the grain of a camera. *No object*: the finder has none there, which is noted.
*Same picture*: within the boxes of what the edit changes, the edited picture differs from the picture of the edited
scene by at most 8 grey levels in the mean, and by less than half of what the untouched picture does; without grain,
which hides faint objects from the comparison.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparring.data.scenes.world import SIZE, Scene, Thing, draw_scene, render
from sparring.opponents.edits import Language, Program, edited_scene, execute
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.objects import find_objects
from sparring.opponents.edits.program import PAINTS, Move, ObjectEdit, Recolour, Remove

GRAIN = 0.025
LEVELS, NEAR = 8.0, 2.5
LANGUAGE = Language()
CELLS = Cells(LANGUAGE.grid, SIZE, SIZE)


def edits_of(scene: Scene, rng: np.random.Generator) -> Iterator[ObjectEdit]:
    """A recolouring, a removal and a move to another cell for each cell with a thing."""
    for thing in scene.things:
        x, y = thing.column, thing.row
        yield Recolour(x, y, str(rng.choice([colour for colour in PAINTS if colour != thing.colour])))
        yield Remove(x, y)
        x2, y2 = (int(v) for v in rng.integers(LANGUAGE.grid, size=2))
        if (x2, y2) != (x, y):
            yield Move(x, y, x2, y2)


def meant(edit: ObjectEdit, scene: Scene) -> Thing:
    chosen = CELLS.nearest(edit.x, edit.y, [(thing.x, thing.y) for thing in scene.things])
    assert chosen is not None
    return scene.things[chosen]


def taken(edit: ObjectEdit, scene: Scene, picture: Tensor) -> Literal["same", "other", "none"]:
    """Which object of the picture the edit acts on: that which it means on the scene, another one, or none."""
    middles = [found.middle for found in find_objects(picture.permute(1, 2, 0).numpy())]
    chosen, thing = CELLS.nearest(edit.x, edit.y, middles), meant(edit, scene)
    if chosen is None:
        return "none"
    return "same" if math.dist(middles[chosen], (thing.x, thing.y)) <= NEAR else "other"


def is_same_picture(edit: ObjectEdit, scene: Scene, picture: Tensor) -> bool:
    program = Program((edit,))
    after = edited_scene(program, scene, LANGUAGE)
    is_touched = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for thing in {meant(edit, scene), *(set(scene.things) ^ set(after.things))}:
        box = thing.box
        is_touched[int(box.top) : math.ceil(box.bottom), int(box.left) : math.ceil(box.right)] = True
    wanted = render(after).float()
    edited = execute(program, picture, LANGUAGE, seed=0).image
    error, untouched = (float((image - wanted).abs()[:, is_touched].mean()) for image in (edited, picture))
    return error <= LEVELS and error < untouched / 2


def measure(difficulty: float, num_scenes: int, seed: int) -> dict[str, dict[str, float]]:
    """By kind: the number of edits, and shares of them."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[bool, ...]]] = {}
    for _ in range(num_scenes):
        scene = draw_scene(rng, difficulty=difficulty)
        clear, grainy = render(scene), render(scene, grain=GRAIN)
        for edit in edits_of(scene, rng):
            without, with_grain = taken(edit, scene, clear), taken(edit, scene, grainy)
            same = without == "same", with_grain == "same"
            row = (*same, with_grain == "none", is_same_picture(edit, scene, clear))
            rows.setdefault(edit.kind, []).append(row)
    names = "same object", "same object, grain", "no object, grain", "same picture"
    return {
        kind: {"edits": len(found), **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))}
        for kind, found in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100, help="scenes of each difficulty")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| difficulty | edit | edits | same object | same object, grain | no object, grain | same picture |")
    print("|---|---|---|---|---|---|---|")
    for difficulty in (0.0, 0.5, 1.0):
        for kind, row in measure(difficulty, arguments.scenes, arguments.seed).items():
            shares = " | ".join(f"{100 * share:.1f} %" for name, share in row.items() if name != "edits")
            print(f"| {difficulty} | {kind} | {row['edits']} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
