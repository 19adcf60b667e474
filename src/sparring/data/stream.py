"""The order in which training sees problems: shuffled passes over a data set, with a position that can be saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparring.seeding import derive_seed, generator
from sparring.types import Problem


class ProblemStream:
    """An endless stream over ``problems``; each pass is shuffled by (seed, number of the pass)."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        if not len(problems):
            raise ValueError("no problems to train on: check the data set")
        self.problems = problems
        self.seed = seed
        self.position = 0
        """Problems handed out since the beginning."""
        self._pass_number = -1
        self._order: list[int] = []

    def take(self, num: int) -> list[Problem]:
        """The next ``num`` problems."""
        taken = []
        for position in range(self.position, self.position + num):
            pass_number, place = divmod(position, len(self.problems))
            if pass_number != self._pass_number:
                shuffle = generator(derive_seed(self.seed, "pass", pass_number))
                self._order = torch.randperm(len(self.problems), generator=shuffle).tolist()
                self._pass_number = pass_number
            taken.append(self.problems[self._order[place]])
        self.position += num
        return taken

    def state_dict(self) -> dict[str, int]:
        """What ``load_state_dict`` needs to go on where this stream is."""
        return {"position": self.position, "num_problems": len(self.problems), "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position; ValueError if it belongs to other data."""
        if (state["num_problems"], state["seed"]) != (len(self.problems), self.seed):
            raise ValueError(
                f"the saved position is in {state['num_problems']} problems shuffled by seed {state['seed']}, this run "
                f"has {len(self.problems)} and seed {self.seed}: resume with the run's own config.json"
            )
        self.position = state["position"]
