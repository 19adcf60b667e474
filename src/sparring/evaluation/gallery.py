"""A few problems to look at: clean and threatened picture, both responses, entropy of each token, rewards with reasons.

``gallery.jsonl`` has one line per example, beside it lie the pictures as PNG files. Responses are made again, so that
picture, response and entropies of an example belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import distributed
from sparring.evaluation.suite import Outcome, Suite
from sparring.evaluation.threats import CLEAN, Threat
from sparring.perturb.corruptions.filters import to_pillow
from sparring.provenance import append_jsonl
from sparring.scoring import score
from sparring.types import Group, Problem, Rollout, View

GALLERY, INDEX = "gallery", "gallery.jsonl"
AMPLIFIED = 8.0
"""Factor of a difference of pictures, around mid-grey."""


def choose(outcomes: Sequence[Outcome], threats: Sequence[Threat], num: int) -> dict[str, list[str]]:
    """For each threat the ids of up to ``num`` problems that show best what it does.

    First those that were right on the clean picture and are wrong now, then those that turned right, then the rest in
    order. A corruption is shown at the severity that turned most answers wrong, ``clean`` not at all.
    """
    right: dict[str, dict[str, bool]] = {}
    for outcome in outcomes:
        if outcome.sample == 0:
            right.setdefault(outcome.threat, {})[outcome.problem_id] = outcome.is_correct
    fallen = {t.name: sum(right["clean"][p] and not ok for p, ok in right[t.name].items()) for t in threats}
    # Sorted by how many fell: of one corruption, the severity that comes last stays.
    by_effect = sorted((t for t in threats if t != CLEAN), key=lambda threat: fallen[threat.name])
    shown = {(t.corruption, t.edit, t.edit_severity) if t.severity else t.name: t.name for t in by_effect}
    chosen = {}
    for threat in threats:
        if threat.name in shown.values():
            own = right[threat.name]
            rank = {problem: (own[problem], not right["clean"][problem]) for problem in own}
            order = {(False, False): 0, (True, True): 1, (True, False): 2, (False, True): 3}
            chosen[threat.name] = sorted(own, key=lambda problem: order[rank[problem]])[:num]
    return chosen


def write_gallery(
    suite: Suite,
    problems: Sequence[Problem],
    chosen: Mapping[str, Sequence[str]],
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the examples that ``choose`` chose into ``folder``, in place of those that are there.

    Args:
        on_progress: called with the number of examples that are done and that of all.
    """
    by_id = _by_id(problems, {problem for ids in chosen.values() for problem in ids})
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (folder / INDEX, *folder.glob("*.png")):
            old.unlink(missing_ok=True)
    report = on_progress or (lambda num_done, total: None)
    num_done, total = 0, sum(map(len, chosen.values()))
    report(num_done, total)
    for threat in suite.threats:
        own = [by_id[name] for name in chosen.get(threat.name, ())]
        if own:
            _write_examples(suite, own, threat, folder)
            num_done += len(own)
            report(num_done, total)


def _by_id(problems: Sequence[Problem], wanted: Collection[str]) -> dict[str, Problem]:
    """The problems of these ids; no more of them are read than it takes."""
    found: dict[str, Problem] = {}
    for index in range(len(problems)):
        if len(found) == len(wanted):
            break
        problem = problems[index]
        if problem.id in wanted:
            found[problem.id] = problem
    return found


def _write_examples(suite: Suite, problems: Sequence[Problem], threat: Threat, folder: Path) -> None:
    clean: dict[str, Group] = {}
    before = suite.respond(problems, CLEAN, clean)
    after = suite.respond(problems, threat, clean)
    tokens = [_tokens(suite, groups) for groups in (before, after)]
    for number, problem in enumerate(problems):
        sides = [(groups[number], of[number]) for groups, of in zip((before, after), tokens, strict=True)]
        if distributed.is_main():
            add_example(folder, threat.name, problem, sides)


