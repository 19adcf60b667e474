"""Adapters in place of all weights: what they change, what they leave, and that a plain model comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sparring.cli import main
from sparring.models.peft import AdapterConfig, plain_copy
from sparring.models.policy import Policy
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.types import Group, Score
from sparring.update import Minibatch, OptimConfig, Pass, Player, Tokens, update
from tiny_models import VARIANTS, tiny_group

BOTH = AdapterConfig(rank=3, alpha=6.0, towers=("language", "vision"))


def groups_for(policy: Policy) -> list[Group]:
    return [
        tiny_group(0, (3, 5), sizes=((16, 24),), processor=policy.processor),
        tiny_group(10, (4,), sizes=((8, 8), (24, 16)), processor=policy.processor),
        tiny_group(20, (2, 2), sizes=(), processor=policy.processor),
    ]


def logprobs(policy: Policy, groups: list[Group]) -> Tensor:
    return score(policy, groups, view="clean", temperature=1.0, token_budget=10_000).logprobs_T


def learned(policy: Policy, seed: int = 0) -> Policy:
    """The policy with adapters that have moved."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.module.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return policy


def adapted(folder: Path, config: AdapterConfig = BOTH) -> Policy:
    policy = Policy.load(folder)
    policy.add_adapters(config)
    return policy


