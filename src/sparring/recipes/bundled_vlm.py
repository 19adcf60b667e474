"""How the bundled VLM is made: a tiny Qwen3-VL trained from scratch on generated scenes.

Two phases, each with a reason (figures in ``docs/bundled_vlm.md``):

1. *Perception*: describe the whole picture in one fixed order, look up places and names. A tiny model that is shown
   reasoning first stays blind: guessing costs it less than learning to see.
2. *Reasoning*: the question families in four styles of varied wording, with some perception kept in.

Several questions about one picture share one row: the picture, most of the cost, is encoded once for all of them.

Every batch is drawn from (seed, step) and the state is saved regularly, so a run that was stopped goes on where it was
and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from sparring.data.scenes.questions import FAMILIES, ask
from sparring.data.scenes.reasoning import perceive, respond
from sparring.data.scenes.world import SIZE, draw_scene, render
from sparring.models import vision_attention
from sparring.models.preprocess import PatchSettings, pixels_to_patches

PATCH, MERGE = 8, 2
SETTINGS = PatchSettings(PATCH, MERGE, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM_IMAGE_TOKENS = (SIZE // (PATCH * MERGE)) ** 2
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
THINKING_TOKENS = ("<think>", "</think>")
VOCABULARY = 1024

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class BundledVLMConfig:
    """The recipe of the bundled VLM."""

    out: Path = Path("runs/bundled-vlm")
    """Folder for the finished model and the state to go on from."""
    seed: int = 0
    """Seed of weights and data."""
    perception_steps: int = 1200
    """Optimizer steps of the first phase."""
    reasoning_steps: int = 1500
    """Optimizer steps of the second phase."""
    perception_pictures: int = 24
    """Pictures per step of the first phase."""
    reasoning_pictures: int = 16
    """Pictures per step of the second phase."""
    questions: int = 6
    """Questions per picture; all of one picture share one row."""
    perception_share: float = 0.15
    """Share of pure perception among the questions of the second phase, in [0, 1]."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW, for embeddings, norms and biases."""
    muon_learning_rate: float = 2e-2
    """Peak rate of Muon, for the matrices inside the blocks."""
    warmup_steps: int = 100
    """Linear warm-up, in steps, in each phase."""
    save_every: int = 250
    """Steps between saved states."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's own texts: digits apart, any other text still encodable byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\\boxed\{| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(THINKING_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(seed)
    texts: list[str] = ["user", "assistant", "system"] * 100
    for _ in range(4000):
        scene = draw_scene(rng, difficulty=0.5)
        texts.extend(perceive(scene, rng))
        for family in FAMILIES:
            question = ask(scene, family, rng)
            if question is not None:
                texts.extend(
                    (question.text, respond(scene, question, rng).replace("<think>", "").replace("</think>", ""))
                )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """The architecture, with random weights from torch's global generator."""
    ids = {token: tokenizer.get_vocab()[token] for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_heads": 5,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 192,
            "num_position_embeddings": (SIZE // PATCH) ** 2,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    model.model.visual.config._attn_implementation = vision_attention.NAME
    return model


@dataclass(frozen=True, eq=False)
class SupervisedBatch:
    """Rows of one picture and several questions each; B rows of L tokens."""

    pictures: Tensor
    """uint8 (B, 3, H, W)."""
    input_ids: Tensor
    """int64 (B, L)."""
    positions: Tensor
    """int64 (B, L): text positions; the picture's own mRoPE positions replace those of its tokens."""
    segment: Tensor
    """int64 (B, L): 0 for the picture's prefix, 1.. for each question, -1 for padding."""
    is_target: Tensor
    """bool (B, L): tokens that are predicted, those of the responses."""


class Lessons(IterableDataset[SupervisedBatch]):
    """The batches of one phase from a given step on, each drawn from (seed, phase, step) alone."""

    def __init__(
        self, config: BundledVLMConfig, tokenizer: PreTrainedTokenizerFast, phase: int, first_step: int
    ) -> None:
        self.config, self.tokenizer, self.phase, self.first_step = config, tokenizer, phase, first_step
        self.num_steps = (config.perception_steps, config.reasoning_steps)[phase]
        self.num_pictures = (config.perception_pictures, config.reasoning_pictures)[phase]

    def __iter__(self) -> Iterator[SupervisedBatch]:
        for step in range(self.first_step, self.num_steps):
            rng = np.random.default_rng((self.config.seed, self.phase, step))
            # Perception starts with easy pictures: the first thing to find out is that the picture matters.
            hardest = min(1.0, 0.3 + step / 600) if self.phase == 0 else 1.0
            yield self._batch(rng, hardest)

    def _batch(self, rng: np.random.Generator, hardest: float) -> SupervisedBatch:
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        prefix = encode("<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>")
        start = prefix_end(prefix, self.tokenizer)
        pictures, rows = [], []
        for _ in range(self.num_pictures):
            scene = draw_scene(rng, difficulty=float(rng.uniform(0, hardest)))
            pictures.append(render(scene))
            ids, positions, segments, targets = (
                list(prefix),
                [0] * len(prefix),
                [0] * len(prefix),
                [False] * len(prefix),
            )
            for number in range(1, self.config.questions + 1):
                text, answer = self._lesson(scene, rng)
                asked = encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
                answered = encode(f"{answer}<|im_end|>")
                ids += asked + answered
                positions += range(start, start + len(asked) + len(answered))
                segments += [number] * (len(asked) + len(answered))
                targets += [False] * len(asked) + [True] * len(answered)
            rows.append((ids, positions, segments, targets))
        length = math.ceil(max(len(row[0]) for row in rows) / 16) * 16
        pad = int(self.tokenizer.pad_token_id)
        columns = [
            torch.tensor([list(row[i]) + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate((pad, 0, -1, False))
        ]
        return SupervisedBatch(torch.stack(pictures), *columns)

    def _lesson(self, scene: object, rng: np.random.Generator) -> tuple[str, str]:
        if self.phase == 0 or rng.uniform() < self.config.perception_share:
            return perceive(scene, rng)  # type: ignore[arg-type]
        question = ask(scene, str(rng.choice(list(FAMILIES))), rng)  # type: ignore[arg-type]
        if question is None:
            return perceive(scene, rng)  # type: ignore[arg-type]
        return question.text, respond(scene, question, rng)  # type: ignore[arg-type]


def prefix_end(prefix: list[int], tokenizer: PreTrainedTokenizerFast) -> int:
    """The mRoPE position after the prefix: an n x n picture advances positions by n, not by n squared."""
    return len(prefix) - NUM_IMAGE_TOKENS + math.isqrt(NUM_IMAGE_TOKENS)


def supervised_loss(model: Qwen3VLForConditionalGeneration, batch: SupervisedBatch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the response tokens, and the share predicted right (greedy, teacher-forced)."""
    device = next(model.parameters()).device
    ids, segment = batch.input_ids.to(device), batch.segment.to(device)
    pixel_values, grid_thw = pixels_to_patches(list(batch.pictures.to(device).float() / 255), SETTINGS)
    # Everyone sees the picture's prefix and its own segment, causally.
    index = torch.arange(ids.shape[1], device=device)
    same = segment[:, :, None] == segment[:, None, :]
    mask = (same | (segment[:, None, :] == 0)) & (index[None, :, None] >= index[None, None, :])
    hidden = model.model(
        input_ids=ids,
        pixel_values=pixel_values,
        image_grid_thw=grid_thw,
        position_ids=_mrope(batch, model.config.image_token_id).to(device),
        attention_mask=mask[:, None],
        use_cache=False,
    ).last_hidden_state
    # Within a segment the token before a target predicts it; a response's first token follows its question.
    is_target = batch.is_target.to(device)[:, 1:]
    logits = model.lm_head(hidden[:, :-1][is_target]).float()
    targets = ids[:, 1:][is_target]
    return cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


def _mrope(batch: SupervisedBatch, image_token_id: int) -> Tensor:
    """Positions (3, B, L) on the time, height and width axes."""
    positions = batch.positions.expand(3, -1, -1).clone()
    side = math.isqrt(NUM_IMAGE_TOKENS)
    is_prefix = batch.segment[0] == 0
    is_image = batch.input_ids[0] == image_token_id
    before = int(is_image.nonzero()[0])
    prefix = torch.arange(before).expand(3, -1)
    cell = torch.arange(NUM_IMAGE_TOKENS)
    image = before + torch.stack([torch.zeros_like(cell), cell // side, cell % side])
    after = before + side + torch.arange(int(is_prefix.sum()) - before - NUM_IMAGE_TOKENS)
    positions[:, :, : int(is_prefix.sum())] = torch.cat([prefix, image, after.expand(3, -1)], dim=1)[:, None]
    return positions


def _optimizers(model: nn.Module, config: BundledVLMConfig) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on everything else."""
    blocks = {
        id(p)
        for name, p in model.named_parameters()
        if p.ndim == 2 and ("layers." in name or "blocks." in name or "merger" in name)
    }
    inner = [p for p in model.parameters() if id(p) in blocks]
    outer = [p for p in model.parameters() if id(p) not in blocks]
    return [
        torch.optim.Muon(inner, lr=config.muon_learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(outer, lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _rate(step: int, num_steps: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear up, flat, linear down to a twentieth over the last 40 percent."""
    left = (num_steps - step) / (0.4 * num_steps)
    return min(1.0, (step + 1) / warmup, max(0.05, left))


def train_bundled_vlm(config: BundledVLMConfig) -> Path:
    """Run the recipe, or go on with it where it was stopped; returns the model's folder."""
    config.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.to(torch.device(config.device))  # type: ignore[arg-type]
    state_path = config.out / "state.pt"
    state: dict[str, Any] = {"phase": 0, "step": 0}
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=config.device)
    for phase in range(state["phase"], 2):
        optimizers = _optimizers(model, config)
        first = state["step"] if phase == state["phase"] else 0
        if "model" in state:
            model.load_state_dict(state["model"])
            if first:
                for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)
        _train_phase(config, model, tokenizer, optimizers, phase, first)
        state = {"phase": phase, "step": 0}
    return export(model, tokenizer, config.out / "model")


def _train_phase(
    config: BundledVLMConfig,
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[torch.optim.Optimizer],
    phase: int,
    first_step: int,
) -> None:
    lessons = Lessons(config, tokenizer, phase, first_step)
    base_rates = [
        group["initial_lr"] if "initial_lr" in group else group["lr"] for o in optimizers for group in o.param_groups
    ]
    started = time.perf_counter()
    for step, batch in enumerate(DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4), first_step):
        factor = _rate(step, lessons.num_steps, config.warmup_steps)
        for group, rate in zip((g for o in optimizers for g in o.param_groups), base_rates, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor
        with torch.autocast(config.device, torch.bfloat16):
            loss, accuracy = supervised_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 25 == 0 or done == lessons.num_steps:
            record = {
                "phase": phase, "step": done, "loss": loss.item(), "token_accuracy": accuracy.item(),
                "seconds_per_step": (time.perf_counter() - started) / (done - first_step),
            }  # fmt: skip
            with open(config.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        if done % config.save_every == 0 or done == lessons.num_steps:
            _save_state(config.out, model, optimizers, phase, done)


def _save_state(out: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], phase: int, step: int) -> None:
    state = {
        "phase": phase,
        "step": step,
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, out / "state.tmp")
    (out / "state.tmp").replace(out / "state.pt")


def export(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write a standard Hugging Face folder with bf16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.config.dtype = "bfloat16"
    model.config.architectures = ["Qwen3VLForConditionalGeneration"]
    model.config.save_pretrained(folder)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 64 * 64, "longest_edge": 192 * 192},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": list(SETTINGS.mean),
        "image_std": list(SETTINGS.std),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    generation = {
        "do_sample": True,
        "temperature": 1.0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return folder