def add_answers(folder: Path, groups: Sequence[Group], titles: Sequence[Sequence[str]], heading: str) -> None:
    """Add an example for each group to a gallery that ``write_gallery`` wrote: all its responses to the clean picture
    beside each other.

    Args:
        titles: for each group those of its responses.
        heading: of these examples, where others have the name of a threat.
    """
    if not distributed.is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for group, own in zip(groups, titles, strict=True):
        file = f"{sum(1 for _ in folder.glob('*-clean.png')):03d}-clean.png"
        to_pillow(_side_by_side(group.views[CLEAN.name])).save(folder / file)
        answers = [{"title": title, **_answer(rollout)} for title, rollout in zip(own, group.rollouts, strict=True)]
        problem = group.problem
        append_jsonl(
            folder / INDEX,
            {
                "problem_id": problem.id,
                "question": problem.question,
                "truth": problem.answer,
                "threat": heading,
                "clean": {"image": file},
                "answers": answers,
            },
        )


def _answer(rollout: Rollout) -> dict[str, Any]:
    """Text and reward of a graded response."""
    assert rollout.reward is not None
    reward = {name: _plain(getattr(rollout.reward, name)) for name in ("value", "parts", "reasons")}
    return {"text": rollout.text, "reward": reward}


def add_example(
    folder: Path,
    heading: str,
    problem: Problem,
    sides: Sequence[tuple[Group, list[list[Any]] | None]],
    note: str = "",
) -> None:
    """Add an example to a gallery: a problem as it is and as a threat shows it, each with one graded response.

    Args:
        heading: the name of the threat.
        sides: before and after, each a group and the tokens of its response with their entropies in nats, or None.
        note: what else there is to say of it.
    """
    number = sum(1 for _ in folder.glob("*-clean.png"))
    records, pictures = [], []
    for label, (group, tokens) in zip(("clean", "shown"), sides, strict=True):
        rollout, picture = group.rollouts[0], _side_by_side(_view(group))
        file = f"{number:03d}-{label}.png"
        to_pillow(picture).save(folder / file)
        pictures.append(picture)
        records.append({"image": file, "tokens": tokens, **_answer(rollout)})
    clean, shown = records
    difference = None
    if not torch.equal(*pictures):
        difference = f"{number:03d}-diff.png"
        to_pillow(0.5 + AMPLIFIED * (pictures[1] - pictures[0])).save(folder / difference)
    example = {
        "problem_id": problem.id,
        "question": problem.question,
        "truth": problem.answer,
        "threat": heading,
        "note": note,
        "clean": clean,
        "shown": shown | {"question": sides[1][0].problem.question},
        "difference": difference,
        "amplified": AMPLIFIED,
    }
    append_jsonl(folder / INDEX, example)


def _tokens(suite: Suite, groups: Sequence[Group]) -> list[list[list[Any]] | None]:
    """For each group the tokens of its first response, each with its text and its entropy in nats; None if unknown."""
    policy = suite.subject.policy
    if policy is None:
        return [None] * len(groups)
    # Under one name, as a group that an attack left alone keeps its clean view.
    first = [Group(g.problem, {"shown": _view(g)}, g.rollouts[:1]) for g in groups]
    scored = score(
        policy,
        first,
        view="shown",
        temperature=suite.sampling.temperature,
        with_entropy=True,
        token_budget=suite.token_budget,
    )
    assert scored.entropy_T is not None
    lengths = [group.rollouts[0].token_ids.numel() for group in first]
    found: list[list[list[Any]] | None] = []
    for group, entropies in zip(first, scored.entropy_T.split(lengths), strict=True):
        ids = group.rollouts[0].token_ids.tolist()
        found.append(
            [[policy.processor.decode([i]), round(e, 4)] for i, e in zip(ids, entropies.tolist(), strict=True)]
        )
    return found


def _view(group: Group) -> View:
    """The view that a group's responses were made on."""
    return group.views[group.rollouts[0].view]


def _side_by_side(view: View) -> Tensor:
    """All pictures of a view in one, of the height of the highest, on white."""
    height = max(image.shape[-2] for image in view.images)
    padded = [F.pad(image, (0, 0, 0, height - image.shape[-2]), value=1.0) for image in view.images]
    return torch.cat(padded, dim=-1).cpu()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
