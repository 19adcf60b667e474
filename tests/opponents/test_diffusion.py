"""The editor and its training on tiny random pipelines of diffusers' own classes (see tiny_editors.py).

No real weights are loaded here: what is shown is that our parts do what the pipelines do, that log-probabilities and
gradients are those of what was sampled, and that a reward is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from PIL import Image

from sparring.errors import UserError
from sparring.models.peft import without_adapters
from sparring.opponents.diffusion import DiffusionEditor, FlowGRPO, Trajectories, distractor_prompt
from sparring.opponents.flow_grpo import FlowGRPOConfig, Sampling, step_loss_N
from tiny_editors import picture, tiny_kontext, tiny_qwen_edit

KONTEXT, QWEN = "kontext", "qwen"
PIPELINES: dict[str, Callable[[], Any]] = {KONTEXT: tiny_kontext, QWEN: tiny_qwen_edit}
PROMPTS = ["add a small cat", "add a dog beside the old red house"]


def tiny_config(**changes: Any) -> FlowGRPOConfig:
    sampling = Sampling(num_steps=4, noise_level=0.9, guidance=changes.pop("guidance", 4.0), resolution=32)
    small = {"lora_rank": 4, "lora_alpha": 8.0, "group_size": 4, "batch_size": 2, "gradient_checkpointing": False}
    return FlowGRPOConfig(sampling=sampling, **{**small, **changes})


def tiny_editor(name: str, *, is_trained: bool = True, **changes: Any) -> DiffusionEditor:
    """With ``is_trained`` adapters that change what the network says."""
    editor = DiffusionEditor(PIPELINES[name](), tiny_config(**changes))
    if name == KONTEXT:
        editor.parts.max_text_tokens = 24  # type: ignore[attr-defined]
    if is_trained:
        move(editor, 0.2, seed=5)
    return editor


def move(editor: DiffusionEditor, size: float, seed: int) -> list[Tensor]:
    """Add random numbers to all adapters; returns what was added."""
    draws = torch.Generator().manual_seed(seed)
    added = [size * torch.randn(parameter.shape, generator=draws) for parameter in editor.trained]
    with torch.no_grad():
        for parameter, change in zip(editor.trained, added, strict=True):
            parameter += change
    return added


def gradient_of(value: Tensor, editor: DiffusionEditor) -> tuple[Tensor, ...]:
    """For every adapter; zero where Qwen's last block computes text that nothing reads."""
    return torch.autograd.grad(value, editor.trained, materialize_grads=True, allow_unused=True)


def two_edits(editor: DiffusionEditor, sampling: Sampling | None = None) -> Trajectories:
    return editor.edit([picture(), picture(seed=1)], PROMPTS, [11, 12], sampling)


@pytest.mark.parametrize(("name", "guidance"), [(KONTEXT, 2.5), (KONTEXT, 1.0), (QWEN, 4.0), (QWEN, 1.0)])
def test_rescored_logprobs_are_those_of_sampling(name: str, guidance: float) -> None:
    editor = tiny_editor(name, guidance=guidance)
    sampled = two_edits(editor)
    assert sampled.logprobs_NS.shape == (2, 3)
    rescored = editor.rescore(sampled)
    assert rescored.requires_grad
    torch.testing.assert_close(rescored.detach(), sampled.logprobs_NS, rtol=0, atol=1e-6)
    move(editor, 0.05, seed=6)
    assert (editor.rescore(sampled) - sampled.logprobs_NS).abs().min() > 1e-6


def test_guidance_matters_and_is_true_guidance_only_for_qwen() -> None:
    for name, guided in ((KONTEXT, 2.5), (QWEN, 4.0)):
        editor = tiny_editor(name)
        plain, strong = (replace(editor.config.sampling, guidance=g) for g in (1.0, guided))
        assert (two_edits(editor, plain).latents_NSLC - two_edits(editor, strong).latents_NSLC).abs().max() > 1e-3
        assert ("no_text" in two_edits(editor, strong).condition) == (name == QWEN)
        assert "no_text" not in two_edits(editor, plain).condition


