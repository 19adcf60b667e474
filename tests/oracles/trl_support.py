"""TRL's own trainers on a tiny Qwen3-VL, with the responses given instead of generated.

Everything else is TRL's: prompts, padding, log-probabilities, rewards to advantages, loss, optimizer steps. Where only
the loss is looked at, log-probabilities are given, too.

Letters: ``B`` rows of TRL's batch, ``C`` tokens of its longest response; ``N`` rollouts and ``T`` tokens as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from sparring.models.processor import Processor
from sparring.types import Group, Problem, Reward, Rollout
from tiny_models import tiny_problem, tiny_view

LEARNING_RATE = 1.0


class StillProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its video part, which needs torchvision.

    transformers reads the parts of a processor from the signature of its ``__init__``.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def still_processor(folder: Path) -> StillProcessor:
    """The files of a checkpoint folder as TRL takes them."""
    parts = Processor.from_pretrained(folder)
    # TRL pads prompts on the left by itself, but has the processor pad the map of image tokens that goes with them. It
    # sets this side only on a processor that it loads.
    parts.tokenizer.padding_side = "left"
    return StillProcessor(parts.image_processor, parts.tokenizer, parts.tokenizer.chat_template)


def trainer_of(
    folder: Path,
    output: Path,
    *,
    rows: Sequence[dict[str, Any]] = ({"prompt": "-"},),
    rewards: Sequence[float] = (),
    responses: Sequence[Sequence[int]] = (),
    trainer_class: type[GRPOTrainer] | type[RLOOTrainer] = GRPOTrainer,
    **settings: Any,
) -> Any:
    """A trainer with plain gradient steps of size one.

    Args:
        rows: the data set, taken in this order; each row is repeated ``num_generations`` times.
        rewards, responses: of each repeated row.
        settings: of ``GRPOConfig`` or ``RLOOConfig``.
    """
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config_class = GRPOConfig if trainer_class is GRPOTrainer else RLOOConfig
    plain = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = trainer_class(
        model,
        reward_funcs=lambda completions, **_: list(rewards),
        args=config_class(**(plain | settings)),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=still_processor(folder),
        optimizers=(torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), None),
    )
    given = [list(response) for response in responses]
    # GRPO's returns the sampler's log-probs, too; None is what it returns after generating with transformers.
    generated = (given, None) if trainer_class is GRPOTrainer else given
    trainer._generate_single_turn = lambda *args, **kwargs: generated
    # Set by the training loop; here `_compute_loss` is also called outside of it.
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def rollout_of(problem: Problem, token_ids: Sequence[int], reward: float) -> Rollout:
    """A graded response; its text and sampler's log-probabilities are read by nobody."""
    return Rollout(
        problem_id=problem.id,
        view="clean",
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        sampler_logprobs=torch.zeros(len(token_ids)),
        text="",
        finish_reason="stop",
        reward=Reward(reward, {"answer": reward, "format": 1.0}, {}),
    )


def picture_groups(
    responses: Sequence[Sequence[Sequence[int]]], rewards: Sequence[Sequence[float]]
) -> tuple[list[Group], list[dict[str, Any]]]:
    """Graded groups about random pictures of unlike sizes with questions of unlike lengths, and the same as TRL's rows.

    The rewards and the token ids of a problem's responses stand in one entry of each argument.
    """
    groups, rows = [], []
    for number, (texts, values) in enumerate(zip(responses, rewards, strict=True)):
        problem = tiny_problem(number, (((16, 24), (32, 16))[number % 2],), question="What" + " else" * number + "?")
        rollouts = tuple(rollout_of(problem, ids, value) for ids, value in zip(texts, values, strict=True))
        groups.append(Group(problem, {"clean": tiny_view(problem, "clean")}, rollouts))
        picture = Image.fromarray(problem.images[0].permute(1, 2, 0).numpy())
        rows.append({"prompt": [{"role": "user", "content": problem.question}], "image": picture})
    return groups, rows


def repeated(rows: Sequence[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    """A generation batch as TRL's sampler makes it."""
    return [dict(row) for row in rows for _ in range(times)]


def trl_advantages(folder: Path, output: Path, rewards: Tensor, *, is_training: bool = True, **settings: Any) -> Tensor:
    """Advantages (N,) that TRL gives to rewards of shape (groups, rollouts of each)."""
    num_groups, size = rewards.shape
    rows = [{"prompt": [{"role": "user", "content": str(number)}]} for number in range(num_groups)]
    if not is_training:
        settings |= {"num_generations_eval": size}
        size = 2
    trainer = trainer_of(
        folder,
        output,
        rows=rows,
        rewards=rewards.flatten().tolist(),
        responses=[[65]] * rewards.numel(),
        per_device_train_batch_size=num_groups * size,
        num_generations=size,
        beta=0.0,
        **settings,
    )
    trainer.model.train(is_training)
    return trainer._generate_and_score_completions(repeated(rows, rewards.shape[1]))["advantages"]


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that a loss is computed from, for tokens laid end to end."""

    lengths: tuple[int, ...]
    advantage_N: Tensor
    old_T: Tensor
    new_T: Tensor
    reference_T: Tensor

    def of(self, members: Sequence[int]) -> Case:
        """Some of its rollouts."""
        rollout_T = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        index_T = torch.cat([(rollout_T == member).nonzero().squeeze(-1) for member in members])
        return replace(
            self,
            lengths=tuple(self.lengths[member] for member in members),
            advantage_N=self.advantage_N[list(members)],
            old_T=self.old_T[index_T],
            new_T=self.new_T[index_T],
            reference_T=self.reference_T[index_T],
        )


def trl_loss(trainer: Any, case: Case, *, num_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """TRL's loss of a batch, and its gradient to the new log-probabilities (T,).

    Args:
        num_tokens: of the whole generation batch, if this is only a part of it.
    """
    lengths_B = torch.tensor(case.lengths)
    mask_BC = torch.arange(max(1, int(lengths_B.max()))) < lengths_B[:, None]

    def padded(values_T: Tensor) -> Tensor:
        return values_T.new_zeros(mask_BC.shape).masked_scatter(mask_BC, values_T)

    leaf_T = case.new_T.clone().requires_grad_()
    new_BC = padded(leaf_T)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (new_BC, torch.zeros_like(new_BC), None)
    inputs = {
        "prompt_ids": torch.zeros(len(case.lengths), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(case.lengths), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(mask_BC.shape, dtype=torch.int64),
        "completion_mask": mask_BC.long(),
        "advantages": case.advantage_N,
        "old_per_token_logps": padded(case.old_T),
        "ref_per_token_logps": padded(case.reference_T),
        "num_items_in_batch": torch.tensor(sum(case.lengths) if num_tokens is None else num_tokens),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    return loss.detach(), torch.autograd.grad(loss, leaf_T)[0]
