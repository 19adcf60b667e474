"""A batch of problems through all stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sparring.data.scenes.oracle import still_holds
from sparring.opponents.attacker import attacked_image, executed
from sparring.opponents.edits import Program
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.executor import added
from sparring.opponents.edits.program import Add
from sparring.opponents.integrity import judge_edit
from sparring.pipelines.aot_sft.asking import REFUSED, Ask, shares_right
from sparring.pipelines.aot_sft.checks import ask_about, box_fault, fault_of, prompt_fault
from sparring.pipelines.aot_sft.extending import Extender, unusable
from sparring.pipelines.aot_sft.proposals import Proposer, program_of
from sparring.pipelines.aot_sft.values import KEPT, Candidate, Extended, Painter, Proposal, StagesConfig
from sparring.pipelines.teaching import Teacher
from sparring.rewards import Grader
from sparring.seeding import derive_seed
from sparring.types import Problem


@dataclass(frozen=True, eq=False)
class Stages:
    """What each stage is done with."""

    config: StagesConfig
    extender: Extender
    proposer: Proposer
    base: Teacher
    """The model that is to be misled."""
    grader: Grader
    """Of its answers."""
    seed: int
    """Of the run."""
    painter: Painter | None = None
    """Who paints distractors; None draws them by edit programs."""
    checker: Teacher | None = None
    """Who is asked about extended pictures; None leaves it at rules."""

    def run(self, problems: Sequence[Problem]) -> list[Candidate]:
        """What came of each problem: the problem itself, dropped, or ``num_proposals`` candidates; in order."""
        extended, dropped = self._extend(problems)
        going, more = self._check(extended)
        dropped += more
        candidates = [
            self._implant(one, number, proposal)
            for one, proposed in zip(going, self.proposer([one.problem for one in going]) if going else [], strict=True)
            for number, proposal in enumerate(proposed)
        ]
        order = {problem.id: place for place, problem in enumerate(problems)}
        return sorted([*dropped, *self._probe(candidates)], key=lambda one: (order[one.problem.id], one.number or 0))

    def _extend(self, problems: Sequence[Problem]) -> tuple[list[Extended], list[Candidate]]:
        going, dropped = [], []
        for problem in problems:
            found: Extended | str | None = unusable(problem, self.config)
            found = found or self.extender(problem, derive_seed(self.seed, problem.id, "extend"))
            if isinstance(found, str):
                dropped.append(Candidate(problem, "extend", found))
            else:
                going.append(found)
        return going, dropped

    def _check(self, extended: Sequence[Extended]) -> tuple[list[Extended], list[Candidate]]:
        faults = {one.problem.id: fault_of(one) for one in extended}
        if self.checker is not None:
            clean = [one for one in extended if faults[one.problem.id] is None]
            said = ask_about(self.checker, clean, derive_seed(self.seed, "check")) if clean else []
            faults |= {one.problem.id: fault for one, fault in zip(clean, said, strict=True)}
        dropped = [
            Candidate(one.problem, "check", why) for one in extended if (why := faults[one.problem.id]) is not None
        ]
        return [one for one in extended if faults[one.problem.id] is None], dropped

    def _implant(self, extended: Extended, number: int, proposal: Proposal | str) -> Candidate:
        """A proposal up to its manipulated picture; the reason is empty where the base model has the last word."""
        problem, config = extended.problem, self.config
        if isinstance(proposal, str):
            return Candidate(problem, "propose", proposal, number)
        found = Candidate(problem, "box", "", number, proposal)
        if fault := box_fault(proposal, problem, config):
            return replace(found, reason=fault)
        if fault := prompt_fault(proposal, problem):
            return replace(found, stage="prompt", reason=fault)
        if self.painter is not None:
            return self._painted(found, self.painter)
        add = program_of(proposal, problem, config.editor.language)
        if add is None:
            return replace(found, stage="implant", reason="cannot_draw")
        found = replace(found, program=str(Program((add,))), holds=self._holds(extended, add))
        seed = derive_seed(self.seed, problem.id, number, "implant")
        attack = executed(problem, str(found.program), config.editor, seed=seed)
        if not attack.is_fair:
            return replace(found, stage="implant", reason=attack.reason)
        return replace(found, stage="probe", edited=attack.edited)

    def _painted(self, found: Candidate, painter: Painter) -> Candidate:
        """The candidate with its box painted from its words by a model, if the gate lets that pass."""
        problem, proposal = found.problem, found.proposal
        assert proposal is not None and found.number is not None, "only proposals are painted"
        place, box = attacked_image(problem), proposal.box
        original = problem.images[place]
        is_new = torch.zeros(original.shape[1:], dtype=torch.bool)
        is_new[math.floor(box.top) : math.ceil(box.bottom), math.floor(box.left) : math.ceil(box.right)] = True
        seed = derive_seed(self.seed, problem.id, found.number, "implant")
        image = painter(original, is_new, proposal.description, seed)
        if image.equal(original):
            return replace(found, stage="implant", reason="unchanged")
        targets = [target for target in problem.boxes if target.image == place]
        verdict = judge_edit(original, image, targets, self.config.editor.gate)
        if not verdict.is_fair:
            return replace(found, stage="implant", reason=verdict.reason)
        images = (*problem.images[:place], image, *problem.images[place + 1 :])
        return replace(found, stage="probe", edited=replace(problem, images=images))

    def _holds(self, extended: Extended, add: Add) -> bool | None:
        """Whether the answer is right for the scene with one more object; None where nobody knows the scene."""
        if extended.scene is None or extended.question is None:
            return None
        height, width = extended.problem.images[attacked_image(extended.problem)].shape[1:]
        thing = added(add, Cells(self.config.editor.language.grid, width, height))
        return still_holds(replace(extended.scene, things=(*extended.scene.things, thing)), extended.question)

    def _probe(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All candidates, those that came so far with what the base model makes of them."""
        config = self.config
        probed = [one for one in candidates if not one.reason]
        clean = list({one.problem.id: one.problem for one in probed}.values())
        asks = [
            Ask(problem, config.num_draws, derive_seed(self.seed, problem.id, purpose), problem.id)
            for purpose in ("before", "control")
            for problem in clean
        ]
        for one in probed:
            assert one.edited is not None, "only what was painted is probed"
            seed = derive_seed(self.seed, one.id, "after")
            asks.append(Ask(one.edited, config.num_draws, seed, one.problem.id))
        shares = shares_right(self.base, self.grader, asks) if asks else []
        before, control = (
            dict(zip((problem.id for problem in clean), part, strict=True))
            for part in (shares[: len(clean)], shares[len(clean) : 2 * len(clean)])
        )
        after = dict(zip((one.id for one in probed), shares[2 * len(clean) :], strict=True))
        return [
            one if one.reason else self._judged(one, before[one.problem.id], control[one.problem.id], after[one.id])
            for one in candidates
        ]

    def _judged(self, one: Candidate, before: float | None, control: float | None, after: float | None) -> Candidate:
        one = replace(one, before=before, control=control, after=after)
        if before is None or control is None or after is None:
            return replace(one, reason=REFUSED)
        if before < self.config.right_before:
            return replace(one, reason="wrong_on_clean")
        return replace(one, reason=KEPT if after <= self.config.right_after else "useless")
