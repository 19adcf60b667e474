"""How the bundled VLM is made: a tiny Qwen3-VL trained from scratch on generated scenes.

Four phases, each with a reason (figures in ``docs/bundled_vlm.md``):

1. *See*: the vision tower alone. Each image token tells whether an object's centre lies in its cell, and the object's
   colour, shape and place. Dense labels without the cost of a language model: shapes are learned many times faster than
   through words. The loss stays on, at a small weight, in the phases that follow.
2. *Describe*: the whole model describes pictures in one fixed order and looks up places and names. A tiny model that is
   shown reasoning first stays blind: guessing costs it less than learning to see.
3. *Reason*: the question families in four styles of varied wording, with some description kept in.
4. *Sharpen*: the same with half of the questions on relations, which are learned last: to find an object by colour and
   shape together, twice, takes the longest.

Several questions about one picture share one row: the picture, most of the cost, is encoded once for all of them.

Every batch is drawn from (seed, step) and the state is saved regularly, so a run that was stopped goes on where it was
and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
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
from sparring.data.scenes.world import COLOURS, GRID, SHAPES, SIZE, Scene, draw_scene, render
from sparring.models import vision_attention
from sparring.models.preprocess import PatchSettings, pixels_to_patches
from sparring.provenance import append_jsonl

PATCH, MERGE = 8, 2
SETTINGS = PatchSettings(PATCH, MERGE, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM_IMAGE_TOKENS = (SIZE // (PATCH * MERGE)) ** 2
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
THINKING_TOKENS = ("<think>", "</think>")
VOCABULARY = 1024
WIDTH = 192
"""Width of the language model, and of what the vision tower hands to it."""
SEE, DESCRIBE, REASON, SHARPEN = range(4)
SHARPEN_SHARES = {"counting": 0.3, "relation": 0.5, "attribute": 0.2}
"""Share of each family in the last phase; before it they are equal."""
NONE = -100
"""Label of a property that a cell does not have; ignored by the loss."""
CELL_CLASSES = (2, len(COLOURS), len(SHAPES), GRID, GRID)
"""Number of values of each property of a cell."""

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
    steps: tuple[int, int, int, int] = (800, 450, 900, 700)
    """Optimizer steps of each phase."""
    pictures: tuple[int, int, int, int] = (48, 24, 16, 16)
    """Pictures per step of each phase."""
    questions: int = 6
    """Questions per picture in the phases with language; all of one picture share one row."""
    description_share: float = 0.15
    """Share of descriptions among the questions of the third and fourth phase, in [0, 1]."""
    seeing_weight: float = 0.3
    """Weight of the first phase's loss in the others, >= 0."""
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
            "hidden_size": WIDTH,
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
            "out_hidden_size": WIDTH,
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
    cells: Tensor
    """int64 (B, image tokens, 5): whether an object's centre is there, its colour, shape, column and row, or NONE."""
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
        self.num_steps = config.steps[phase]

    def __iter__(self) -> Iterator[SupervisedBatch]:
        for step in range(self.first_step, self.num_steps):
            rng = np.random.default_rng((self.config.seed, self.phase, step))
            # Seeing starts with easy pictures: the first thing to find out is that the picture matters.
            hardest = min(1.0, 0.3 + step / 600) if self.phase == SEE else 1.0
            num_pictures = self.config.pictures[self.phase]
            yield self._batch(
                [draw_scene(rng, difficulty=float(rng.uniform(0, hardest))) for _ in range(num_pictures)], rng
            )

    def _batch(self, scenes: Sequence[Scene], rng: np.random.Generator) -> SupervisedBatch:
        rows = [self._row(scene, rng) for scene in scenes]
        length = math.ceil(max(len(row[0]) for row in rows) / 16) * 16
        pad = int(self.tokenizer.pad_token_id)
        columns = [
            torch.tensor([list(row[i]) + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate((pad, 0, -1, False))
        ]
        pictures = torch.stack([render(scene) for scene in scenes])
        return SupervisedBatch(pictures, torch.stack([cell_labels(scene) for scene in scenes]), *columns)

    def _row(self, scene: Scene, rng: np.random.Generator) -> tuple[list[int], list[int], list[int], list[bool]]:
        """Token ids, text positions, segments and targets of one picture's row."""
        ids = self._encode("<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>")
        start = prefix_end(ids)
        positions, segments, targets = [0] * len(ids), [0] * len(ids), [False] * len(ids)
        for number in range(1, (self.config.questions if self.phase != SEE else 0) + 1):
            text, answer = self._lesson(scene, rng)
            asked = self._encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
            answered = self._encode(f"{answer}<|im_end|>")
            ids += asked + answered
            positions += range(start, start + len(asked) + len(answered))
            segments += [number] * (len(asked) + len(answered))
            targets += [False] * len(asked) + [True] * len(answered)
        return ids, positions, segments, targets

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _lesson(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        if self.phase == DESCRIBE or rng.uniform() < self.config.description_share:
            return perceive(scene, rng)
        shares = [SHARPEN_SHARES[family] for family in FAMILIES] if self.phase == SHARPEN else None
        question = ask(scene, str(rng.choice(list(FAMILIES), p=shares)), rng)
        return perceive(scene, rng) if question is None else (question.text, respond(scene, question, rng))


def cell_labels(scene: Scene) -> Tensor:
    """What each image token should see, int64 (image tokens, 5); of two centres in a cell the first drawn counts."""
    labels = torch.full((NUM_IMAGE_TOKENS, 5), NONE)
    labels[:, 0] = 0
    side = PATCH * MERGE
    for thing in reversed(scene.things):
        cell = int(thing.y / side) * (SIZE // side) + int(thing.x / side)
        colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
        labels[cell] = torch.tensor([1, colour, shape, thing.column, thing.row])
    return labels


def prefix_end(prefix: Sequence[int]) -> int:
    """The mRoPE position after the prefix: an n x n picture advances positions by n, not by n squared."""
    return len(prefix) - NUM_IMAGE_TOKENS + math.isqrt(NUM_IMAGE_TOKENS)


def seeing_loss(features: Tensor, head: nn.Linear, cells: Tensor) -> Tensor:
    """Mean cross-entropy of what is in each cell, and, where an object is, of its four properties.

    Args:
        features: (B * image tokens, D), the vision tower's output.
        head: from D to the logits of all five properties side by side.
        cells: as in `SupervisedBatch`.
    """
    labels = cells.flatten(0, 1).to(features.device)
    logits = head(features).float().split(CELL_CLASSES, dim=-1)
    losses = [cross_entropy(logits[i], labels[:, i], ignore_index=NONE) for i in range(len(CELL_CLASSES))]
    return torch.stack(losses).sum()


def supervised_loss(
    model: Qwen3VLForConditionalGeneration, head: nn.Linear, batch: SupervisedBatch, *, seeing_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the response tokens plus the seeing loss; and the share of tokens predicted right.

    A batch without responses (the first phase) has the seeing loss alone, whatever its weight, and a share of 0.
    """
    device = model.device
    pixel_values, grid_thw = pixels_to_patches(list(batch.pictures.to(device).float() / 255), SETTINGS)
    seen: Any = model.model.visual(pixel_values, grid_thw=grid_thw)
    seeing = seeing_loss(seen.pooler_output, head, batch.cells)
    if not batch.is_target.any():
        return seeing, seeing.new_zeros(())
    ids, segment = batch.input_ids.to(device), batch.segment.to(device)
    # Everyone sees the picture's prefix and its own segment, causally.
    index = torch.arange(ids.shape[1], device=device)
    same = segment[:, :, None] == segment[:, None, :]
    mask = (same | (segment[:, None, :] == 0)) & (index[None, :, None] >= index[None, None, :])
    is_image = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids)
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(is_image[..., None], seen.pooler_output.to(embeds.dtype)),
        position_ids=_mrope(batch, model.config.image_token_id).to(device),
        attention_mask=mask[:, None],
        visual_pos_masks=is_image,
        deepstack_visual_embeds=seen.deepstack_features,
        use_cache=False,
    ).last_hidden_state
    # Within a segment the token before a target predicts it; a response's first token follows its question.
    is_target = batch.is_target.to(device)[:, 1:]
    logits = model.lm_head(hidden[:, :-1][is_target]).float()
    targets = ids[:, 1:][is_target]
    loss = cross_entropy(logits, targets) + seeing_weight * seeing
    return loss, (logits.argmax(-1) == targets).float().mean()


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


def _optimizers(modules: nn.Module, config: BundledVLMConfig) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on everything else."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        is_inner = parameter.ndim == 2 and any(part in name for part in ("layers.", "blocks.", "merger"))
        (inner if is_inner else outer).append(parameter)
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
    tokenizer = _saved_tokenizer(config.out / "tokenizer")
    model = build_model(tokenizer)
    modules = nn.ModuleDict({"model": model, "head": nn.Linear(WIDTH, sum(CELL_CLASSES))})
    modules.to(config.device)
    state_path = config.out / "state.pt"
    state: dict[str, Any] = {"phase": SEE, "step": 0}
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=config.device)
        modules.load_state_dict(state["modules"])
    for phase in range(state["phase"], len(config.steps)):
        first = state["step"] if phase == state["phase"] else 0
        optimizers = _optimizers(modules, config)
        if first:
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        _train_phase(config, modules, tokenizer, optimizers, phase, first)
    return export(model, tokenizer, config.out / "model")


def _saved_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The run's own tokenizer: built once, because the texts that it is built from may change under a stopped run."""
    if not folder.exists():
        build_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _train_phase(
    config: BundledVLMConfig,
    modules: nn.ModuleDict,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[torch.optim.Optimizer],
    phase: int,
    first_step: int,
) -> None:
    lessons = Lessons(config, tokenizer, phase, first_step)
    peaks = [(group, group.setdefault("initial_lr", group["lr"])) for o in optimizers for group in o.param_groups]
    model: Any = modules["model"]
    head: Any = modules["head"]
    started = time.perf_counter()
    for step, batch in enumerate(DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4), first_step):
        for group, peak in peaks:
            group["lr"] = peak * _rate(step, lessons.num_steps, config.warmup_steps)
        with torch.autocast(config.device, torch.bfloat16):
            loss, accuracy = supervised_loss(model, head, batch, seeing_weight=config.seeing_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 25 == 0 or done == lessons.num_steps:
            record = {
                "phase": phase, "step": done, "loss": loss.item(), "token_accuracy": accuracy.item(),
                "seconds_per_step": (time.perf_counter() - started) / (done - first_step),
            }  # fmt: skip
            append_jsonl(config.out / "metrics.jsonl", record)
        if done % config.save_every == 0 or done == lessons.num_steps:
            state = {
                "phase": phase, "step": done, "modules": modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }  # fmt: skip
            torch.save(state, config.out / "state.tmp")
            (config.out / "state.tmp").replace(config.out / "state.pt")


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
