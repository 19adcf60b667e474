"""A discriminator: did the student write a response, or a teacher? Source: arXiv 2510.19307 (equation 1, figure 3).

It is the student's own network, with its initial weights, and a linear head D x 1 on the last token's final state in
place of the language head. The text that it reads is a user message in the student's chat template::

    A response to a question about a picture stands in response tags. ... teacher (0) ... student (1) ...
    <response>
    ... token ids of the response ...
    </response>                            and what the template puts behind a message

Behind its last token stands a **label** as the only thing left to predict: a target id that no tokenizer has. So a
text to be judged is a rollout, its log-probability is that of its label, and micro-batches, shared prefixes, sharding,
optimizer steps and checkpoints are those of any policy. Tokens before the label are given and have log-probability 0.

A response is data: its tokens are laid into the message as ids, so that tags or special tokens spelled out in it close
nothing. Both sides are read in the tokenizer's own spelling, without stop token; a student's samples may be spelled
otherwise, which would give them away.

Letters: ``N`` responses, ``T`` tokens of texts end to end, ``D`` hidden width (alone: the probability of "student").
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.errors import UserError
from sparring.models.family import Family
from sparring.models.head import Comparison
from sparring.models.packing import PackedBatch
from sparring.models.peft import AdapterConfig, add_adapters, plain_copy, without_adapters
from sparring.models.policy import CACHED_PROMPTS, Policy, PolicyModule, Precision
from sparring.models.processor import Processor, Prompt
from sparring.objective import segment_sum
from sparring.scoring import score
from sparring.types import Group, Metrics, Problem, Rollout, Score, View, layout_of
from sparring.update import Minibatch, OptimConfig, Pass, Player, Tokens, update

Shown = Literal["response", "question", "picture"]

STUDENT, TEACHER = -1, -2
"""Labels as targets; no token has these ids."""
CLEAN = "clean"
NUM_BINS = 10
CERTAIN = 0.99
"""Accuracy above which a discriminator counts as certain: its thresholded reward no longer tells responses apart."""

_TASK = (
    "A response to a question about a picture stands in response tags. Decide who wrote it: a teacher (0) or a student "
    "(1).\n\n"
)
_OPEN, _CLOSE = "<response>\n", "\n</response>"
_ABOUT, _WEIGHTS, _FORMAT = "discriminator.json", "discriminator.safetensors", 1


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The network that tells the student's responses from those of teachers, and how it is optimised."""

    shown: Shown = "response"
    """What it reads: the response alone (the paper's prompt), the question too, or also the picture (the paper's
    formulas, D(q, o))."""
    path: Path | None = None
    """Folder of a discriminator to start from, as checkpoints have it; none starts from the student."""
    adapter_rank: int = 0
    """Rank of adapters on a frozen network, which is then also the reference of the KL term, >= 0; 0 trains all
    weights, as the paper does."""
    adapter_alpha: float = 32.0
    """Adapters are scaled by adapter_alpha / adapter_rank, > 0. Ours."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Its optimizer; the paper's rate is that of the student."""

    def __post_init__(self) -> None:
        if self.adapter_rank < 0:
            raise ValueError(f"adapter_rank={self.adapter_rank} must be >= 0: usual is 16, 0 trains all weights")
        if not (math.isfinite(self.adapter_alpha) and self.adapter_alpha > 0):
            raise ValueError(f"adapter_alpha={self.adapter_alpha} must be finite and > 0: usual is 32")


