"""NoisyRollout: responses to noisy pictures compete with those to clean ones, arXiv 2504.13055 (NeurIPS 2025).

Where the paper is silent or its code differs, the code counts: NUS-TRAIL/NoisyRollout at 09347dd.

One step, number k of K:
    1. t = floor(alpha_0 (1 - sigmoid(lambda (k / K - gamma)))): strength of the noise, falling over the run
    2. for each problem sample n responses on the clean picture I
    3. and n on  I~ = sqrt(abar_t) I + sqrt(1 - abar_t) noise,  rounded to 8 bits
    4. grade all 2n, A = (r - mean r) / std r over the 2n
    5. GRPO with rho = pi_theta(y | I) / pi_old(y | I) for every response: only the sampler has seen I~

| paper | here |
|---|---|
| noise | `perturb.diffusion_noise` |
| annealing: sigmoid, power, exponential, none | `perturb.schedule` |
| hybrid group of clean and noisy responses | `NoisyRollout.sample_groups` |
| update on clean pictures alone | ``view=CLEAN`` for old and new log-probs |

**Deviations.** n + n = 4 + 4 against GRPO's 8, where the paper has 6 + 6 against 12. The vision tower is trained, as in
all methods here; the paper freezes it. Pictures are rounded to 8 bits, where the code cuts off, and at t = 0 they are
clean, where its noise still has a deviation of 0.005: so strength 0 is GRPO. The loss is a mean over all tokens of the
optimizer step, the code's a mean over micro-batches of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, is_sampled_on_T, mean_entropies
from sparring.perturb.diffusion_noise import NUM_DIFFUSION_STEPS, diffusion_noise
from sparring.perturb.schedule import Schedule, Sigmoid
from sparring.perturb.space import quantize_8bit
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout.collect import collect
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Metrics, Problem, View

CLEAN, NOISY = "clean", "noisy"


@dataclass(frozen=True)
class NoisyRolloutConfig(LearnerConfig):
    """NoisyRollout; defaults of the loss are its code's."""

    name: Literal["noisyrollout"] = "noisyrollout"
    """The method."""
    num_clean: int = 4
    """Responses sampled on the clean picture, n >= 1; the paper's is 6."""
    num_noisy: int = 4
    """Responses sampled on the noisy picture, >= 1; the paper takes as many as clean ones."""
    strength: int = 500
    """Diffusion step of the noise at the start, in 0 to 999: the paper's 500 on Geometry3K, 450 on K12. At 550 it lost
    accuracy, at 600 it diverged."""
    decay: Schedule = field(default_factory=Sigmoid)
    """How the strength falls over training."""
    decay_steps: int | None = None
    """Steps over which it falls, >= 1, K above; none takes those that the run was started with."""
    loss: PolicyLossConfig = field(
        default_factory=lambda: PolicyLossConfig(clip_high=0.2, kl_coefficient=0.0, entropy_coefficient=1e-3)
    )
    """Credit, clipping, KL and aggregation: symmetric clipping, no KL, an entropy bonus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_clean", "num_noisy"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.strength < NUM_DIFFUSION_STEPS:
            raise ValueError(
                f"strength={self.strength} must be in 0 to {NUM_DIFFUSION_STEPS - 1}: usual are 400 to 500"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps={self.decay_steps} must be >= 1, or none for the steps of the run")


class NoisyRollout(PolicyLearner[NoisyRolloutConfig]):
    """One player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of hybrid groups and the optimizer steps on it."""
        strength = self.strength_at(step)
        make_groups = partial(self.sample_groups, strength=strength)
        groups, metrics = collect(stream, make_groups, self.config.batch, seed=derive_seed(self.seed, step))
        metrics["noise_strength"] = float(strength)
        if not groups:
            return metrics
        is_sampled_on = {view: is_sampled_on_T(groups, view) for view in (CLEAN, NOISY)}
        old = self.score(self.player.policy, groups, view=CLEAN, with_entropy=True)
        metrics |= self.optimise(
            groups,
            view=CLEAN,
            old_logprobs_T=old.logprobs_T,
            reference_logprobs_T=self.reference_logprobs_T(groups, view=CLEAN),
            is_watched_T=is_sampled_on,
        )
        return metrics | mean_entropies(old, is_sampled_on)

    def sample_groups(self, problems: Sequence[Problem], seeds: Sequence[int], *, strength: int) -> list[Group]:
        """Graded groups: clean responses, then those to the noisy picture. Strength 0 gives GRPO's 2n responses."""
        clean = self.sampled(self.clean_groups(problems), seeds, view=CLEAN, num_samples=self.config.num_clean)
        shown = [
            replace(
                group, views={**group.views, NOISY: noisy_view(group.views[CLEAN], strength, derive_seed(s, "noise"))}
            )
            for group, s in zip(clean, seeds, strict=True)
        ]
        return self.grader.grade_groups(self.sampled(shown, seeds, view=NOISY, num_samples=self.config.num_noisy))

    @property
    def decay_steps(self) -> int:
        """Steps over which the strength falls; ValueError if neither the configuration nor the run says."""
        steps = self.config.decay_steps or self.num_steps
        if not steps:
            raise ValueError("decay_steps=none takes the number of steps of the run, which is not known here: set it")
        return steps

    def strength_at(self, step: int) -> int:
        """Diffusion step of the noise in a training step, counted from 0 (from 1 in the formula, as in the code)."""
        progress = min(1.0, (step + 1) / self.decay_steps)
        return int(self.config.strength * self.config.decay.factor(progress))

    def state_dict(self) -> dict[str, object]:
        """Also the steps of the schedule: a run that goes on for longer does not become noisy again."""
        return {**super().state_dict(), "decay_steps": self.decay_steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of ``state_dict``."""
        super().load_state_dict(state)
        self.num_steps = int(state["decay_steps"])  # type: ignore[call-overload]


def noisy_view(clean: View, strength: int, seed: int) -> View:
    """The view with each picture noised and rounded to 8 bits, drawn in order from one generator."""
    stream = generator(seed)
    images = tuple(quantize_8bit(diffusion_noise(image, t=strength, generator=stream)) for image in clean.images)
    provenance = {
        "operator": "diffusion_noise", "parameters": {"t": strength}, "seed": seed, "parent": {"name": clean.name},
    }  # fmt: skip
    return View(NOISY, images, provenance)
