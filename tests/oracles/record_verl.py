"""Records what verl 0.9.1 computes, as the second oracle of `test_verl.py`.

verl's pins exclude our transformers, so this runs in an environment of its own (Python 3.11 or 3.12, no GPU) and
imports nothing of ours. ``--no-deps``, because its maths imports little of verl's full list (wandb, datasets, ...)::

    python3.11 -m venv verl-env
    verl-env/bin/pip install torch==2.13.0 numpy==2.4.6 transformers==5.9.0 tensordict==0.10.0 ray==2.60.0 \
        omegaconf==2.4.0 codetiming==1.4.0
    verl-env/bin/pip install --no-deps verl==0.9.1
    verl-env/bin/python tests/oracles/record_verl.py

It writes ``verl_0_9_1.safetensors`` beside itself: per case the inputs, outputs, and gradients to log-probs or logits;
in the header the settings. Everything is float64 except where the name ends in ``_f32``.

Letters: ``N`` responses, ``L`` positions of the padded response, ``M`` modes of reduction, ``R`` rows of logits, ``V``
vocabulary. Positions behind a response hold finite rubbish, which the mask must hide.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from verl.trainer.ppo import core_algos
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits
from verl.workers.config import ActorConfig, PolicyLossConfig

VERL = "0.9.1"
PATH = Path(__file__).with_name("verl_0_9_1.safetensors")

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
"""Every ``loss_agg_mode`` that verl has."""
GLOBAL = {"dp_size": 2, "batch_num_tokens": 100, "global_batch_size": 16, "loss_scale_factor": 32}
"""The totals of a step of which a batch is only a part, as verl's workers pass them on."""
SURROGATES = (
    {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
    # verl cannot turn its dual clip off; above e^20, where it clamps ratios, it never binds.
    {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1e9},
)
SEQUENCE_SURROGATES = (
    {"clip_low": 3e-4, "clip_high": 4e-4},  # the GSPO paper's
    {"clip_low": 0.2, "clip_high": 0.28},
)
COVARIANCE_FRACTIONS = (2e-3, 0.2)
"""Of the few tokens of a case the first selects one, as everything up to 1 / T does."""
KL_COV_COEFFICIENTS = (1.0, 0.3)
CLIP_COV = (
    {"clip_low": 1.0, "clip_high": 1.0, "low": 1.0, "high": 5.0},  # the official script's
    {"clip_low": 0.2, "clip_high": 0.28, "low": -0.1, "high": 0.5},  # many candidates, and clipped tokens among them
)
CONTROLLER = {"kl_coefficient": 0.05, "kl_target": 0.1, "kl_horizon": 1000, "num_rollouts": 128}
KL_PENALTIES = {"k1": "kl", "abs": "abs", "k2": "mse", "k3": "low_var_kl"}
"""verl's estimators, each with its second name."""
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Case:
    """A batch of responses.

    ``groups`` says which responses are siblings. ``rewards`` None draws them. Log-ratios of the new policy to the old
    one and to the reference are normal with deviation ``spread``, around ``offsets`` (one per response) if given.
    """

    name: str
    lengths: tuple[int, ...]
    groups: tuple[int, ...] = (0, 1, 0, 0, 1, 1, 0, 1)
    rewards: tuple[float, ...] | None = None
    spread: float = 0.3
    offsets: tuple[float, ...] | None = None
    limit: int = 7


LENGTHS = (5, 2, 7, 3, 1, 6, 4, 2)
CASES = (
    Case("unequal_lengths", LENGTHS),
    Case("on_policy", LENGTHS, spread=0.0),
    Case("equal_rewards", LENGTHS, rewards=(0.9, 1.0, 0.9, 0.9, 0.1, 0.0, 0.9, 0.1)),
    Case("zero_advantages", LENGTHS, rewards=(1.0,) * 8),
    Case("groups_of_one", LENGTHS, groups=(0, 1, 2, 2, 3, 4, 2, 3)),
    Case("one_token", (1,) * 8, limit=4),
    Case("truncated", (7,) * 8),
    Case("an_empty_response", (5, 2, 0, 3, 1, 6, 4, 2)),
    Case("clipped_on_both_sides", LENGTHS, spread=1.5),
    # Log-ratios beyond every clamp (20 for tokens and k3, 10 for GSPO, 10 for the value of k3), each with a good and a
    # bad response.
    Case(
        "extreme",
        LENGTHS,
        rewards=(1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
        offsets=(30.0, -30.0, 30.0, 15.0, -30.0, -15.0, 15.0, -15.0),
    ),
)


def advantages(case: Case, reward_N: Tensor, mask_NL: Tensor) -> dict[str, Tensor]:
    """Outcome advantages (N, L); verl finds a response's reward by summing over its positions."""
    reward_NL = torch.zeros(mask_NL.shape, dtype=reward_N.dtype)
    reward_NL[range(len(case.lengths)), [max(0, length - 1) for length in case.lengths]] = reward_N
    index = np.array(case.groups)

    def by(estimator: Callable[..., tuple[Tensor, Tensor]], **settings: Any) -> Tensor:
        return estimator(reward_NL.clone(), mask_NL.long(), index, **settings)[0]

    return {
        "grpo_std": by(core_algos.compute_grpo_outcome_advantage),
        "grpo_none": by(core_algos.compute_grpo_outcome_advantage, norm_adv_by_std_in_grpo=False),
        "rloo": by(core_algos.compute_rloo_outcome_advantage),
        "rloo_vectorized": by(core_algos.compute_rloo_vectorized_outcome_advantage),
    }


def policy_losses(
    name: str, clip: dict[str, float], old_NL: Tensor, new_NL: Tensor, advantage_NL: Tensor, mask_NL: Tensor
) -> dict[str, Tensor]:
    """A registered policy loss in every mode: losses (M,), gradients to the new log-probs (M, N, L), metrics (3,)."""
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        use_dynamic_bsz=True,
        clip_ratio_low=clip["clip_low"],
        clip_ratio_high=clip["clip_high"],
        clip_ratio_c=clip.get("dual_clip", 3.0),
    )
    losses, gradients, metrics = [], [], {}
    for mode in MODES:
        leaf_NL = new_NL.clone().requires_grad_()
        loss, metrics = core_algos.get_policy_loss_fn(name)(
            old_NL, leaf_NL, advantage_NL, mask_NL.long(), loss_agg_mode=mode, config=config
        )
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, leaf_NL)[0])
    # Metrics do not depend on the mode.
    names = ("actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl")
    return {
        "loss": torch.stack(losses),
        "gradient": torch.stack(gradients),
        "metrics": torch.tensor([metrics[key] for key in names], dtype=torch.float64),
    }