@pytest.mark.parametrize("name", PIPELINES)
def test_prompt_and_picture_matter(name: str) -> None:
    editor = tiny_editor(name)
    base, other_prompt, other_picture = (
        editor.edit([image], [prompt], [1]).latents_NSLC
        for image, prompt in ((picture(), PROMPTS[0]), (picture(), PROMPTS[1]), (picture(seed=1), PROMPTS[0]))
    )
    assert (base - other_prompt).abs().max() > 1e-4
    assert (base - other_picture).abs().max() > 1e-4


def run_pipeline(name: str, pipeline: Any, source: Image.Image, prompt: str, seed: int, output: str) -> Any:
    """The pipeline's own call, at the size of the source."""
    shared = {
        "image": source,
        "prompt": prompt,
        "height": source.height,
        "width": source.width,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": output,
    }
    pipeline.set_progress_bar_config(disable=True)
    if name == KONTEXT:
        area = source.height * source.width
        fixed = {"max_area": area, "_auto_resize": False, "max_sequence_length": 24}
        return pipeline(guidance_scale=4.0, **fixed, **shared).images
    return pipeline(true_cfg_scale=4.0, negative_prompt=" ", **shared).images


@pytest.mark.parametrize("name", PIPELINES)
def test_without_noise_an_edit_is_the_pipelines_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """State for state at the end, and pixel for pixel; adapters are in place in both."""
    editor = tiny_editor(name)
    image = picture(32, 32)
    source = Image.fromarray(image.permute(1, 2, 0).numpy())
    # Qwen's pipeline edits at one megapixel and has no argument for it.
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: (32, 32, None))
    edited = editor.edit([image], [PROMPTS[1]], [7], replace(editor.config.sampling, noise_level=0.0))
    assert edited.logprobs_NS.shape == (1, 0)
    latents = run_pipeline(name, editor.parts.pipeline, source, PROMPTS[1], 7, "latent")
    torch.testing.assert_close(edited.latents_NSLC[:, -1], latents, rtol=1e-5, atol=1e-5)
    pixels = run_pipeline(name, editor.parts.pipeline, source, PROMPTS[1], 7, "np")[0]
    expected = torch.from_numpy(pixels).permute(2, 0, 1) * 255
    assert (edited.images[0].float() - expected).abs().max() <= 0.51


