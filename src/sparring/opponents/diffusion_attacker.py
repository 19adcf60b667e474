"""An image editor as an attacker: it is asked for a distractor, and what it makes has to pass the integrity gate.

AOT's own attacker is of this kind (arXiv 2602.22227). It is trained as the one that writes programs is: R = g e, the
gate times the share of the defender's answers that are wrong, with Flow-GRPO (:mod:`sparring.opponents.diffusion`) in
place of GRPO.

An editor works behind an autoencoder, so it changes every pixel, and SSIM on the boxes would measure that. The
original's pixels are put back into the boxes before anything is judged or shown: what the question needs is then what
it was, but for what an editor grows into a box's margin, which the gate still sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparring.opponents.attacker import OK, Attack, attacked_image, judged, target_boxes
from sparring.opponents.diffusion import DiffusionEditor, FlowGRPO, Trajectories, distractor_prompt
from sparring.opponents.integrity import GateConfig
from sparring.rollout.collect import reward_metrics
from sparring.seeding import derive_seed
from sparring.types import Metrics, Problem, Reward

Pay = Callable[[Sequence[Sequence[Attack]]], Sequence[Sequence[Reward]]]
"""From groups of attacks, one per problem, to what each is paid (``probing.attack_rewards``)."""


class DiffusionAttacker:
    """An editor that attacks, in one process.

    Args:
        trainer: the editor with its optimizer.
        gate: what must be left of the objects that a question needs.
    """

    def __init__(self, trainer: FlowGRPO, gate: GateConfig, name: str = "editor") -> None:
        self.trainer = trainer
        self.gate = gate
        self.name = name

    @property
    def editor(self) -> DiffusionEditor:
        return self.trainer.editor

    def attack(self, problems: Sequence[Problem], seeds: Sequence[int], num_attacks: int) -> list[tuple[Attack, ...]]:
        """As of any ``Attacker``."""
        size = self.editor.config.batch_size
        attacks = []
        for problem, seed in zip(problems, seeds, strict=True):
            own = [derive_seed(seed, number) for number in range(num_attacks)]
            made: list[Attack] = []
            for start in range(0, num_attacks, size):
                part = own[start : start + size]
                image, prompt = problem.images[attacked_image(problem)], _prompt(problem)
                made += self._judged(problem, self.editor.edit([image] * len(part), [prompt] * len(part), part), part)
            attacks.append(tuple(made))
        return attacks

    def step(
        self, problems: Sequence[Problem], seeds: Sequence[int], pay: Pay
    ) -> tuple[Metrics, list[tuple[Attack, ...]]]:
        """``group_size`` edits of each problem's picture, paid, and the optimizer steps on them.

        Returns what ``FlowGRPO.update`` does with means of the rewards (``collect.reward_metrics``), and the attacks.
        """
        images = [problem.images[attacked_image(problem)] for problem in problems]
        batches = self.trainer.sample(images, [_prompt(problem) for problem in problems], seeds)
        group_size = self.trainer.config.group_size
        remaining = iter(batches)
        attacks = []
        for problem, seed in zip(problems, seeds, strict=True):
            own = [derive_seed(seed, number) for number in range(group_size)]
            attacks.append(tuple(self._of_group(problem, remaining, own)))
        rewards = [reward for own in pay(attacks) for reward in own]
        rewards_N = torch.tensor([reward.value for reward in rewards], dtype=torch.float32)
        return reward_metrics(rewards) | self.trainer.update(batches, rewards_N), attacks

    def _of_group(self, problem: Problem, batches: Iterator[Trajectories], seeds: Sequence[int]) -> list[Attack]:
        """The attacks of the next batches, as many as there are seeds."""
        made: list[Attack] = []
        while len(made) < len(seeds):
            batch = next(batches)
            made += self._judged(problem, batch, seeds[len(made) : len(made) + len(batch)])
        return made

    def _judged(self, problem: Problem, edits: Trajectories, seeds: Sequence[int]) -> list[Attack]:
        """An edit that failed has the editor's reason, any other the gate's."""
        # The mean over coordinates, as the ratio takes it; infinite states have none.
        logprobs_N = edits.logprobs_NS.sum(1).tolist()
        prompt = _prompt(problem)
        found = []
        for image, failure, seed, logprob in zip(edits.images, edits.failures, seeds, logprobs_N, strict=True):
            attack = Attack(
                problem, prompt, OK, None, seed, logprob if math.isfinite(logprob) else None, ("diffusion",)
            )
            if failure is not None:
                found.append(replace(attack, reason=failure))
            else:
                found.append(judged(attack, with_boxes_kept(problem, image), self.gate))
        return found


def with_boxes_kept(problem: Problem, edited: Tensor) -> Tensor:
    """The edited picture, uint8 (3, H, W), with the original's pixels in the boxes of what the question needs."""
    original = problem.images[attacked_image(problem)]
    if edited.shape != original.shape:
        return edited
    kept = edited.clone()
    height, width = original.shape[-2:]
    for box in target_boxes(problem):
        rows = slice(max(0, math.floor(box.top)), min(height, math.ceil(box.bottom)))
        columns = slice(max(0, math.floor(box.left)), min(width, math.ceil(box.right)))
        kept[:, rows, columns] = original[:, rows, columns]
    return kept


def _prompt(problem: Problem) -> str:
    return distractor_prompt(problem.question, [box.label for box in target_boxes(problem) if box.label])
