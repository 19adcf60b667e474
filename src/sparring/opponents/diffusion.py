"""AOT's attacker (arXiv 2602.22227): an image editor that is trained by Flow-GRPO to mislead a model.

One step, with a reward of your own::

    editor = DiffusionEditor(pipeline, QWEN_IMAGE_EDIT)        # a loaded diffusers pipeline
    trainer = FlowGRPO(editor)
    batches = trainer.sample(pictures, prompts, seeds)         # group_size edits of each picture
    rewards_N = ...                                            # of all edits, batches end to end
    metrics = trainer.update(batches, rewards_N)

Sampling keeps every state of every trajectory. Training scores these again, one denoising step of one batch at a time,
with gradient to the adapters; without adapters the same network is the untrained editor of the KL term.

An edit that failed (states that are not finite, a picture of one colour) is data: it has a reason in ``failures``, and
whoever pays rewards refuses it. It never raises.

Letters: ``N`` trajectories, ``S`` denoising steps, ``L`` latent tokens, ``C`` numbers per token, ``P`` groups.
Deviations from the official code are listed in docs/methods/aot_diffusion.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.models.peft import adapter_weights, inject_adapters, load_adapter_weights, without_adapters
from sparring.objective import importance_ratio_T, is_clipped_T
from sparring.opponents.editors.diffusers import Condition, editor_of
from sparring.opponents.flow_grpo import (
    FlowGRPOConfig,
    Sampling,
    sde_step,
    step_kl_N,
    step_logprob_N,
    step_loss_N,
    trajectory_advantages_N,
)
from sparring.seeding import derive_seed, generator
from sparring.types import Metrics

Failure = Literal["not_finite", "one_colour"]


def distractor_prompt(question: str, objects: Sequence[str] = ()) -> str:
    """What the editor is asked for; the idea is AOT's, the words are ours.

    Args:
        objects: names of what the answer depends on, which must stay as it is.
    """
    untouched = f" Do not change, move, cover or copy these: {', '.join(objects)}." if objects else ""
    return (
        "Add one believable object to this picture that misleads a model which answers the question below. Take the "
        f"idea for the object from the question.{untouched} The right answer must stay right. Leave everything else as "
        f"it is.\nQuestion: {question.strip()}"
    )


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Edits of one size that were sampled in one batch, with all that training needs."""

    images: tuple[Tensor, ...]
    """Each uint8, (3, H, W), the size of the picture that was edited; black where states were not finite."""
    failures: tuple[Failure | None, ...]
    """Why an edit is to be refused, or None."""
    latents_NSLC: Tensor
    """float32 (N, S + 1, L, C): states from noise to picture."""
    logprobs_NS: Tensor
    """float32 (N, S − 1): of the steps that are trained, under the editor that sampled; (N, 0) at noise level 0."""
    times: tuple[float, ...]
    """S + 1 times from 1 to 0."""
    condition: Condition
    """The encoded pictures and prompts."""
    sampling: Sampling
    """How they were sampled, and are scored again."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_finite_N(self) -> Tensor:
        """bool (N,): whose states can be scored."""
        return torch.tensor([failure != "not_finite" for failure in self.failures], device=self.latents_NSLC.device)


class DiffusionEditor:
    """A Qwen-Image-Edit or FLUX.1-Kontext pipeline with adapters, as a policy over edits.

    The pipeline's transformer is frozen and changed in place. Adapters are float32, whatever the transformer is.

    Raises UserError for another pipeline.
    """

    def __init__(self, pipeline: object, config: FlowGRPOConfig) -> None:
        self.config = config
        self.parts = editor_of(pipeline)
        transformer = self.parts.transformer.requires_grad_(False).eval()
        inject_adapters(transformer, self.parts.targets, rank=config.lora_rank, alpha=config.lora_alpha)
        self.trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()  # type: ignore[operator]

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[Tensor],
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
    ) -> Trajectories:
        """Edit pictures in one batch.

        Args:
            images: N pictures, each uint8 (3, H, W). The same tensor with the same prompt is encoded once.
            prompts: what to do with each.
            seeds: of each edit's noise, which does not depend on the rest of the batch.
            sampling: None for that of training.

        Raises ValueError if pictures would be edited at different sizes: give those of one shape.
        """
        sampling = sampling or self.config.sampling
        sizes = {self.parts.edit_size(image.shape[-2], image.shape[-1], sampling.resolution) for image in images}
        if len(sizes) != 1:
            raise ValueError(f"pictures of one batch would be edited at sizes {sorted(sizes)}: give those of one shape")
        height, width = sizes.pop()
        condition = self.parts.encode(images, prompts, height, width, is_guided=sampling.guidance > 1)
        generators = [generator(seed) for seed in seeds]
        first_NLC = self.parts.noise(generators, height, width)
        times = self.parts.times(sampling.num_steps, first_NLC.shape[1])
        states, logprobs = self._denoise(first_NLC, times, condition, generators, sampling)
        edited, failures = self._pictures(states[-1], height, width, images)
        return Trajectories(
            images=edited,
            failures=failures,
            latents_NSLC=torch.stack(states, dim=1),
            logprobs_NS=torch.stack(logprobs, dim=1) if logprobs else first_NLC.new_zeros(len(images), 0),
            times=tuple(times),
            condition=condition,
            sampling=sampling,
        )

    def _denoise(
        self,
        x_NLC: Tensor,
        times: Sequence[float],
        condition: Condition,
        generators: Sequence[torch.Generator],
        sampling: Sampling,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All states, and the log-probability of every step that has one."""
        states, logprobs = [x_NLC], []
        for step in range(sampling.num_steps):
            t, next_t = times[step], times[step + 1]
            is_last = step == sampling.num_steps - 1
            v_NLC = self.parts.velocity(x_NLC, t, condition, sampling.guidance)
            mean_NLC, std = sde_step(x_NLC, v_NLC, t, next_t, 0.0 if is_last else sampling.noise_level)
            x_NLC = mean_NLC
            if std:
                noise = torch.stack([torch.randn(mean_NLC.shape[1:], generator=one) for one in generators])
                x_NLC = mean_NLC + std * noise.to(mean_NLC.device)
                logprobs.append(step_logprob_N(x_NLC, mean_NLC, std))
            states.append(x_NLC)
        return states, logprobs

    def _pictures(
        self, x_NLC: Tensor, height: int, width: int, sources: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Failure | None, ...]]:
        images: list[Tensor] = []
        failures: list[Failure | None] = []
        for pixels, source in zip(self.parts.decode(x_NLC, height, width), sources, strict=True):
            if not (torch.isfinite(pixels).all() and torch.isfinite(x_NLC[len(images)]).all()):
                images.append(torch.zeros_like(source, device="cpu"))
                failures.append("not_finite")
                continue
            if pixels.shape != source.shape:
                size = (source.shape[-2], source.shape[-1])
                pixels = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
            images.append((pixels * 255).round().to("cpu", torch.uint8))
            failures.append("one_colour" if bool((images[-1] == images[-1][:, :1, :1]).all()) else None)
        return tuple(images), tuple(failures)

    def rescore_step(
        self, trajectories: Trajectories, step: int, *, with_kl: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of one step of the trajectories whose states are finite, with gradient to the adapters.

        Returns:
            float32 (n,), and with ``with_kl`` the KL to the editor without adapters, (n,), with gradient as well.
        """
        is_finite_N = trajectories.is_finite_N
        x_NLC, next_NLC = (trajectories.latents_NSLC[is_finite_N, number] for number in (step, step + 1))
        condition = trajectories.condition.of(is_finite_N)
        mean_NLC, std = self._step(trajectories, step, x_NLC, condition)
        logprob_N = step_logprob_N(next_NLC, mean_NLC, std)
        if not with_kl:
            return logprob_N, None
        with torch.no_grad(), without_adapters(self.parts.transformer):
            ref_NLC, _ = self._step(trajectories, step, x_NLC, condition)
        return logprob_N, step_kl_N(mean_NLC, ref_NLC, std)

    def _step(self, trajectories: Trajectories, step: int, x_NLC: Tensor, condition: Condition) -> tuple[Tensor, float]:
        sampling = trajectories.sampling
        t, next_t = trajectories.times[step : step + 2]
        v_NLC = self.parts.velocity(x_NLC, t, condition, sampling.guidance)
        return sde_step(x_NLC, v_NLC, t, next_t, sampling.noise_level)

    def rescore(self, trajectories: Trajectories) -> Tensor:
        """Log-probabilities of all trained steps, float32 (n, S − 1), of the trajectories whose states are finite.

        With gradient all steps' graphs live at once; ``FlowGRPO.update`` takes them one by one.
        """
        num_trained = trajectories.logprobs_NS.shape[1]
        return torch.stack([self.rescore_step(trajectories, step)[0] for step in range(num_trained)], dim=1)

    def weights(self) -> dict[str, Tensor]:
        """The adapters' weights, on the CPU."""
        return {name: w.detach().cpu().clone() for name, w in adapter_weights(self.parts.transformer).items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take adapters' weights. ValueError if they are of another network or rank."""
        load_adapter_weights(self.parts.transformer, weights)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapters as a file that the plain pipeline loads, too: ``pipeline.load_lora_weights(folder)``.

        Args:
            weights: those that :meth:`weights` gave, if not as they are now.
        """
        self.parts.save_adapters(folder, weights)

    def load(self, folder: Path) -> None:
        """Read adapters that :meth:`save` wrote. UserError if they are missing or do not fit."""
        self.parts.load_adapters(folder)


@dataclass
class _Tally:
    """Sums over the trajectories of one update, for its metrics."""

    ratio_S: Tensor
    num_S: Tensor
    num_clipped: float = 0.0
    kl: float = 0.0
    loss: float = 0.0
    grad_norm: float = 0.0
    num_steps: int = 0

    def add(self, step: int, ratio_N: Tensor, is_clipped_N: Tensor, kl_N: Tensor | None) -> None:
        self.ratio_S[step] += float(ratio_N.sum())
        self.num_S[step] += ratio_N.numel()
        self.num_clipped += float(is_clipped_N.sum())
        self.kl += 0.0 if kl_N is None else float(kl_N.detach().sum())

    def metrics(self, *, with_kl: bool) -> Metrics:
        """Means over what was scored and over optimizer steps; without any, only that there was none."""
        found: Metrics = {"optimizer_steps": float(self.num_steps)}
        num = float(self.num_S.sum())
        if self.num_steps == 0 or num == 0:
            return found
        found |= {"loss": self.loss / self.num_steps, "grad_norm": self.grad_norm / self.num_steps}
        found |= {"ratio": float(self.ratio_S.sum()) / num, "clip_fraction": self.num_clipped / num}
        if with_kl:
            found["kl"] = self.kl / num
        return found | {f"ratio/step_{i}": float(r) for i, r in enumerate(self.ratio_S / self.num_S)}


class FlowGRPO:
    """Trains an editor's adapters by Flow-GRPO, in one process."""

    def __init__(self, editor: DiffusionEditor) -> None:
        self.editor = editor
        self.config = editor.config
        self.optimizer = torch.optim.AdamW(
            editor.trained,
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            weight_decay=self.config.weight_decay,
        )

    def sample(self, images: Sequence[Tensor], prompts: Sequence[str], seeds: Sequence[int]) -> list[Trajectories]:
        """``group_size`` edits of each picture, group after group, in batches of at most ``batch_size``.

        Args:
            images: each uint8 (3, H, W), of any sizes: a batch holds edits of one picture.
            seeds: one for each group; every edit has noise of its own (the paper: better than shared noise).
        """
        batches = []
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            own = [derive_seed(seed, number) for number in range(self.config.group_size)]
            for start in range(0, len(own), self.config.batch_size):
                part = own[start : start + self.config.batch_size]
                batches.append(self.editor.edit([image] * len(part), [prompt] * len(part), part))
        return batches

    def update(self, trajectories: Sequence[Trajectories], rewards: Tensor, group_N: Tensor | None = None) -> Metrics:
        """Optimizer steps on trajectories that the editor has sampled since its last update.

        Args:
            trajectories: batches, as they were sampled.
            rewards: finite, (N,), of all edits, batches end to end. Failed edits need one, too: it counts in the mean
                of their group; those without finite states are not trained on.
            group_N: int64 (N,), whose siblings an edit belongs to, from 0; None if each ``group_size`` edits on end
                are siblings, as :meth:`sample` gives them.

        Returns:
            ``loss``, ``grad_norm``, ``optimizer_steps``, ``ratio`` (mean), ``ratio/step_<i>`` (GRPO-Guard,
            arXiv 2510.22319: below 1 at the last steps, clipping no longer restrains), ``clip_fraction``, ``kl`` (if
            it is weighted), ``groups_without_signal`` and ``failed`` (shares). Means over what was trained on.

        Raises:
            ValueError: numbers do not match, or a reward is not finite.
            FloatingPointError: a log-probability or the gradient is not finite; names the denoising step. The
                optimizer step is not made.
        """
        rewards_N, group_N = self._checked(trajectories, rewards, group_N)
        num_groups = int(group_N.max()) + 1
        advantage_N = trajectory_advantages_N(
            rewards_N, group_N, num_groups, spread=self.config.advantage_spread, limit=self.config.advantage_limit
        )
        parts = list(zip(trajectories, advantage_N.split([len(batch) for batch in trajectories]), strict=True))
        num_trained = trajectories[0].logprobs_NS.shape[1]
        tally = _Tally(torch.zeros(num_trained, dtype=torch.float64), torch.zeros(num_trained, dtype=torch.float64))
        for _ in range(self.config.num_epochs):
            for minibatch in _contiguous(parts, self.config.num_minibatches):
                self._optimise(minibatch, tally)
        spread_P = torch.zeros(num_groups).index_add(0, group_N, advantage_N.abs())
        num_failed = sum(failure is not None for batch in trajectories for failure in batch.failures)
        return tally.metrics(with_kl=self.config.kl_coefficient > 0) | {
            "groups_without_signal": float((spread_P == 0).float().mean()),
            "failed": num_failed / len(rewards_N),
        }

    def _checked(
        self, trajectories: Sequence[Trajectories], rewards: Tensor, group_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        num = sum(len(batch) for batch in trajectories)
        if rewards.shape != (num,) or num == 0:
            raise ValueError(f"rewards have shape {tuple(rewards.shape)}, but there are {num} edits: give one for each")
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError("a reward is not finite: pay a failed edit a number")
        if len({batch.logprobs_NS.shape[1] for batch in trajectories}) != 1 or trajectories[0].logprobs_NS.numel() == 0:
            raise ValueError("trajectories must have equally many steps and a noise level above 0: sample them anew")
        if group_N is None:
            if num % self.config.group_size:
                raise ValueError(
                    f"{num} edits are not groups of group_size={self.config.group_size}: give group_N to say whose "
                    "siblings they are"
                )
            group_N = torch.arange(num) // self.config.group_size
        if group_N.shape != (num,):
            raise ValueError(f"group_N has shape {tuple(group_N.shape)}, but there are {num} edits: give one for each")
        return rewards.detach().float().cpu(), group_N.cpu()

    def _optimise(self, minibatch: Sequence[tuple[Trajectories, Tensor]], tally: _Tally) -> None:
        """One optimizer step; none if no advantage and no KL gives a gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        num = sum(len(batch) for batch, _ in minibatch)
        for batch, advantage_N in minibatch:
            is_finite_N = batch.is_finite_N
            # Without an advantage there is nothing to learn from but the KL.
            if is_finite_N.any() and (self.config.kl_coefficient > 0 or bool(advantage_N.any())):
                chosen_N = advantage_N.to(is_finite_N.device)[is_finite_N]
                for step in range(batch.logprobs_NS.shape[1]):
                    self._accumulate(batch, step, chosen_N, num, tally)
        if all(parameter.grad is None for parameter in self.editor.trained):
            return
        norm = torch.nn.utils.clip_grad_norm_(self.editor.trained, self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            self._refuse("the gradient is not finite")
        self.optimizer.step()
        tally.grad_norm += float(norm)
        tally.num_steps += 1

    def _accumulate(self, batch: Trajectories, step: int, advantage_N: Tensor, num: int, tally: _Tally) -> None:
        """Add the gradient of one denoising step of one batch."""
        config = self.config
        old_N = batch.logprobs_NS[batch.is_finite_N, step]
        new_N, kl_N = self.editor.rescore_step(batch, step, with_kl=config.kl_coefficient > 0)
        if not bool(torch.isfinite(new_N).all()):
            self._refuse(f"the log-probability of denoising step {step} (t={batch.times[step]:.3f}) is not finite")
        loss_N = step_loss_N(
            new_N, old_N, advantage_N, kl_N, clip_range=config.clip_range, kl_coefficient=config.kl_coefficient
        )
        loss = loss_N.sum() / (num * batch.logprobs_NS.shape[1])
        loss.backward()
        ratio_N = importance_ratio_T(new_N.detach(), old_N)
        tally.loss += float(loss.detach())
        tally.add(step, ratio_N, is_clipped_T(ratio_N, advantage_N, config.clip_range, config.clip_range), kl_N)

    def _refuse(self, what: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(
            f"{what}, so this optimizer step was not made: load earlier adapters and lower learning_rate, or load the "
            "pipeline in float32 or float16"
        )

    def state_dict(self) -> dict[str, object]:
        """Adapters and optimizer, which later updates leave as they are."""
        return {"weights": self.editor.weights(), "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.editor.load_weights(state["weights"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]

    def weights_to_save(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The adapters of a ``state_dict``."""
        return state["weights"]

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write adapters as :meth:`DiffusionEditor.save` does."""
        self.editor.save(folder, weights)


def _contiguous(
    parts: Sequence[tuple[Trajectories, Tensor]], num: int
) -> Iterator[Sequence[tuple[Trajectories, Tensor]]]:
    """Cut into at most ``num`` runs of nearly equal length."""
    num = min(num, len(parts))
    bounds = [len(parts) * number // num for number in range(num + 1)]
    for start, end in pairwise(bounds):
        yield parts[start:end]