@pytest.mark.parametrize("name", PIPELINES)
def test_an_edit_does_not_depend_on_its_batch(name: str) -> None:
    """Noise comes from its own seed, and a shorter prompt's padding is not read."""
    editor = tiny_editor(name)
    both = two_edits(editor)
    alone = [editor.edit([picture(seed=i)], [PROMPTS[i]], [11 + i]) for i in (0, 1)]
    torch.testing.assert_close(both.latents_NSLC, torch.cat([one.latents_NSLC for one in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.logprobs_NS, torch.cat([one.logprobs_NS for one in alone]), rtol=0, atol=1e-5)


def test_the_last_step_has_no_noise() -> None:
    editor = tiny_editor(KONTEXT)
    edited = two_edits(editor)
    velocity = editor.parts.velocity(edited.latents_NSLC[:, -2], edited.times[-2], edited.condition, 4.0)
    expected = edited.latents_NSLC[:, -2] - edited.times[-2] * velocity
    torch.testing.assert_close(edited.latents_NSLC[:, -1], expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("shape", [(32, 48), (37, 21), (100, 64)])
def test_pictures_keep_their_size(name: str, shape: tuple[int, int]) -> None:
    edited = tiny_editor(name).edit([picture(*shape)], PROMPTS[:1], [1])
    assert edited.images[0].shape == (3, *shape)
    assert edited.images[0].dtype == torch.uint8
    assert edited.failures == (None,)


def test_pictures_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="give those of one shape"):
        tiny_editor(KONTEXT).edit([picture(32, 64), picture(64, 32)], PROMPTS, [1, 2])


def test_edits_keep_area_and_proportions() -> None:
    parts = tiny_editor(QWEN).parts
    assert parts.edit_size(480, 640, 512) == (448, 592)
    assert parts.edit_size(10, 1000, 64) == (16, 640)


@pytest.mark.parametrize("name", PIPELINES)
def test_kl_is_to_the_network_without_adapters(name: str) -> None:
    editor = tiny_editor(name, is_trained=False)
    edited = two_edits(editor)
    assert editor.rescore_step(edited, 1, with_kl=True)[1].tolist() == [0, 0]
    move(editor, 0.2, seed=5)
    found = editor.rescore_step(edited, 1, with_kl=True)[1]
    t, next_t = edited.times[1:3]
    velocity = [editor.parts.velocity(edited.latents_NSLC[:, 1], t, edited.condition, 4.0)]
    with without_adapters(editor.parts.transformer):
        velocity.append(editor.parts.velocity(edited.latents_NSLC[:, 1], t, edited.condition, 4.0))
    sigma = 0.9 * (t / (1 - t)) ** 0.5
    factor = (t - next_t) / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma) ** 2
    expected = factor * (velocity[0] - velocity[1]).square().mean(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-8)
    assert (found > 1e-6).all()


@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Of surrogate and KL along a random direction of all adapters, through transformer, guidance and step."""
    editor = tiny_editor(name)
    edited = two_edits(editor)
    move(editor, 0.02, seed=6)
    advantage = torch.tensor([1.0, -2.0])

    def losses() -> Tensor:
        new, kl = editor.rescore_step(edited, 1, with_kl=True)
        old = edited.logprobs_NS[:, 1]
        surrogate = step_loss_N(new, old, advantage, None, clip_range=0.5, kl_coefficient=0.0)
        return torch.stack([surrogate.sum(), kl.sum()])

    gradients = [gradient_of(losses()[part], editor) for part in (0, 1)]
    size = 2e-3
    direction = [change / size for change in move(editor, size, seed=7)]
    above = losses().detach()
    with torch.no_grad():
        for parameter, along in zip(editor.trained, direction, strict=True):
            parameter -= 2 * size * along
    difference = (above - losses().detach()) / (2 * size)
    for part in (0, 1):
        slope = sum(float((g * d).sum()) for g, d in zip(gradients[part], direction, strict=True))
        assert slope == pytest.approx(float(difference[part]), rel=0.02)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("name", PIPELINES)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    editor = tiny_editor(name)
    edited = two_edits(editor)
    plain = gradient_of(editor.rescore(edited).sum(), editor)
    editor.parts.transformer.enable_gradient_checkpointing()
    for one, other in zip(plain, gradient_of(editor.rescore(edited).sum(), editor), strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_networks_train_float32_adapters() -> None:
    pipeline = tiny_kontext().to(torch.bfloat16)
    editor = DiffusionEditor(pipeline, tiny_config())
    assert {parameter.dtype for parameter in editor.trained} == {torch.float32}
    move(editor, 0.2, seed=5)
    edited = two_edits(editor)
    assert edited.latents_NSLC.dtype == edited.logprobs_NS.dtype == torch.float32
    torch.testing.assert_close(editor.rescore(edited).detach(), edited.logprobs_NS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PIPELINES)
def test_adapters_are_on_attention_and_mlps(name: str) -> None:
    layers = {key.rsplit(".lora_", 1)[0] for key in tiny_editor(name).weights()}
    linear = {
        key
        for key, part in PIPELINES[name]().transformer.named_modules()
        if isinstance(part, torch.nn.Linear) and "transformer_blocks" in key and "norm" not in key and "mod" not in key
    }
    # The official list for Kontext leaves the single blocks' joint output out.
    assert layers == {key for key in linear if "single" not in key or "proj_out" not in key}


def test_saved_adapters_are_read_by_another_editor_and_by_the_plain_pipeline(tmp_path: Path) -> None:
    for name in PIPELINES:
        editor = tiny_editor(name)
        without_noise = replace(editor.config.sampling, noise_level=0.0)
        expected = two_edits(editor, without_noise).latents_NSLC
        editor.save(tmp_path / name)
        other = tiny_editor(name, is_trained=False)
        assert (two_edits(other, without_noise).latents_NSLC - expected).abs().max() > 1e-3
        other.load(tmp_path / name)
        torch.testing.assert_close(two_edits(other, without_noise).latents_NSLC, expected, rtol=0, atol=0)
        plain = PIPELINES[name]()
        plain.load_lora_weights(tmp_path / name)
        x, condition = two_edits(editor).latents_NSLC[:, 0], two_edits(editor).condition
        with torch.no_grad():
            ours = editor.parts.velocity(x, 0.9, condition, 4.0)
            editor.parts.transformer = plain.transformer
            torch.testing.assert_close(editor.parts.velocity(x, 0.9, condition, 4.0), ours, rtol=1e-5, atol=1e-5)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a folder that an editor was saved to"):
        tiny_editor(KONTEXT).load(tmp_path)
    tiny_editor(KONTEXT).save(tmp_path)
    with pytest.raises(UserError, match=r"lora_alpha 8\.0, not 4\.0"):
        tiny_editor(KONTEXT, lora_alpha=4.0).load(tmp_path)
    with pytest.raises(UserError, match=r"do not fit this editor: adapter weight .* has shape"):
        tiny_editor(KONTEXT, lora_rank=2).load(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "predicts noise and is no flow"),
        ("QwenImageEditPlusPipeline", "is not supported as an editor"),
        ("FluxKontextInpaintPipeline", "is not supported as an editor"),
        ("FluxPipeline", "is not supported as an editor"),
    ],
)
def test_other_pipelines_are_refused_by_name(name: str, reason: str) -> None:
    pipeline = object.__new__(getattr(diffusers, name))
    with pytest.raises(UserError, match=f"{name} {reason}.*load QwenImageEditPipeline or FluxKontextPipeline"):
        DiffusionEditor(pipeline, tiny_config())


def spoil_second_row(editor: DiffusionEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step of sampling on, the second picture of a batch has no finite velocity."""
    original = editor.parts.velocity

    def velocity(x: Tensor, t: float, *rest: Any) -> Tensor:
        found = original(x, t, *rest)
        return found if t == 1 else torch.cat([found[:1], found[1:] * torch.nan])

    monkeypatch.setattr(editor.parts, "velocity", velocity)


@pytest.mark.parametrize("name", PIPELINES)
def test_states_that_are_not_finite_are_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tiny_editor(name)
    with monkeypatch.context() as patched:
        spoil_second_row(editor, patched)
        edited = two_edits(editor)
    assert edited.failures == (None, "not_finite")
    assert edited.images[1].shape == (3, 32, 48) and not edited.images[1].any()
    assert edited.images[0].any()
    # The failed one's reward counts in its group, its steps do not.
    trainer = FlowGRPO(editor)
    metrics = trainer.update([edited], torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    assert metrics["failed"] == 0.5 and metrics["grad_norm"] > 0 and metrics["optimizer_steps"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(parameter).all() for parameter in editor.trained)


def test_a_batch_without_finite_states_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tiny_editor(KONTEXT, kl_coefficient=0.1)
    monkeypatch.setattr(editor.parts, "velocity", lambda x, *rest: x * torch.nan)
    edited = two_edits(editor)
    assert edited.failures == ("not_finite", "not_finite")
    metrics = FlowGRPO(editor).update([edited], torch.tensor([0.5, 0.0]), torch.tensor([0, 0]))
    assert metrics == {"optimizer_steps": 0, "groups_without_signal": 0, "failed": 1}


def test_a_picture_of_one_colour_is_data() -> None:
    editor = tiny_editor(KONTEXT)
    torch.nn.init.zeros_(editor.parts.pipeline.vae.decoder.conv_out.weight)
    torch.nn.init.constant_(editor.parts.pipeline.vae.decoder.conv_out.bias, -3.0)
    edited = two_edits(editor)
    assert edited.failures == ("one_colour", "one_colour")
    assert not edited.images[0].any()


def test_a_log_probability_that_is_not_finite_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tiny_editor(KONTEXT)
    trainer = FlowGRPO(editor)
    edited = two_edits(editor)
    before = [parameter.clone() for parameter in editor.trained]
    original = editor.parts.velocity

    def velocity(x: Tensor, t: float, *rest: Any) -> Tensor:
        return original(x, t, *rest) * (torch.nan if t == edited.times[1] else 1)

    monkeypatch.setattr(editor.parts, "velocity", velocity)
    with pytest.raises(FloatingPointError, match=rf"denoising step 1 \(t={edited.times[1]:.3f}\) is not finite"):
        trainer.update([edited], torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    assert all(torch.equal(a, b) for a, b in zip(before, editor.trained, strict=True))
    assert all(parameter.grad is None for parameter in editor.trained)


@pytest.mark.parametrize("name", PIPELINES)
def test_update_is_the_gradient_of_the_objective(name: str) -> None:
    """Loss, norm and ratios against plain autograd over all trajectories and steps at once, off policy, with KL."""
    editor = tiny_editor(name, kl_coefficient=0.3, clip_range=1e-4, num_minibatches=1, max_grad_norm=1e9)
    trainer = FlowGRPO(editor)
    batches = trainer.sample([picture()], PROMPTS[:1], [3])
    assert [len(batch) for batch in batches] == [2, 2]
    move(editor, 0.02, seed=6)
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.25])
    advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
    total, ratios, clipped = torch.zeros(()), [], 0
    for batch, advantage in zip(batches, advantages.split(2), strict=True):
        for step in range(3):
            new, kl = editor.rescore_step(batch, step, with_kl=True)
            ratio = (new - batch.logprobs_NS[:, step]).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - 1e-4, 1 + 1e-4) * advantage)
            total = total + (0.3 * kl - surrogate).sum() / 12
            ratios += ratio.tolist()
            clipped += int((((ratio > 1 + 1e-4) & (advantage > 0)) | ((ratio < 1 - 1e-4) & (advantage < 0))).sum())
    gradient = gradient_of(total, editor)
    metrics = trainer.update(batches, rewards)
    assert metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-4, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in gradient]).norm()), rel=1e-4)
    assert metrics["ratio"] == pytest.approx(sum(ratios) / 12, abs=1e-6)
    assert metrics["clip_fraction"] == pytest.approx(clipped / 12) and clipped > 0
    assert metrics["ratio/step_2"] == pytest.approx(sum(ratios[4:6] + ratios[10:12]) / 4, abs=1e-6)
    assert metrics["kl"] > 0 and metrics["groups_without_signal"] == 0


