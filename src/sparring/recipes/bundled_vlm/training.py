"""The losses and the loop."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from sparring.models.preprocess import pixels_to_patches
from sparring.provenance import append_jsonl
from sparring.recipes.bundled_vlm.config import SEE, BundledVLMConfig
from sparring.recipes.bundled_vlm.lessons import CELL_CLASSES, NONE, Lessons, SupervisedBatch
from sparring.recipes.bundled_vlm.model import (
    NUM_IMAGE_TOKENS,
    SETTINGS,
    WIDTH,
    build_model,
    build_tokenizer,
    export,
)


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