class DiscriminatorModule(PolicyModule):
    """A policy's network with a head of its own, which starts at zero: at first every response is as likely either's.

    Of rows without labels ``forward`` gives what the language model without adapters gives.
    """

    def __init__(self, vlm: PreTrainedModel, family: Family, precision: Precision = "fp32") -> None:
        super().__init__(vlm, family, precision)
        # A vector, so that it can be sharded.
        self.head = nn.Parameter(torch.zeros_like(vlm.get_output_embeddings().weight[0]))

    def forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float,
        with_entropy: bool = False,
        compare: Comparison | None = None,
        with_hidden: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Log-probability of every label, and 0 for the tokens before it; labels know no temperature."""
        is_label_T = batch.target_T < 0
        if not is_label_T.any():
            with without_adapters(self.vlm) if self.has_adapters else nullcontext():
                return super().forward(
                    batch,
                    temperature=temperature,
                    with_entropy=with_entropy,
                    compare=compare,
                    with_hidden=with_hidden,
                )
        with self.autocast():
            hidden_nD = self.packed_hidden(batch)[batch.predict_T[is_label_T]]
            # No matrix product, so that autocast leaves it in the head's precision.
            logit_n = (hidden_nD.to(self.head.dtype) * self.head).sum(-1)
        is_student_n = batch.target_T[is_label_T] == STUDENT
        logprob_n = F.logsigmoid(torch.where(is_student_n, logit_n, -logit_n))
        return logit_n.new_zeros(is_label_T.shape).masked_scatter(is_label_T, logprob_n), None, None, None


class Discriminator(Policy):
    """A network that reads responses and says whose they are."""

    module: DiscriminatorModule

    def __init__(self, module: DiscriminatorModule, processor: Processor, config: DiscriminatorConfig) -> None:
        super().__init__(module, processor)
        self.config = config
        self._encode_text = functools.lru_cache(CACHED_PROMPTS)(self._encode_once)
        self._choose_trained()

    @classmethod
    def of(cls, student: Policy, config: DiscriminatorConfig) -> Discriminator:
        """One with a copy of the student's network, or the one in ``config.path``. The student must not be sharded.

        Raises:
            FileNotFoundError: there is no discriminator in the folder.
            UserError: it has other settings, or another tokenizer than the student, whose ids it is to read.
        """
        if config.path is None:
            vlm = plain_copy(student.module.vlm)
            return cls._around(vlm, student.processor, student.module.precision, config).to_device_of(student)
        saved = _read_about(config.path)
        apart = [name for name in _SAVED if saved[name] != getattr(config, name)]
        if apart:
            raise UserError(
                f"the discriminator in {config.path} has {apart[0]} {saved[apart[0]]!r}, not "
                f"{getattr(config, apart[0])!r}: set discriminator.{apart[0]} to it"
            )
        if config.adapter_rank:
            vlm = plain_copy(student.module.vlm)
        else:
            base = Policy.load(config.path, precision=student.precision)
            if base.processor.tokenizer.get_vocab() != student.processor.tokenizer.get_vocab():
                raise UserError(
                    f"the discriminator in {config.path} has another tokenizer than the student: train one on it"
                )
            vlm = base.module.vlm
        found = cls._around(vlm, student.processor, student.module.precision, config)
        found._load_trained(config.path)
        return found.to_device_of(student)

    @classmethod
    def _around(
        cls, vlm: PreTrainedModel, processor: Processor, precision: Precision, config: DiscriminatorConfig
    ) -> Discriminator:
        module = DiscriminatorModule(vlm, processor.family, precision).eval()
        if config.adapter_rank:
            add_adapters(vlm, AdapterConfig(config.adapter_rank, config.adapter_alpha))
            module.has_adapters = True
        return cls(module, processor, config)

    def to_device_of(self, other: Policy) -> Discriminator:
        """This one, moved to where the other computes."""
        self.module.to(other.device)
        return self

    def _choose_trained(self) -> None:
        """Freeze what no label depends on: a language head of its own, and without pictures the vision tower."""
        if self.config.adapter_rank:
            return
        vlm = self.module.vlm
        is_used = {id(p) for p in (vlm.get_decoder() if self.config.shown != "picture" else vlm).parameters()}
        output = vlm.get_output_embeddings().weight
        if output is not vlm.get_input_embeddings().weight:
            is_used -= {id(output)}
        for parameter in vlm.parameters():
            parameter.requires_grad_(id(parameter) in is_used)

    def base(self, instruction: str) -> Policy:
        """The language model that adapters leave as it was: a frozen policy that shares this one's weights.

        Raises ValueError without adapters: training would change it.
        """
        if not self.module.has_adapters:
            raise ValueError("adapter_rank=0 trains all weights, so no frozen policy can share them: clone one")
        return Policy(self.module, self.processor, instruction=instruction)

    def weights_to_save(self, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return kept

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes a folder that ``of`` reads: a policy's, with the head beside it, or adapters and head alone."""
        whole = self.weights() if weights is None else weights
        if self.module.has_adapters:
            own = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        else:
            super().save(folder, dtype=dtype, weights=whole)
            own = {"head"}
        converted = {name: whole[name].to("cpu", dtype).contiguous() for name in sorted(own)}
        save_file(converted, Path(folder) / _WEIGHTS)
        about = {"format": _FORMAT, **{name: getattr(self.config, name) for name in _SAVED}}
        (Path(folder) / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def _load_trained(self, folder: Path) -> None:
        """Put what ``save`` wrote beside the policy's files into the network."""
        own = dict(self.module.named_parameters())
        found = load_file(folder / _WEIGHTS)
        wrong = [n for n, value in found.items() if n not in own or own[n].shape != value.shape]
        if wrong:
            raise UserError(
                f"{folder / _WEIGHTS}: {wrong[0]!r} does not fit the student's network: train a discriminator on it"
            )
        with torch.no_grad():
            for name, value in found.items():
                own[name].copy_(value)

    def encode(self, problem: Problem, view: View) -> Prompt:
        """The message up to where the response begins, tensors on the CPU."""
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in view.images)
        question = "" if self.config.shown == "response" else problem.question
        return self._encode_text(question, sizes)[0]

    def encode_closing(self) -> Tensor:
        """What follows the response up to its label, int64 ids."""
        return self._encode_text("", ())[1]

    def _encode_once(self, question: str, sizes: tuple[tuple[int, int], ...]) -> tuple[Prompt, Tensor]:
        asked = f"Question: {question.strip()}\n\n" if question else ""
        return self.processor.encode_around(f"{_TASK}{asked}{_OPEN}", _CLOSE, sizes)

    def texts(self, groups: Sequence[Group], label_N: Sequence[int]) -> list[Group]:
        """The groups' responses as texts, each with a label behind it, in the same order.

        Args:
            label_N: ``STUDENT`` or ``TEACHER`` for each response.
        """
        labels = iter(label_N)
        return [
            replace(
                group,
                views={CLEAN: group.views[CLEAN] if self.config.shown == "picture" else View(CLEAN, ())},
                rollouts=tuple(self._text(rollout, next(labels)) for rollout in group.rollouts),
            )
            for group in groups
        ]

    def _text(self, rollout: Rollout, label: int) -> Rollout:
        token_ids = torch.cat([self._spelled(rollout), self.encode_closing(), torch.tensor([label])])
        unknown = torch.full(token_ids.shape, torch.nan)
        return replace(rollout, view=CLEAN, token_ids=token_ids, sampler_logprobs=unknown)

    def _spelled(self, rollout: Rollout) -> Tensor:
        """The response without its stop token: its text's own tokens, or where the text has none those sampled."""
        spelled = self.processor.encode_response(rollout.text, "length", max_tokens=sys.maxsize)
        if isinstance(spelled, Tensor):
            return spelled
        is_stopped = rollout.token_ids.numel() > 0 and int(rollout.token_ids[-1]) in self.processor.stop_token_ids
        return rollout.token_ids[: -1 if is_stopped else None].cpu()

    def judge(self, groups: Sequence[Group], *, token_budget: int) -> Tensor:
        """D of every response, the probability that the student wrote it: float (N,) on the CPU, without gradient."""
        texts = self.texts(groups, [STUDENT] * sum(len(group.rollouts) for group in groups))
        layout = layout_of(texts)
        scored = score(self, texts, view=CLEAN, temperature=1.0, token_budget=token_budget)
        logprob_N = segment_sum(scored.logprobs_T.cpu(), layout.rollout_T, layout.num_rollouts)
        # Relative to a logit of 0, which so gives exactly one half.
        even = F.logsigmoid(torch.zeros_like(logprob_N))
        return (0.5 * (logprob_N - even).exp()).clamp(max=1.0)

    def minibatch(self, groups: Sequence[Group], is_student_N: Tensor) -> Minibatch:
        """The texts of one optimizer step with the constant of equation 1: one over the responses of their side."""
        texts = self.texts(groups, torch.where(is_student_N, STUDENT, TEACHER).tolist())
        num_student = int(is_student_N.sum())
        num_teacher = is_student_N.numel() - num_student
        weight_N = torch.where(is_student_N, 1 / max(1, num_student), 1 / max(1, num_teacher))
        return Minibatch(tuple(texts), {"weight": weight_N[layout_of(texts).rollout_T]})