def test_update_leaves_the_frozen_network_alone_and_steps_per_minibatch() -> None:
    editor = tiny_editor(KONTEXT, num_minibatches=2, num_epochs=2)
    names = {name for name, parameter in editor.parts.transformer.named_parameters() if not parameter.requires_grad}
    frozen = {name: value.clone() for name, value in editor.parts.transformer.state_dict().items() if name in names}
    trainer = FlowGRPO(editor)
    metrics = trainer.update(trainer.sample([picture()], PROMPTS[:1], [3]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert metrics["optimizer_steps"] == 4
    after = editor.parts.transformer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


def test_equal_rewards_make_no_step() -> None:
    editor = tiny_editor(KONTEXT)
    trainer = FlowGRPO(editor)
    before = editor.weights()
    metrics = trainer.update(trainer.sample([picture()], PROMPTS[:1], [3]), torch.ones(4))
    assert metrics == {"optimizer_steps": 0, "groups_without_signal": 1, "failed": 0}
    assert all(torch.equal(value, before[name]) for name, value in editor.weights().items())


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        ([0.0], None, "give one for each"),
        ([0.0, float("nan")], None, "a reward is not finite"),
        ([0.0, 1.0], None, "2 edits are not groups of group_size=4"),
        ([0.0, 1.0], [0], "group_N has shape"),
    ],
)
def test_bad_rewards_are_refused(rewards: list[float], groups: list[int] | None, message: str) -> None:
    editor = tiny_editor(KONTEXT)
    group_N = None if groups is None else torch.tensor(groups)
    with pytest.raises(ValueError, match=message):
        FlowGRPO(editor).update([two_edits(editor)], torch.tensor(rewards), group_N)