def covariance_losses(
    name: str, settings: dict[str, float], old_NL: Tensor, new_NL: Tensor, advantage_NL: Tensor, mask_NL: Tensor
) -> dict[str, Tensor]:
    """KL-Cov or Clip-Cov with the token mean: loss, gradient to the new log-probs (N, L), and the draw.

    ``permutation`` is what ``torch.randperm`` gave Clip-Cov for its candidates, empty if there were none.
    """
    policy_loss = {
        "clip_cov_ratio": settings["fraction"],
        "kl_cov_ratio": settings["fraction"],
        "clip_cov_lb": settings.get("low", 1.0),
        "clip_cov_ub": settings.get("high", 5.0),
        "ppo_kl_coef": settings.get("coefficient", 1.0),
    }
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        use_dynamic_bsz=True,
        clip_ratio_low=settings.get("clip_low", 0.2),
        clip_ratio_high=settings.get("clip_high", 0.2),
        policy_loss=PolicyLossConfig(loss_mode=name, **policy_loss),
    )
    drawn: list[Tensor] = [torch.empty(0, dtype=torch.int64)]

    def recorded_randperm(*args: Any, draw: Callable[..., Tensor] = torch.randperm) -> Tensor:
        drawn.append(draw(*args, generator=torch.Generator().manual_seed(len(old_NL))))
        return drawn[-1]

    leaf_NL = new_NL.clone().requires_grad_()
    with patch.object(torch, "randperm", recorded_randperm):
        loss, _ = core_algos.get_policy_loss_fn(name)(
            old_NL, leaf_NL, advantage_NL, mask_NL.long(), loss_agg_mode="token-mean", config=config
        )
    gradient_NL = torch.autograd.grad(loss, leaf_NL)[0]
    return {"loss": loss.detach(), "gradient": gradient_NL, "permutation": drawn[-1]}


