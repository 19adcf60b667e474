"""Folders of a run, an evaluation and a study with a few hand-made records, in the formats that the commands write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = (
    "<script>alert('x')</script> \"quoted\" & 'single' \u202egnp.exe\u202c \x00\x1b[31m \ud800 \ufeff</pre></html>"
)
"""What a model may write: markup, quotes, a text that runs backwards, controls, half of a surrogate pair."""
HOSTILE_SHOWN = (
    "<script>alert('x')</script> \"quoted\" & 'single' ⟨U+202E⟩gnp.exe⟨U+202C⟩ ⟨U+0000⟩⟨U+001B⟩[31m ⟨U+D800⟩ "
    "⟨U+FEFF⟩</pre></html>"
)
"""The same as a reader should see it."""


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def outcomes(threat: str, verdicts: Sequence[int], text: str = "fine", **more: Any) -> list[dict[str, Any]]:
    """One response to each of the problems p0, p1, ...: right where the verdict is 1."""
    return [
        {
            "problem_id": f"p{index}",
            "family": "counting" if index % 2 else "relation",
            "threat": threat,
            "is_correct": bool(verdict),
            "is_well_formed": True,
            "length": 10 + index,
            "text": text,
            "reason": "correct" if verdict else "wrong",
        }
        | more
        for index, verdict in enumerate(verdicts)
    ]


def metrics(num_steps: int) -> list[dict[str, float]]:
    """A run that validates before its first step and after its last."""
    lines: list[dict[str, float]] = [{"step": 0, "validation/accuracy": 0.5, "validation/score": 0.5}]
    for step in range(1, num_steps + 1):
        reward = 0.5 + 0.01 * step
        lines.append({"step": step, "reward": reward, "reward/clean": reward + 0.1, "entropy": 0.4, "length": 20.0})
    return [*lines, {"step": num_steps, "validation/accuracy": 0.6, "validation/score": 0.6}]


def write_run(folder: Path, *, num_steps: int = 4, text: str = "fine", is_tested: bool = True) -> Path:
    """A run of four planned steps, tested on eight problems, clean and under ``noisy``."""
    config = {"steps": 4, "seed": 3, "method": {"name": "grpo"}, "model": {"path": "bundled"}, "data": {"num_train": 9}}
    write_json(folder / "config.json", config)
    origin = {"environment": {"torch": "2.13.0", "device": "x86_64"}, "git": {"package": {"commit": "c" * 40}}}
    write_lines(folder / "provenance.jsonl", [{"seed": 3, "model": "f" * 64, **origin}])
    write_lines(folder / "metrics.jsonl", metrics(num_steps))
    if is_tested:
        before = outcomes("clean", [1, 1, 0, 0, 0, 0, 0, 0], text) + outcomes("noisy", [1, 0, 0, 0, 0, 0, 0, 0], text)
        after = outcomes("clean", [1, 0, 1, 1, 1, 1, 1, 1], text) + outcomes("noisy", [0, 1, 0, 0, 0, 0, 0, 0], text)
        write_lines(folder / "test-before.jsonl", before)
        write_lines(folder / "test-after.jsonl", after)
    return folder


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def card(text: str = "fine") -> dict[str, Any]:
    """A card of a model that is right on 80 % of clean pictures, tested under noise, an edited question and attacks."""

    def threat(kind: str, accuracy: float, **more: Any) -> dict[str, Any]:
        entry = {"kind": kind, "num_problems": 8, "accuracy": share(accuracy), "drop": share(0.8 - accuracy)}
        entry |= {"relative_drop": 1 - accuracy / 0.8, "right_to_wrong": 0.3, "wrong_to_right": 0.1, "truncated": 0.0}
        entry |= {"well_formed": 1.0, "length": 20.5, "families": {"counting": share(accuracy)}}
        return entry | {"reasons": {"correct": accuracy, text: 1 - accuracy}, "yes_no": None} | more

    threats = {"clean": threat("control", 0.8), "blank": threat("control", 0.3)}
    for severity in (1, 3, 5):
        noise = threat("corruption", 0.8 - 0.1 * severity, corruption="gaussian_noise", severity=severity)
        threats[f"gaussian_noise:{severity}"] = noise
    asked = {"precision": 0.9, "recall": None, "f1": 0.7, "yes_ratio": 0.5, "num": 8}
    threats["typos:2"] = threat("text", 0.6, yes_no=asked, edit="typos", edit_severity=2)
    threats["typos:5"] = threat("text", 0.5, edit="typos", edit_severity=5)
    for radius in (2, 4):
        budget = {"norm": "linf", "radius": radius / 255}
        threats[f"pgd:{radius}/255"] = threat("attack", 0.4 / radius, budget=budget)
        threats[f"random_sign:{radius}/255"] = threat("attack", 0.75, budget=budget)
    severities = {str(severity): share(0.8 - 0.1 * severity) for severity in (1, 3, 5)}
    noise = {"severities": severities, "mean": share(0.5)}
    return {
        "format": 1,
        "model": {"name": text, "kind": "policy", "fingerprint": "a" * 64},
        "data": {"name": "scenes test", "num_problems": 8, "fingerprint": "d" * 64},
        "decoding": {"mode": "greedy", "num_samples": 1, "temperature": 1.0, "max_new_tokens": 64},
        "seed": 0,
        "reference": None,
        "threats": threats,
        "corruptions": {
            "mean": share(0.5),
            "worst": {"threat": "gaussian_noise:5", "accuracy": share(0.3)},
            "by_name": {"gaussian_noise": noise},
            "sets": {"noise": share(0.5)},
            "mce": {
                "value": 0.9,
                "relative": None,
                "reference": "older",
                "by_name": {"gaussian_noise": {"ce": 0.9, "relative_ce": None}},
                "notes": ["relative mCE undefined"],
            },
        },
        "attacks": {
            "pgd:4/255": {
                "norm": "linf",
                "radius": 4 / 255,
                "num_steps": 2,
                "num_restarts": 2,
                "loss_by_step": [[0.3, 0.8, 1.2], [0.4, 0.7, 1.1]],
                "accuracy_float": share(0.1),
                "accuracy": share(0.1),
            }
        },
        "checks": [
            {"threat": "pgd:4/255", "name": "loss_rises", "passed": True, "detail": "0.3 to 1.2"},
            {"threat": "pgd:4/255", "name": "large_budget", "passed": False, "detail": text},
            {"threat": "pgd:4/255", "name": "stronger_than_transfer", "passed": None, "detail": "not run"},
        ],
    }


def write_evaluation(folder: Path, *, text: str = "fine") -> Path:
    """An evaluation with its card and a gallery of one example."""
    write_json(folder / "config.json", {"seed": 0, "model": {"path": "bundled"}})
    write_json(folder / "card.json", card(text))
    rows = outcomes("clean", [1, 1, 1, 0], text) + outcomes("gaussian_noise:3", [1, 0, 0, 1], text)
    write_lines(folder / "outcomes.jsonl", rows)
    write_lines(folder / "gallery" / "gallery.jsonl", [example(text)])
    for name in ("x-clean.png", "x-shown.png", "x-diff.png"):
        write_picture(folder / "gallery" / name)
    return folder


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def example(text: str = "fine", **more: Any) -> dict[str, Any]:
    """An example of the gallery: the same question with a typo, a right and a wrong answer."""
    clean = {"answer": 1.0}, {"answer": "correct"}
    shown = {"answer": 0.0}, {"answer": text}

    def side(name: str, reward: float, graded: tuple[dict[str, float], dict[str, str]]) -> dict[str, Any]:
        tokens = [[text, 0.0], [" four", 1.7]]
        value = {"value": reward, "parts": graded[0], "reasons": graded[1]}
        return {"image": f"x-{name}.png", "text": f"{text} four", "tokens": tokens, "reward": value}

    found = {"problem_id": "p1", "question": "How many red rings?", "truth": "4", "threat": "typos:2"}
    found |= {"clean": side("clean", 1.0, clean), "shown": side("shown", 0.1, shown)}
    found["shown"] |= {"question": "How mnay red rings?"}
    return found | {"difference": "x-diff.png", "amplified": 8.0} | more


def write_study(folder: Path, *, text: str = "a loss that is not finite") -> Path:
    """Two arms with two seeds each, and a run that failed."""
    runs: list[dict[str, Any]] = [{"name": "before", "arm": None, "seed": None, "state": "done", "error": None}]
    for arm in ("grpo", "saei"):
        for seed in (0, 1):
            write_run(folder / f"{arm}-{seed}")
            runs.append({"name": f"{arm}-{seed}", "arm": arm, "seed": seed, "state": "done", "error": None})
    runs.append({"name": "roma-0", "arm": "roma", "seed": 0, "state": "failed", "error": text})
    arms: dict[str, Any] = {arm: {} for arm in ("grpo", "saei", "roma")}
    recipe = {"recipe": "my recipes/headline.py", "options": ["--seeds", "0", "1"]}
    study = {"format": 1, "name": "headline", "arms": arms, "seeds": [0, 1], "runs": runs}
    write_json(folder / "study.json", study | recipe)

    def cell(mean: float, **more: Any) -> dict[str, Any]:
        bounds = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}
        return bounds | {"std": 0.01, "difference": None, "best": False, "second": False} | more

    gain = {"value": 0.05, "low": 0.01, "high": 0.09}
    unsure = {"value": -0.01, "low": -0.04, "high": 0.02}
    table = {
        "format": 1,
        "baseline": "grpo",
        "methods": ["grpo", "saei"],
        "conditions": ["clean", "blank"],
        "seeds": {"grpo": [0, 1], "saei": [0, 1]},
        "before": {"clean": cell(0.5), "blank": cell(0.3)},
        "cells": {
            "grpo": {"clean": cell(0.6, second=True), "blank": cell(0.31)},
            "saei": {
                "clean": cell(0.65, best=True, difference=gain),
                "blank": cell(0.3, difference=unsure),
            },
        },
    }
    write_json(folder / "table.json", table)

    def band(*mean: float) -> dict[str, list[float]]:
        spread = {"low": [value - 0.1 for value in mean], "high": [value + 0.1 for value in mean]}
        return {"step": list(range(1, len(mean) + 1)), "mean": list(mean), **spread}

    metrics = {
        "validation/sampled_accuracy": {"grpo": band(0.4), "saei": band(0.5)},
        "reward": {"grpo": band(0.51, 0.52, 0.53, 0.54), "saei": band(0.5, 0.55, 0.6, 0.65)},
        "entropy": {"saei": band(0.4, 0.3)},
    }
    write_json(folder / "curves.json", {"format": 1, "metrics": metrics})
    return folder