def test_edits_of_the_ode_cannot_be_trained_on() -> None:
    editor = tiny_editor(KONTEXT)
    edited = two_edits(editor, replace(editor.config.sampling, noise_level=0.0))
    with pytest.raises(ValueError, match="a noise level above 0"):
        FlowGRPO(editor).update([edited], torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))


def test_a_resumed_trainer_goes_on_alike() -> None:
    def step(trainer: FlowGRPO, seed: int) -> None:
        trainer.update(trainer.sample([picture()], PROMPTS[:1], [seed]), torch.tensor([0.0, 1.0, 0.5, 0.0]))

    first = FlowGRPO(tiny_editor(KONTEXT))
    step(first, 1)
    state = first.state_dict()
    second = FlowGRPO(tiny_editor(KONTEXT, is_trained=False))
    second.load_state_dict(state)
    for trainer in (first, second):
        step(trainer, 2)
    for name, value in first.editor.weights().items():
        assert torch.equal(value, second.editor.weights()[name]), name


def redness(images: Sequence[Tensor]) -> Tensor:
    return torch.tensor([float(image[0].float().mean() - image[1:].float().mean()) / 255 for image in images])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_reward_is_learned(seed: int) -> None:
    """Redness of the picture: 12 updates of 32 edits move the mean of 32 by more than eight of its standard errors.

    ``-s`` prints the figures of docs/methods/aot_diffusion.md.
    """
    config = FlowGRPOConfig(
        sampling=Sampling(num_steps=5, noise_level=0.9, guidance=2.5, resolution=16),
        group_size=16,
        batch_size=16,
        clip_range=1e-2,
        learning_rate=1e-2,
        lora_rank=8,
        lora_alpha=16.0,
        gradient_checkpointing=False,
    )
    editor = DiffusionEditor(tiny_kontext(seed), config)
    editor.parts.max_text_tokens = 24  # type: ignore[attr-defined]
    trainer = FlowGRPO(editor)
    sources, prompts = [picture(16, 16, seed=number) for number in (0, 1)], ["make it red"] * 2

    def held_out() -> Tensor:
        return redness(editor.edit([sources[0]] * 32, prompts[:1] * 32, list(range(1000, 1032))).images)

    before = held_out()
    for update in range(12):
        batches = trainer.sample(sources, prompts, [1000 * seed + 2 * update + number for number in (0, 1)])
        trainer.update(batches, redness([image for batch in batches for image in batch.images]))
    after = held_out()
    print(f"\nredness, seed {seed}: {before.mean():.3f} -> {after.mean():.3f}, edits spread by {before.std():.3f}")
    assert after.mean() > before.mean() + 8 * before.std() / len(before) ** 0.5


def test_the_prompt_names_the_question_and_what_must_stay() -> None:
    prompt = distractor_prompt(" Is the cup left of the lamp?\n", ["cup", "lamp"])
    assert prompt.endswith("Question: Is the cup left of the lamp?")
    assert "Do not change, move, cover or copy these: cup, lamp." in prompt
    assert "Do not change" not in distractor_prompt("How many?")
