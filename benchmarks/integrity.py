"""What the integrity gate lets through and what it refuses, on edits of generated scenes whose effect is known.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/integrity.py [--split validation] [--problems 200] [--seed 0]

Scenes under questions about relations and attributes are changed and drawn again, with their texture and grain: other
objects changed (harmless), a target broken, a target copied. Every edit is measured once with a gate that refuses
nothing; the tables apply thresholds to that.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparring.data.scenes import SPLITS, SceneConfig, SceneProblems
from sparring.data.scenes.questions import Question
from sparring.data.scenes.world import COLOURS, SHAPES, SIZE, Scene, Thing, render
from sparring.evaluation.statistics import wilson_interval
from sparring.opponents.integrity import GateConfig, Verdict, judge_edit, names_target
from sparring.seeding import derive_seed

KINDS = {
    "harmless": ("other removed", "other recoloured", "other added", "other added, then JPEG 90"),
    "broken": ("target recoloured", "target moved", "target removed", "target half covered"),
    "copied": ("exact copy", "smaller copy"),
}
TRIES = 200

Found = Sequence[tuple[str, float, Verdict]]
"""(kind of edit, difficulty of the scene, what was measured)."""


@dataclass(frozen=True)
class Case:
    """A scene with a question, and the random numbers of its edits."""

    scene: Scene
    question: Question
    rng: np.random.Generator

    @property
    def target(self) -> Thing:
        return self.question.things[0]

    @property
    def others(self) -> list[Thing]:
        return [thing for thing in self.scene.things if thing not in self.question.things]

    def is_rival(self, colour: str, shape: str) -> bool:
        boxes = [thing.box for thing in self.question.things]
        return names_target((colour, shape), self.question.text, boxes)

    def harmless_kind(self) -> tuple[str, str]:
        while True:
            colour, shape = str(self.rng.choice(list(COLOURS))), str(self.rng.choice(SHAPES))
            if not self.is_rival(colour, shape):
                return colour, shape

    def painted(self, colour: str) -> tuple[float, float, float]:
        """The colour, as faded as the target's is."""
        base, full = np.asarray(self.scene.base_rgb), np.asarray(COLOURS[colour])
        contrast = np.linalg.norm(np.asarray(self.target.rgb) - base)
        contrast /= np.linalg.norm(np.asarray(COLOURS[self.target.colour]) - base)
        red, green, blue = base + min(1.0, contrast) * (full - base)
        return float(red), float(green), float(blue)

    def placed(self, thing: Thing) -> Thing | None:
        """The object where there is room for it, None if none was found."""
        for _ in range(TRIES):
            x, y = self.rng.uniform(thing.radius + 1, SIZE - thing.radius - 1, size=2)
            if all(math.hypot(x - t.x, y - t.y) >= 1.25 * (thing.radius + t.radius) + 3 for t in self.scene.things):
                return replace(thing, x=float(x), y=float(y))
        return None

    def with_one_more(self, thing: Thing) -> Scene | None:
        there = self.placed(thing)
        return replace(self.scene, things=(*self.scene.things, there)) if there else None

    def without(self, thing: Thing) -> Scene:
        return replace(self.scene, things=tuple(t for t in self.scene.things if t is not thing))

    def swapped(self, old: Thing, new: Thing) -> Scene:
        return replace(self.scene, things=tuple(new if t is old else t for t in self.scene.things))


def edited_scene(case: Case, kind: str) -> Scene | None:
    """The scene after an edit, None if this scene does not allow it."""
    target, rng = case.target, case.rng
    other_colour = str(rng.choice([colour for colour in COLOURS if colour != target.colour]))
    match kind:
        case "other removed":
            return case.without(case.others[0]) if case.others else None
        case "other recoloured":
            found = [(t, c) for t in case.others for c in COLOURS if c != t.colour and not case.is_rival(c, t.shape)]
            if not found:
                return None
            other, colour = found[int(rng.integers(len(found)))]
            return case.swapped(other, replace(other, colour=colour, rgb=case.painted(colour)))
        case "other added" | "other added, then JPEG 90":
            colour, shape = case.harmless_kind()
            radius = target.radius * float(rng.uniform(0.7, 1.4))
            more = replace(target, colour=colour, shape=shape, radius=radius, rgb=case.painted(colour))
            return case.with_one_more(more)
        case "target recoloured":
            return case.swapped(target, replace(target, colour=other_colour, rgb=case.painted(other_colour)))
        case "target moved":
            there = case.placed(target)
            return case.swapped(target, there) if there else None
        case "target removed":
            return case.without(target)
        case "target half covered":
            side = target.radius / 0.82
            x = target.x + target.radius * (1 if target.x < SIZE / 2 else -1)
            colour = case.painted(other_colour)
            cover = replace(target, shape="square", colour=other_colour, rgb=colour, x=x, radius=side, angle=0.0)
            return replace(case.scene, things=(*case.scene.things, cover))
        case "exact copy":
            return case.with_one_more(target)
        case "smaller copy":
            return case.with_one_more(replace(target, radius=target.radius * float(rng.uniform(0.6, 0.9))))
    raise ValueError(f"unknown kind {kind!r}")


