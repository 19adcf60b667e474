"""The loop: step, log, validate, save, go on after an interruption. It knows players, but no method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparring import distributed
from sparring.checkpoint import load_latest, save_checkpoint
from sparring.data.stream import ProblemStream
from sparring.provenance import Interrupt, append_jsonl, read_jsonl, write_text
from sparring.types import Metrics
from sparring.update import NonFiniteLossError


class Trained(Protocol):
    """What the trainer needs of a player: of a policy with its optimizer (`update.Player`), or of an image editor."""

    def state_dict(self) -> dict[str, object]:
        """Weights, optimizer and position in a schedule; of several ranks, which must all call this, the main one's."""

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...

    def weights_to_save(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What ``save`` writes, given what ``state_dict`` gave; of several ranks all must call this."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights as others load them. Of several ranks the main one calls this."""


class Method(Protocol):
    """What the trainer needs of a method."""

    @property
    def players(self) -> Mapping[str, Trained]: ...

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts and the optimizer steps on it."""

    def state_dict(self) -> dict[str, object]:
        """What the method must remember beyond its players."""

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@dataclass(frozen=True)
class TrainerConfig:
    """When to look and to save."""

    validate_every: int = 20
    """Steps between validations, >= 1; the first is before training."""
    save_every: int = 20
    """Steps between checkpoints, >= 1; a finished, interrupted or best step is saved in any case."""
    keep_last: int = 2
    """Checkpoints kept, >= 1, beside the best one."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")


Validate = Callable[[], Metrics]
"""Metrics of the policy as it is; ``validation/score`` chooses the best checkpoint."""
OnStep = Callable[[int, Metrics], None]
"""Called with the number of finished steps and what was logged for the last one."""

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


class Trainer:
    """Runs a method in a folder. All it needs to go on later is in that folder."""

    def __init__(
        self,
        method: Method,
        stream: ProblemStream,
        config: TrainerConfig,
        folder: Path,
        validate: Validate,
        on_step: OnStep | None = None,
        *,
        num_steps: int,
    ) -> None:
        self.method = method
        self.stream = stream
        self.config = config
        self.folder = folder
        self.validate = validate
        self.on_step = on_step or (lambda step, metrics: None)
        self.num_steps = num_steps
        self.num_done = 0
        self.best_score = -1.0
        self.best_step = 0

    def resume(self) -> bool:
        """Go on from the folder's latest whole checkpoint; False if it has none, and the run starts over."""
        checkpoint = load_latest(self.folder / CHECKPOINTS)
        if checkpoint is None:
            self._forget_metrics_after(-1)
            return False
        state = checkpoint.state
        for name, player in self.method.players.items():
            player.load_state_dict(state["players"][name])
        self.method.load_state_dict(state["method"])
        self.stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["torch_rng"])
        self.num_done = state["num_done"]
        self.best_score, self.best_step = state["best_score"], state["best_step"]
        self._forget_metrics_after(self.num_done)
        return True

    def run(self) -> bool:
        """Train to the last step; False if Ctrl-C ended it early, after the step at hand was finished and saved.

        Raises NonFiniteLossError after saving what led to it under ``non-finite``.
        """
        if self.num_done == 0:
            self._validate()
        with Interrupt() as interrupt:
            while self.num_done < self.num_steps:
                self._step()
                is_last = self.num_done == self.num_steps
                is_best = False
                if self.num_done % self.config.validate_every == 0 or is_last:
                    is_best = self._validate()
                # Ctrl-C may reach the ranks between different steps.
                is_stopping = bool(distributed.all_reduce_max(int(interrupt.requested)))
                if is_best or is_last or is_stopping or self.num_done % self.config.save_every == 0:
                    self._save(is_best)
                if is_stopping and not is_last:
                    return False
        return True

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            metrics = self.method.step(self.stream, self.num_done)
        except NonFiniteLossError as error:
            self._save_post_mortem(error)
            raise
        self.num_done += 1
        record = {"step": self.num_done, **metrics, "seconds": time.perf_counter() - started}
        self._log(record)
        self.on_step(self.num_done, record)

    def _validate(self) -> bool:
        """Log validation metrics; whether they are the best so far."""
        metrics = self.validate()
        self._log({"step": self.num_done, **metrics})
        is_best = metrics["validation/score"] > self.best_score
        if is_best:
            self.best_score, self.best_step = metrics["validation/score"], self.num_done
        return is_best

    def _log(self, record: Metrics) -> None:
        if distributed.is_main():
            append_jsonl(self.folder / METRICS, record)

    def _save(self, is_best: bool) -> None:
        state: Mapping[str, Any] = {
            "players": {name: player.state_dict() for name, player in self.method.players.items()},
            "method": self.method.state_dict(),
            "stream": self.stream.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "num_done": self.num_done,
            "best_score": self.best_score,
            "best_step": self.best_step,
        }
        # All ranks gather what one of them saves.
        whole = {name: player.weights_to_save(state["players"][name]) for name, player in self.method.players.items()}
        if distributed.is_main():
            exporters = {
                name: partial(player.save, weights=whole[name]) for name, player in self.method.players.items()
            }
            save_checkpoint(
                self.folder / CHECKPOINTS,
                self.num_done,
                state,
                exporters,
                keep_last=self.config.keep_last,
                is_best=is_best,
            )
        distributed.barrier()

    def _forget_metrics_after(self, step: int) -> None:
        """Steps that were logged but not saved will be logged again."""
        path = self.folder / METRICS
        if not path.exists() or not distributed.is_main():
            return
        kept = [record for record in read_jsonl(path) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def _save_post_mortem(self, error: NonFiniteLossError) -> None:
        minibatch = error.minibatch
        state = {
            "constants": dict(minibatch.constants),
            "rollouts": [
                {
                    "problem": rollout.problem_id,
                    "view": rollout.view,
                    "text": rollout.text,
                    "token_ids": rollout.token_ids,
                    "sampler_logprobs": rollout.sampler_logprobs,
                }
                for group in minibatch.groups
                for rollout in group.rollouts
            ],
            "views": {
                group.problem.id: {name: list(view.images) for name, view in group.views.items()}
                for group in minibatch.groups
            },
        }
        if distributed.is_main():
            save_checkpoint(self.folder / "non-finite", self.num_done, state)