def controlled() -> dict[str, Tensor]:
    """The coefficient of verl's adaptive controller after each of several measured KLs."""
    controller = core_algos.AdaptiveKLController(
        CONTROLLER["kl_coefficient"], CONTROLLER["kl_target"], CONTROLLER["kl_horizon"]
    )
    kls = [0.0, 0.05, 0.099, 0.1, 0.11, 0.3, 5.0, 0.02]
    values = []
    for kl in kls:
        controller.update(kl, CONTROLLER["num_rollouts"])
        values.append(float(controller.value))
    return {"kl": torch.tensor(kls, dtype=torch.float64), "coefficient": torch.tensor(values, dtype=torch.float64)}


def reduction_weights(mask_NL: Tensor, totals: dict[str, int]) -> Tensor:
    """What each position weighs in each mode, (M, N, L): the gradient of the aggregate to the losses."""
    weights = []
    for mode in MODES:
        loss_NL = torch.zeros(mask_NL.shape, dtype=torch.float64, requires_grad=True)
        aggregate = core_algos.agg_loss(loss_NL, mask_NL.long(), mode, **totals)
        weights.append(torch.autograd.grad(aggregate, loss_NL)[0])
    return torch.stack(weights)


def kl_penalties(new_NL: Tensor, reference_NL: Tensor) -> dict[str, Tensor]:
    """Estimates and their gradients to the new log-probs, each (N, L)."""
    record = {}
    for name, alias in KL_PENALTIES.items():
        leaf_NL = new_NL.clone().requires_grad_()
        value_NL = core_algos.kl_penalty(leaf_NL, reference_NL, name)
        assert torch.equal(value_NL, core_algos.kl_penalty(leaf_NL, reference_NL, alias))
        record[name] = value_NL.detach()
        record[f"{name}/gradient"] = torch.autograd.grad(value_NL.sum(), leaf_NL)[0]
    return record


def record_case(case: Case, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(case.lengths), case.limit)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    mask_NL = torch.arange(case.limit) < torch.tensor(case.lengths)[:, None]
    offset_NL = torch.tensor(case.offsets or (0.0,) * shape[0], dtype=torch.float64)[:, None]
    old_NL = -normal(*shape).abs() - 0.1
    new_NL = old_NL + offset_NL + case.spread * normal(*shape)
    reference_NL = new_NL - offset_NL - case.spread * normal(*shape)
    reward_N = normal(shape[0]) if case.rewards is None else torch.tensor(case.rewards, dtype=torch.float64)
    record = {"mask": mask_NL, "old": old_NL, "new": new_NL, "reference": reference_NL, "reward": reward_N}
    record["group"] = torch.tensor(case.groups)
    record |= advantages(case, reward_N, mask_NL)
    record["weights"] = reduction_weights(mask_NL, {})
    record["weights_of_part"] = reduction_weights(mask_NL, GLOBAL)
    for name, clips in (("vanilla", SURROGATES), ("gspo", SEQUENCE_SURROGATES)):
        for number, clip in enumerate(clips):
            found = policy_losses(name, clip, old_NL, new_NL, record["grpo_std"], mask_NL)
            record |= {f"{name}/{number}/{key}": values for key, values in found.items()}
    for number, (fraction, coefficient) in enumerate(zip(COVARIANCE_FRACTIONS, KL_COV_COEFFICIENTS, strict=True)):
        settings = {"fraction": fraction, "coefficient": coefficient}
        found = covariance_losses("kl_cov", settings, old_NL, new_NL, record["grpo_std"], mask_NL)
        record |= {f"kl_cov/{number}/{key}": values for key, values in found.items() if key != "permutation"}
    for number, (fraction, bounds) in enumerate(zip(COVARIANCE_FRACTIONS, CLIP_COV, strict=True)):
        found = covariance_losses(
            "clip_cov", {"fraction": fraction, **bounds}, old_NL, new_NL, record["grpo_std"], mask_NL
        )
        record |= {f"clip_cov/{number}/{key}": values for key, values in found.items()}
    return record | kl_penalties(new_NL, reference_NL)