def climb(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    return -(tokens["weight"] * scores.logprobs_T).sum(), {}


def step(policy: Policy, groups: list[Group], **optim: object) -> dict[str, float]:
    num = int(sum(rollout.token_ids.numel() for group in groups for rollout in group.rollouts))
    minibatch = Minibatch(tuple(groups), {"weight": torch.linspace(0.1, 1, num)})
    player = Player("policy", policy, OptimConfig(learning_rate=1e-2, **optim))  # type: ignore[arg-type]
    return dict(update(player, [Pass(minibatch, climb, "clean")], temperature=1.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_first_nothing_changes_and_then_a_plain_model_comes_out(
    tiny_folders: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    plain, policy = Policy.load(tiny_folders[variant]), adapted(tiny_folders[variant])
    groups = groups_for(plain)
    before = logprobs(plain, groups)
    assert torch.equal(logprobs(policy, groups), before)
    learned(policy)
    after = logprobs(policy, groups)
    assert (after - before).abs().max() > 1e-2
    policy.save(tmp_path)
    assert (
        load_file(tmp_path / "model.safetensors").keys()
        == load_file(tiny_folders[variant] / "model.safetensors").keys()
    )
    torch.testing.assert_close(logprobs(Policy.load(tmp_path), groups), after, atol=2e-5, rtol=1e-5)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    own = dict(Policy.load(tmp_path).module.vlm.named_parameters())
    assert all(torch.equal(weight, own[name]) for name, weight in reloaded.named_parameters())


def test_the_merged_weight_is_the_papers() -> None:
    """W + (alpha / rank) B A, by hand."""
    from torch import nn

    from sparring.models.peft import inject_adapters, merged_weight, merged_weights

    module = nn.Sequential()
    module.add_module("one", nn.Linear(2, 2))
    module.add_module("other", nn.Linear(2, 1))
    inject_adapters(module, ["one"], rank=1, alpha=3.0)
    with torch.no_grad():
        named = dict(module.named_parameters())
        named["one.base_layer.weight"].copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        named["one.lora_A.default.weight"].copy_(torch.tensor([[1.0, -1.0]]))
        named["one.lora_B.default.weight"].copy_(torch.tensor([[2.0], [0.5]]))
    expected = torch.tensor([[1 + 6.0, 2 - 6.0], [3 + 1.5, 4 - 1.5]])
    assert torch.equal(merged_weight(module.one), expected)
    assert torch.equal(merged_weight(module.other), module.other.weight)
    plain = merged_weights(module, dict(module.named_parameters()))
    assert list(plain) == ["one.weight", "one.bias", "other.weight", "other.bias"]
    assert torch.equal(plain["one.weight"], expected)


@pytest.mark.parametrize("towers", [("language",), ("vision",), ("language", "vision")])
def test_only_adapters_of_the_chosen_towers_learn(tiny_folder: Path, towers: tuple[str, ...]) -> None:
    policy = adapted(tiny_folder, AdapterConfig(rank=2, towers=towers))  # type: ignore[arg-type]
    decoder = {id(p) for p in policy.module.vlm.get_decoder().parameters()}
    trained = {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert {id(p) in decoder for p in trained.values()} == {tower == "language" for tower in towers}
    before = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    step(policy, groups_for(policy))
    moved = {name for name, p in policy.module.named_parameters() if not torch.equal(p, before[name])}
    # A moves with the second step only: at first B is 0.
    assert moved and moved <= trained.keys()
    assert {id(trained[name]) in decoder for name in moved} == {tower == "language" for tower in towers}


def test_the_reference_is_the_network_without_them(tiny_folder: Path) -> None:
    plain, policy = Policy.load(tiny_folder), adapted(tiny_folder)
    groups = groups_for(plain)
    reference = policy.clone_frozen()
    assert reference.module is policy.module, "no second copy"
    learned(policy)
    own = logprobs(policy, groups)
    assert torch.equal(logprobs(reference, groups), logprobs(plain, groups))
    assert torch.equal(logprobs(policy, groups), own), "they are back"
    assert step(policy, groups)["grad_norm"] > 0
    policy.reset_adapters()
    assert torch.equal(logprobs(policy, groups), logprobs(plain, groups))


def test_what_is_sampled_is_what_is_scored(tiny_folders: dict[str, Path]) -> None:
    """The step of decoding has the adapters merged, the scores have them beside the weights."""
    for variant in ("qwen3_vl", "smolvlm", "qwen2_vl-sliding", "internvl", "gemma3"):
        policy = learned(adapted(tiny_folders[variant]))
        groups = groups_for(policy)
        requests = [SampleRequest(group.problem, group.views["clean"], 3, 5) for group in groups]
        drawn = sample(policy, requests, SamplingConfig(max_new_tokens=8), max_rows=8)
        filled = [Group(g.problem, g.views, rollouts) for g, rollouts in zip(groups, drawn, strict=True)]
        sampled = torch.cat([rollout.sampler_logprobs for rollouts in drawn for rollout in rollouts])
        torch.testing.assert_close(logprobs(policy, filled), sampled, atol=3e-5, rtol=1e-5)


def test_a_checkpoint_keeps_the_adapters_alone(tiny_folder: Path) -> None:
    policy = learned(adapted(tiny_folder))
    groups = groups_for(policy)
    kept = policy.weights()
    assert kept and all(".lora_" in name for name in kept)
    other = adapted(tiny_folder)
    other.load_weights(kept)
    assert torch.equal(logprobs(other, groups), logprobs(policy, groups))


def test_a_copy_without_them_is_the_initial_network(tiny_folder: Path) -> None:
    policy = learned(adapted(tiny_folder))
    plain = dict(Policy.load(tiny_folder).module.vlm.named_parameters())
    copied = dict(plain_copy(policy.module.vlm).named_parameters())
    assert copied.keys() == plain.keys() and all(parameter.requires_grad for parameter in copied.values())
    assert all(torch.equal(parameter, plain[name]) for name, parameter in copied.items())


@pytest.mark.parametrize("has_adapters", [False, True])
def test_recomputing_activations_changes_memory_alone(tiny_folder: Path, has_adapters: bool) -> None:
    """One optimizer step ends at the same weights, and within the backward pass blocks run again."""
    ends, calls = [], []
    for recomputes in (False, True):
        policy = learned(adapted(tiny_folder)) if has_adapters else Policy.load(tiny_folder)
        counted: list[int] = []
        blocks = policy.module.vlm.get_decoder().layers
        blocks[0].input_layernorm.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        metrics = step(policy, groups_for(policy), recompute_activations=recomputes)
        ends.append((metrics, {n: p.detach().clone() for n, p in policy.module.named_parameters()}))
        calls.append(len(counted))
    assert calls[1] == 2 * calls[0]
    (metrics, weights), (again, others) = ends
    assert again == pytest.approx(metrics, rel=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank=-1 must be >= 0"),
        ({"alpha": 0.0}, "alpha=0.0 must be finite and > 0"),
        ({"towers": ()}, "name language, vision or both"),
        ({"towers": ("vision", "vision")}, "each once"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)  # type: ignore[arg-type]


SMALL = [
    "--adapters.rank", "4", "--optim.recompute-activations", "--evaluation.num-problems", "3", "--evaluation.threats",
    "clean", "--num-validation", "4", "--model.precision", "fp32", "--method.batch.prompts-per-step", "2",
    "--method.group-size", "2", "--sampling.max-new-tokens", "24", "--threads", "1", "--trainer.save-every", "1",
    "--optim.learning-rate", "1e-2",
]  # fmt: skip


def test_a_run_with_adapters_goes_on_and_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", "grpo", *SMALL, "--steps", "2", "--out", str(whole)]) == 0
    assert main(["train", "grpo", *SMALL, "--steps", "1", "--out", str(parts)]) == 0
    assert main(["train", "--resume", str(parts), "--steps", "2"]) == 0
    ends = [path / "checkpoints" / "step-000002" for path in (whole, parts)]
    policies = [load_file(end / "policy" / "model.safetensors") for end in ends]
    assert all(torch.equal(weight, policies[1][name]) for name, weight in policies[0].items())
    assert (ends[0] / "state.safetensors").stat().st_size < (
        ends[0] / "policy" / "model.safetensors"
    ).stat().st_size / 2
    groups = groups_for(Policy.load("bundled"))
    assert not torch.equal(logprobs(Policy.load(ends[0] / "policy"), groups), logprobs(Policy.load("bundled"), groups))
    outcomes = [json.loads(line) for line in (whole / "test-after.jsonl").read_text().splitlines()]
    assert len(outcomes) == 3