def through_jpeg(picture: Tensor) -> Tensor:
    stored = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=90)
    return torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1)


def measured(problems: SceneProblems, seed: int) -> Iterator[tuple[str, float, Verdict]]:
    """(kind of edit, difficulty, what an all-forgiving gate measured)."""
    forgiving = replace(GateConfig(), min_ssim=-1.0, max_changed_share=1.0, max_mean_change=1.0, duplicate_match=1.0)
    grain = problems.config.grain
    for index in range(len(problems)):
        scene, question = problems.asked(index)
        if not question.things:
            continue
        original, boxes = render(scene, grain=grain), [thing.box for thing in question.things]
        for kind in (kind for kinds in KINDS.values() for kind in kinds):
            rng = np.random.default_rng(derive_seed(seed, index, kind))
            changed = edited_scene(Case(scene, question, rng), kind)
            if changed is None:
                continue
            picture = render(changed, grain=grain)
            if kind.endswith("JPEG 90"):
                picture = through_jpeg(picture)
            yield kind, scene.difficulty, judge_edit(original, picture, boxes, forgiving)


def print_sweep(
    found: Found, kinds: Sequence[str], name: str, thresholds: Sequence[float], passes: Callable[[Verdict, float], bool]
) -> None:
    """Shares in percent of each kind that one threshold alone lets through."""
    verdicts = {kind: [verdict for known, _, verdict in found if known == kind] for kind in kinds}
    print(f"\nlet through by `{name}` alone, %\n")
    print(f"| `{name}` | {' | '.join(f'{kind} ({len(each)})' for kind, each in verdicts.items())} |")
    print("|---" * (1 + len(kinds)) + "|")
    for threshold in thresholds:
        shares = [100 * np.mean([passes(v, threshold) for v in each]) if each else None for each in verdicts.values()]
        cells = ["" if share is None else f"{share:.1f}" for share in shares]
        print(f"| {threshold:.2f} | {' | '.join(cells)} |")


def print_whole_gate(found: Found, gate: GateConfig) -> None:
    """Shares in percent that the whole gate lets through, easy and hard scenes apart, with 95 % intervals."""
    print(f"\nlet through by {gate}, %\n\n| edit | difficulty below 0.5 | from 0.5 on |\n|---|---|---|")
    for group, kinds in KINDS.items():
        for kind in kinds:
            cells = []
            for is_hard in (False, True):
                passed = [
                    is_let_through(v, gate)
                    for known, hardness, v in found
                    if (known, hardness >= 0.5) == (kind, is_hard)
                ]
                rate = wilson_interval(sum(passed), len(passed)) if passed else None
                cells.append(f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate else "")
            print(f"| {group}: {kind} | {' | '.join(cells)} |")


def is_let_through(verdict: Verdict, gate: GateConfig) -> bool:
    return (
        verdict.ssim >= gate.min_ssim
        and verdict.changed_share <= gate.max_changed_share
        and verdict.mean_change <= gate.max_mean_change
        and verdict.duplicate < gate.duplicate_match
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the edits; the scenes' is 0")
    parser.add_argument("--grain", type=float, default=SceneConfig().grain, help="of the scenes' camera, 0 to 1")
    options = parser.parse_args()
    config = SceneConfig(families=("relation", "attribute"), easiest=0.0, grain=options.grain)
    found = list(measured(SceneProblems(options.split, options.problems, config), options.seed))
    print(f"{options.problems} problems of {options.split}, difficulty 0 to 1, {config.grain=}, seed {options.seed}")
    kinds, taus = (*KINDS["harmless"], *KINDS["broken"]), [level / 100 for level in range(30, 100, 5)]
    print_sweep(found, kinds, "min_ssim", taus, lambda verdict, least: verdict.ssim >= least)
    kinds, matches = (*KINDS["harmless"], *KINDS["copied"]), [*(level / 100 for level in range(60, 95, 5)), 0.95, 0.98]
    print_sweep(found, kinds, "duplicate_match", matches, lambda verdict, match: verdict.duplicate < match)
    print_whole_gate(found, GateConfig())
    for name in ("changed_share", "mean_change"):
        values = [getattr(verdict, name) for kind, _, verdict in found if kind in KINDS["harmless"]]
        print(f"\n`{name}` of harmless edits: median {np.median(values):.4f}, most {max(values):.4f}")


if __name__ == "__main__":
    main()