def record_logits() -> dict[str, Tensor]:
    """Entropy and log-probs of tokens (R,), with gradients (R, V), of logits over the temperature."""
    logits_RV = torch.randn((6, 11), generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    logits_RV[2] *= 50  # sharp
    logits_RV[3] = 0  # uniform
    logits_RV[4] = logits_RV[4] * 1e-3 + 1e4  # almost uniform, far from zero
    logits_RV[5] = torch.arange(11) * -1e3  # one token is certain
    token_R = torch.tensor([0, 3, 10, 5, 7, 0])
    record = {"logits": logits_RV, "token": token_R}
    for name, function in {
        "entropy": entropy_from_logits,
        "logprobs": lambda logits_RV: logprobs_from_logits(logits_RV, token_R),
    }.items():
        leaf_RV = logits_RV.clone().requires_grad_()
        value_R = function(leaf_RV / TEMPERATURE)
        record[name] = value_R.detach()
        record[f"{name}/gradient"] = torch.autograd.grad(value_R.sum(), leaf_RV)[0]
    return record


def main() -> None:
    if version("verl") != VERL:
        raise SystemExit(f"this records verl {VERL}, but {version('verl')} is installed")
    tensors: dict[str, Tensor] = {}
    for seed, case in enumerate(CASES):
        tensors |= {f"{case.name}/{name}": values for name, values in record_case(case, seed).items()}
    # The rounding error of a float32 mean of equal rewards.
    equal = Case("equal_f32", (1,) * 8, groups=(0,) * 8, limit=1)
    reward_N = torch.full((8,), 0.9)
    found = advantages(equal, reward_N, torch.ones(8, 1, dtype=torch.bool))
    tensors |= {"equal_f32/reward": reward_N} | {f"equal_f32/{name}": values for name, values in found.items()}
    tensors |= {f"logits/{name}": values for name, values in record_logits().items()}
    tensors |= {f"controller/{name}": values for name, values in controlled().items()}
    settings = {
        "versions": {name: version(name) for name in ("verl", "torch", "transformers", "tensordict", "numpy")},
        "cases": [asdict(case) for case in CASES],
        "modes": MODES,
        "totals_of_part": GLOBAL,
        "vanilla": SURROGATES,
        "gspo": SEQUENCE_SURROGATES,
        "covariance_fractions": COVARIANCE_FRACTIONS,
        "kl_cov_coefficients": KL_COV_COEFFICIENTS,
        "clip_cov": CLIP_COV,
        "controller": CONTROLLER,
        "temperature": TEMPERATURE,
    }
    assert all(values.isfinite().all() for values in tensors.values())
    contiguous = {name: values.contiguous() for name, values in tensors.items()}
    save_file(contiguous, PATH, metadata={"settings": json.dumps(settings)})
    print(f"{PATH.name}: {len(tensors)} tensors, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
