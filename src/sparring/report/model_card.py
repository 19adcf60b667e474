"""The model card of an exported model: the README.md that a model folder on a hub begins with.

It says how to load the model, how it was trained, and what was measured, from the plain files of its run and of
evaluations. A path on the machine that trained it is not told, only its last part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sparring.evaluation.card import card_markdown
from sparring.evaluation.comparison import Tested, compare
from sparring.provenance import read_json
from sparring.report.curves import best_step
from sparring.report.folders import RunFolder
from sparring.report.heading import run_heading
from sparring.report.text import name_of, points
from sparring.report.values import differences

PAPERS = {
    "grpo": ("GRPO", "2402.03300"),
    "saei": ("SaEI", "2512.10414"),
    "noisyrollout": ("NoisyRollout", "2504.13055"),
    "kl_cov": ("KL-Cov", "2505.22617"),
    "clip_cov": ("Clip-Cov", "2505.22617"),
    "rad": ("RAD", "2004.14990"),
    "roma": ("ROMA", "2605.09262"),
    "ril": ("RIL", "2510.19307"),
}
"""Method -> what it is called, and its paper on arXiv."""

SETTINGS = "training_config.json"
"""The run's configuration, beside the card."""

_NOT_TOLD = frozenset({"model", "data", "machine", "tested weights", "answers graded by", "starts"})
"""Facts of a page that may hold paths, or that the card says elsewhere."""

_LICENSE = (
    "The license is that of the model and of the data that it was trained from: name it in the head of this file "
    "before you share the model."
)


def model_card(run: RunFolder, name: str, step: int, cards: Sequence[Mapping[str, Any]] = ()) -> str:
    """Markdown with the head that model hubs read.

    Args:
        name: of the model.
        step: whose weights they are. The run's own tests are shown if they are of this step.
        cards: robustness cards of these weights, as ``sparring eval`` writes them.
    """
    changes = compare(Tested("before", run.before), Tested("after", run.after), is_partial=True)
    is_tested = bool(run.after) and best_step(run.metrics) == step
    own = [card] if is_tested and (card := read_json(run.path / "card-after.json")) else []
    tested = [f"## Robustness: {card_markdown(card).removeprefix('# ').rstrip()}" for card in (*own, *cards)]
    parts = [
        _head(run),
        f"# {name}",
        _summary(run, step),
        f"## Use\n\n{_use(run)}",
        f"## Training\n\n{_training(run, changes)}",
        *([f"## What training changed\n\n{_gains(changes)}"] if is_tested and run.before else []),
        *(tested or ["## Results\n\nThese weights were not tested."]),
        f"## License\n\n{_LICENSE}",
    ]
    return "\n\n".join(parts) + "\n"


def _head(run: RunFolder) -> str:
    tags = ["sparring", "reinforcement-learning", *([_method(run)] if _method(run) else [])]
    lines = ["library_name: transformers", "pipeline_tag: image-text-to-text", f"tags: [{', '.join(tags)}]"]
    return "\n".join(["---", *lines, "---"])


def _method(run: RunFolder) -> str:
    return name_of(_part(run.config, "method").get("name"))


def _summary(run: RunFolder, step: int) -> str:
    method = _method(run)
    title, paper = PAPERS.get(method, ("", ""))
    if method == "sft":
        how = "by supervised fine-tuning"
    elif paper:
        how = f"by {title} ([arXiv {paper}](https://arxiv.org/abs/{paper}))"
    else:
        how = f"by {method or 'reinforcement learning'}"
    return f"A vision-language model: {_base(run)} after {step} steps of training {how} with {_version(run)}."


def _version(run: RunFolder) -> str:
    environment = _part(run.starts[-1], "environment") if run.starts else {}
    return " ".join(filter(None, ("sparring", name_of(environment.get("sparring")))))


def _base(run: RunFolder) -> str:
    path = name_of(_part(run.config, "model").get("path")).rstrip("/")
    return f"`{path.rpartition('/')[2]}`" if path else "a model"


def _use(run: RunFolder) -> str:
    instruction = _part(run.config, "model").get("instruction")
    asked = f"QUESTION {instruction}" if instruction else "QUESTION"
    told = (
        "In training every question ended with the instruction that stands in the example."
        if instruction
        else "In training nothing was added to the questions."
    )
    return (
        "```python\n"
        "from PIL import Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("FOLDER", dtype="auto")\n'
        'processor = AutoProcessor.from_pretrained("FOLDER")\n'
        f'content = [{{"type": "image"}}, {{"type": "text", "text": {asked!r}}}]\n'
        'text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)\n'
        'inputs = processor(text=[text], images=[Image.open("PICTURE")], return_tensors="pt")\n'
        'output = model.generate(**inputs, max_new_tokens=512)[0, inputs["input_ids"].shape[1] :]\n'
        "print(processor.decode(output, skip_special_tokens=True))\n"
        "```\n\n"
        f"{told}"
    )


def _training(run: RunFolder, changes: Mapping[str, Any]) -> str:
    """The facts of the run, without paths, and where all settings are."""
    heading = run_heading(run, changes, None)
    told = [(label, value) for label, value in (*heading.facts, *heading.origin) if label not in _NOT_TOLD]
    known = dict(heading.facts)
    data = [("data", PurePath(known["data"]).name)] if "data" in known else []
    rows = [f"| {label} | {_cell(value)} |" for label, value in (("from", _base(run)), *data, *told)]
    return "\n".join(["| | |", "|---|---|", *rows, "", f"All settings: `{SETTINGS}`."])


def _gains(changes: Mapping[str, Any]) -> str:
    rows = [
        f"| {_cell(name_of(name))} | {points(change.value)} [{points(change.low)}, {points(change.high)}] |"
        for name, change in differences(changes).items()
    ]
    return "\n".join(["| threat | change of accuracy, points [95 % interval] |", "|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}
