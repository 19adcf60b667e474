"""A folder of pairs, which goes on after any interruption as if there had been none.

| file | what |
|---|---|
| ``pairs.jsonl`` | problems with manipulated pictures |
| ``clean.jsonl`` | the same, by id, with clean pictures |
| ``attacker.jsonl`` | problems of attacking clean pictures, with the program that makes the manipulated one |
| ``pictures/`` | ``ID-clean.png``, the extended picture of a problem, and ``ID-NUMBER.png``, a manipulated one |
| ``records.jsonl`` | every candidate with the stage that it reached and the reason |
| ``manifest.json`` | counts and reasons by stage, settings, source and licence; it is written last |
| ``settings.json`` | what all of it depends on |
| ``batches/`` | until the end, what came of each batch |
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sparring.data.jsonl import row_of
from sparring.errors import UserError
from sparring.opponents.attacker import EditorConfig, attack_prompt, attacked_image
from sparring.pipelines.aot_sft.stages import Stages
from sparring.pipelines.aot_sft.values import KEPT, OF_PROBLEMS, STAGES, Candidate, StagesConfig
from sparring.provenance import read_json, read_jsonl, write_text
from sparring.seeding import derive_seed
from sparring.types import Problem

PAIRS, CLEAN, ATTACKER = "pairs.jsonl", "clean.jsonl", "attacker.jsonl"
RECORDS, MANIFEST, SETTINGS, PICTURES, BATCHES = (
    "records.jsonl",
    "manifest.json",
    "settings.json",
    "pictures",
    "batches",
)


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the folder's content depends on. UserError if it was begun with other settings."""
    given = json.loads(json.dumps(settings))
    begun = read_json(folder / SETTINGS)
    apart = sorted(name for name in given.keys() | begun.keys() if begun.get(name) != given.get(name))
    if begun and apart:
        was = "; ".join(f"{name} was {json.dumps(begun.get(name))}" for name in apart)
        raise UserError(f"{folder} was begun with other settings: {was}; give these, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, json.dumps(given, indent=2, allow_nan=False) + "\n")


def build(
    stages: Stages,
    problems: Sequence[Problem],
    folder: Path,
    *,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> dict[str, Any]:
    """Take all problems through the stages and keep what came of them; the manifest.

    A folder that has one is left as it is; one that was broken off goes on behind its last whole batch, with the same
    batches, so that it ends with the bytes of one that was not.

    Args:
        folder: begun (``begin``) with settings that say all that ``stages``, ``problems`` and ``batch_size`` are.
        batch_size: problems at a time, >= 1.
        on_progress: called with the number of problems that are done.
    """
    if (folder / MANIFEST).exists():
        return read_json(folder / MANIFEST)
    for name in (PICTURES, BATCHES):
        (folder / name).mkdir(exist_ok=True)
    files = []
    for start in range(0, len(problems), batch_size):
        batch = [problems[index] for index in range(start, min(start + batch_size, len(problems)))]
        files.append(folder / BATCHES / f"{start:08d}.jsonl")
        if not files[-1].exists():
            lines = [_line(one, stages.config.editor, folder) for one in stages.run(batch)]
            write_text(files[-1], "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        on_progress(start + len(batch))
    manifest = _finish(folder, files, stages.config)
    for file in files:
        file.unlink()
    (folder / BATCHES).rmdir()
    return manifest


def counts(records: Sequence[Mapping[str, Any]], num_proposals: int) -> dict[str, dict[str, Any]]:
    """By stage what came in, what went on, and what was dropped by reason: ``in`` is ``out`` and all of ``dropped``,
    and each stage takes what the one before let go on; behind the checks, ``num_proposals`` for each problem."""
    found: dict[str, dict[str, Any]] = {}
    going = len({record["problem_id"] for record in records})
    for stage in STAGES:
        dropped = Counter(r["reason"] for r in records if r["stage"] == stage and r["reason"] != KEPT)
        found[stage] = {"in": going, "out": going - dropped.total(), "dropped": dict(sorted(dropped.items()))}
        going = found[stage]["out"] * (num_proposals if stage == OF_PROBLEMS[-1] else 1)
    return found


def summary(records: Sequence[Mapping[str, Any]], config: StagesConfig) -> dict[str, Any]:
    """What a manifest says of its records.

    ``broken``: kept pairs whose answer is no longer right, of those that the oracle of scenes knows. ``control``: among
    problems that the base model answers rightly, how many it fails when the clean picture is only shown again: as many
    pairs in a hundred would be "effective" without any distractor.
    """
    kept = [record for record in records if record["reason"] == KEPT]
    known = [record["holds"] for record in kept if record["holds"] is not None]
    shown = {record["problem_id"]: record for record in records if record["right_before"] is not None}
    right = [record for record in shown.values() if record["right_before"] >= config.right_before]
    failing = [record for record in right if (record["right_control"] or 0.0) <= config.right_after]
    probed = [r for r in records if r["stage"] == "probe" and r["reason"] in (KEPT, "useless")]
    return {
        "num_pairs": len(kept),
        "num_problems": len({record["problem_id"] for record in records}),
        "num_problems_kept": len({record["problem_id"] for record in kept}),
        "stages": counts(records, config.num_proposals),
        "effective": {"kept": len(kept), "of": len(probed)},
        "control": {"failing": len(failing), "of": len(right)},
        "broken": {"kept": sum(not holds for holds in known), "of": len(known)},
    }


def _line(one: Candidate, config: EditorConfig, folder: Path) -> dict[str, Any]:
    """What a batch keeps of a candidate. Pictures of pairs come first: what a line names is there."""
    line: dict[str, Any] = {"record": one.record()}
    if one.reason != KEPT:
        return line
    assert one.edited is not None and one.number is not None, "pairs are painted candidates"
    name, place = file_name(one.problem.id), attacked_image(one.problem)
    # No name ends in two ways, so that none of a problem called "a-1" is one of a problem "a".
    ends = ["clean" if number == place else f"image{number}" for number in range(len(one.problem.images))]
    clean = [f"{PICTURES}/{name}-{end}.png" for end in ends]
    for file, image in zip(clean, one.problem.images, strict=True):
        _save(image, folder / file)
    edited = list(clean)
    edited[place] = f"{PICTURES}/{name}-{one.number}.png"
    _save(one.edited.images[place], folder / edited[place])
    asked = attack_prompt(replace(one.problem, id=one.id), config)
    # The question already lists its options, and a program is no letter.
    asked = replace(asked, choices=(), answer_kind="text")
    line |= {
        PAIRS: row_of(replace(one.edited, id=one.id), edited),
        CLEAN: row_of(replace(one.problem, id=one.id), clean),
    }
    return line if one.program is None else line | {ATTACKER: row_of(asked, clean) | {"responses": [one.program]}}


def file_name(problem_id: str) -> str:
    """An id as part of a file name: ids are data, and may hold slashes."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in problem_id)[:100]
    return plain if plain == problem_id else f"{plain}-{derive_seed(0, problem_id):x}"


def _save(image: Tensor, path: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def _finish(folder: Path, files: Sequence[Path], config: StagesConfig) -> dict[str, Any]:
    lines = [line for file in files for line in read_jsonl(file)]
    records = [line["record"] for line in lines]
    for name in (PAIRS, CLEAN, ATTACKER):
        _write(folder / name, [line[name] for line in lines if name in line])
    _write(folder / RECORDS, records)
    manifest = {**summary(records, config), "settings": read_json(folder / SETTINGS)}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    return manifest


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