_SAVED = ("shown", "adapter_rank", "adapter_alpha")
"""Settings that belong to the weights."""


def discriminator_loss(scored: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus equation 1: binary cross-entropy, the mean over the student's responses plus that over the teachers'.

    2 log 2 if every D is one half.
    """
    return -(tokens["weight"] * scored.logprobs_T).sum(), {}


def teach(player: Player, groups: Sequence[Group], is_student_N: Tensor) -> Metrics:
    """One optimizer step of a discriminator on equation 1; ``loss`` and ``grad_norm``.

    Args:
        player: whose policy is a ``Discriminator``.
        is_student_N: bool, on the CPU, of all responses; both sides must have some.
    """
    discriminator = player.policy
    if not isinstance(discriminator, Discriminator):
        raise TypeError(f"player {player.name!r} has no discriminator but a {type(discriminator).__name__}")
    minibatch = discriminator.minibatch(groups, is_student_N)
    return update(player, [Pass(minibatch, discriminator_loss, CLEAN)], temperature=1.0)


def discriminator_metrics(probability_N: Tensor, is_student_N: Tensor) -> Metrics:
    """How well D tells the sides apart, on responses that it was not trained on.

    Returns:
        ``accuracy``, the mean of both sides' (D >= 0.5 says "student"); ``calibration_error``, the expected one over
        ten bins of D; mean D of each side as ``student`` and ``teacher``; and whether it is ``at_chance`` (Wilson's
        95 % interval of the accuracy holds one half, which is a score test) or ``at_certainty``, 0 or 1.
    """
    says_student_N = probability_N >= 0.5
    sides = {"student": is_student_N, "teacher": ~is_student_N}
    right = [float((says_student_N == is_student_N)[side_N].float().mean()) for side_N in sides.values()]
    accuracy = sum(right) / 2
    deviation = 0.25 * math.sqrt(sum(1 / int(side_N.sum()) for side_N in sides.values()))
    return {
        "accuracy": accuracy,
        "calibration_error": calibration_error(probability_N, is_student_N),
        **{name: float(probability_N[side_N].mean()) for name, side_N in sides.items()},
        "at_chance": float(abs(accuracy - 0.5) <= 1.96 * deviation),
        "at_certainty": float(accuracy > CERTAIN),
    }


def calibration_error(probability_N: Tensor, is_true_N: Tensor) -> float:
    """Expected calibration error: over ten equal bins, the share of a bin times how far its mean probability is from
    the share of true ones in it. Source: Guo et al., arXiv 1706.04599, for the probability of one class."""
    bin_N = (probability_N * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    excess_B = segment_sum(probability_N - is_true_N.to(probability_N), bin_N, NUM_BINS)
    return float(excess_B.abs().sum() / probability_N.numel())


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / _ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no discriminator (it has no {_ABOUT}): give one of a checkpoint")
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise UserError(f"{path}: format {about['format']!r}, this version reads {_FORMAT}")
        return {name: about[name] for name in _SAVED}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}; copy it again") from error
