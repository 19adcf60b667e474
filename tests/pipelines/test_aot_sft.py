"""AOT-SFT data: why each stage drops what it drops, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chat_server import ChatServer, Step, answer_with, chat_server, shown_picture, status
from sparring.cli import main
from sparring.configs import undocumented_fields
from sparring.data.jsonl import JsonlProblems
from sparring.data.pairs import file_pairs
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.oracle import still_holds
from sparring.endpoints import EndpointConfig
from sparring.errors import UserError
from sparring.opponents.edits import Language, execute, parse
from sparring.opponents.edits.program import Add
from sparring.pipelines.aot_sft import folder as folder_module
from sparring.pipelines.aot_sft.checks import ask_about, box_fault, fault_of, prompt_fault
from sparring.pipelines.aot_sft.extending import (
    MirrorExtender,
    SceneExtender,
    SceneKeeper,
    border_of,
    extended_by,
    keep,
    unusable,
)
from sparring.pipelines.aot_sft.folder import counts, file_name
from sparring.pipelines.aot_sft.proposals import box_of, program_of, random_proposer, read_proposals
from sparring.pipelines.aot_sft.stages import Stages
from sparring.pipelines.aot_sft.values import Extended, PainterConfig, Proposal, StagesConfig
from sparring.pipelines.teaching import EndpointTeacher
from sparring.recipes.aot_sft import AOTSFTConfig, HelperConfig, open_making
from sparring.recipes.run import ModelConfig
from sparring.rollout import SamplingConfig
from sparring.types import Box, Problem

CONFIG = StagesConfig()
QUICK = EndpointConfig(model="m", first_wait_seconds=0.01, attempt_seconds=20.0, deadline_seconds=60.0)


def problem(**changes: Any) -> Problem:
    """A red square on grey, 100 x 80; the cells of programs are 10 x 8 pixels."""
    pixels = torch.full((3, 80, 100), 120, dtype=torch.uint8)
    pixels[:, 30:50, 30:50] = torch.tensor([200, 30, 40], dtype=torch.uint8)[:, None, None]
    whole = Problem("a/1", "Where is the red square?", (pixels,), "left", boxes=(Box(30, 30, 50, 50, "red square"),))
    return replace(whole, **changes)


def widened(pixels: np.ndarray) -> Extended:
    """The red square's picture in the middle of 200 x 160 pixels (H, W, 3)."""
    return extended_by(problem(), pixels, 50, 40)


def noisy() -> np.ndarray:
    return np.random.default_rng(0).integers(90, 150, size=(160, 200, 3), dtype=np.uint8)


def contents(folder: Path) -> dict[str, bytes]:
    """All that a folder holds but when and where it was made, and what a server said."""
    left_out = ("provenance.jsonl", "run.lock")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out and path.parent.name != "answers"
    }


# Stage 1: extension.


def test_a_scene_is_drawn_further_with_unrelated_objects_and_keeps_its_answer() -> None:
    problems = SceneProblems("train", 12, SceneConfig(families=("relation", "attribute", "counting")))
    extender, num_more = SceneExtender(problems, CONFIG), 0
    for index in range(12):
        own, (scene, question) = problems[index], problems.asked(index)
        found = extender(own, 7)
        assert isinstance(found, Extended) and found.scene is not None and found.question is not None
        image = found.problem.images[0]
        assert image.shape == (3, 144, 144)
        assert image[:, found.top : found.top + 96, found.left : found.left + 96].equal(own.images[0])
        for box, was in zip(found.problem.boxes, own.boxes, strict=True):
            assert (box.left - was.left, box.bottom - was.bottom) == pytest.approx((found.left, found.top))
        more = found.scene.things[len(scene.things) :]
        num_more += len(more)
        names = {thing.name for thing in question.things}
        assert 1 <= len(more) <= 4 and not any(thing.name in names for thing in more)
        # Answered from the larger scene alone.
        assert still_holds(found.scene, found.question)
        is_new = border_of(found)
        for thing in more:
            rows, columns = slice(int(thing.y) - 1, int(thing.y) + 2), slice(int(thing.x) - 1, int(thing.x) + 2)
            assert is_new[rows, columns].all()
        again = extender(own, 7)
        assert isinstance(again, Extended) and again.problem.images[0].equal(image)
        assert not extender(own, 8).problem.images[0].equal(image)  # type: ignore[union-attr]
    assert num_more > 24


@pytest.mark.parametrize("canvas", [96, 144])
def test_the_oracle_knows_what_a_distractor_does_to_a_scene_that_is_kept(canvas: int) -> None:
    problems = SceneProblems("train", 40, SceneConfig(families=("attribute",), canvas=canvas))
    index = next(i for i in range(40) if problems.asked(i)[1].form == "colour")
    scene, question = problems.asked(index)
    other = next(shape for shape in ("circle", "square", "ring") if shape != question.subjects[0])

    def propose(given: Sequence[Problem]) -> list[list[Proposal | str]]:
        # In a free corner: of another shape, and of the one whose colour is asked for, with words that hide it.
        adds = [Add("grey", shape, *free, 1) for shape in (other, question.subjects[0])]
        return [[Proposal(box_of(add, given[0], Language()), f"grey {add.shape}") for add in adds]]

    corners = [(x, y) for x in (0, 9) for y in (0, 9)]
    things = [(thing.column, thing.row) for thing in scene.things]
    free = max(corners, key=lambda at: min(max(abs(at[0] - x), abs(at[1] - y)) for x, y in things))
    found = SceneKeeper(problems)(problems[index], 0)
    assert found.scene is not None and still_holds(found.scene, question)
    for thing, box in ((one, one.box_on(canvas)) for one in scene.things):
        placed = [one for one in found.scene.things if one.name == thing.name]
        assert any(box.left < one.x < box.right and box.top < one.y < box.bottom for one in placed)
    # Without labels no rule sees the rival; the oracle does.
    bare = replace(problems[index], boxes=tuple(replace(box, label="") for box in problems[index].boxes))
    stages = Stages(CONFIG, SceneKeeper(problems), propose, None, None, 0)  # type: ignore[arg-type]
    proposed = propose([bare])[0]
    holds = [stages._implant(replace(found, problem=bare), n, one).holds for n, one in enumerate(proposed)]
    assert holds == [True, False]


def test_without_room_for_one_object_a_scene_is_dropped() -> None:
    problems = SceneProblems("train", 1)
    # Margins of 2 pixels: the smallest object is 6 wide.
    assert SceneExtender(problems, replace(CONFIG, scale=1.02))(problems[0], 0) == "no_room"


def test_a_photo_gets_mirrored_borders_without_a_seam() -> None:
    ramp = np.broadcast_to(np.linspace(40, 200, 100)[None, :, None], (80, 100, 3)).astype(np.uint8)
    pixels = torch.from_numpy(ramp.copy()).permute(2, 0, 1)
    pixels[:, 30:50, 30:50] = problem().images[0][:, 30:50, 30:50]
    own = problem(images=(pixels,))
    found = MirrorExtender(CONFIG)(own, 3)
    image = found.problem.images[0]
    assert image.shape == (3, 120, 150) and fault_of(found) is None
    box = found.problem.boxes[0]
    assert (box.left, box.top) == (30 + found.left, 30 + found.top)
    seam = image[:, :, found.left - 1].int() - image[:, :, found.left].int()
    assert 0 < found.left < 50 and seam.abs().max() <= 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": ()}, "no_boxes"),
        ({"images": (torch.zeros((3, 15, 90), dtype=torch.uint8),)}, "too_small"),
        # 64 million pixels may be read; 5400 x 5400 x 1.5^2 are 65.6 million.
        ({"images": (torch.zeros((1,), dtype=torch.uint8).expand(3, 5400, 5400),)}, "too_large"),
        ({}, None),
    ],
)
def test_some_problems_cannot_be_used(changes: dict[str, Any], reason: str | None) -> None:
    assert unusable(problem(**changes), CONFIG) == reason


# Stage 2: checks of extensions.


def test_rules_find_what_is_wrong_with_an_extension() -> None:
    assert fault_of(widened(noisy())) is None
    assert fault_of(keep(problem(), 0)) is None
    spoiled = widened(noisy())
    spoiled.problem.images[0][0, 60, 70] += 1
    assert fault_of(spoiled) == "original_changed"
    beyond = widened(noisy())
    beyond = replace(beyond, problem=replace(beyond.problem, boxes=(Box(150, 40, 201, 90),)))
    assert fault_of(beyond) == "box_outside"
    assert fault_of(widened(np.full((160, 200, 3), 15, np.uint8))) == "black_extension"
    assert fault_of(widened(np.full((160, 200, 3), 120, np.uint8))) == "flat_extension"
    twice = noisy()
    twice[5:25, 160:180] = (200, 30, 40)
    assert fault_of(widened(twice)) == "duplicate_target"


def at(server: ChatServer, num_tokens: int = 64) -> EndpointTeacher:
    from sparring.endpoints import Endpoint

    sampling = SamplingConfig(max_new_tokens=num_tokens, greedy=True)
    return EndpointTeacher(Endpoint(server.url, QUICK), sampling, instruction="", max_failures=3, cache=None)


def when(*answers: tuple[str, str], otherwise: str = "yes") -> Step:
    """What is said to questions in which a text occurs."""

    def step(handler: Any, body: dict[str, Any]) -> None:
        asked = body["messages"][0]["content"][-1]["text"]
        answer_with(next((said for part, said in answers if part in asked), otherwise))(handler, body)

    return step


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([("more than once", "<think>yes or no?</think> No.")], None),
        ([("more than once", "Yes")], "duplication_no"),
        ([("more than once", "no"), ("look natural", "No, it is smeared")], "realism_no"),
        ([("more than once", "no"), ("seam", "Perhaps.")], "composition_unclear"),
        ([("more than once", "yes and no")], "duplication_unclear"),
    ],
)
def test_a_model_is_asked_three_questions(answers: list[tuple[str, str]], reason: str | None) -> None:
    with chat_server(otherwise=when(*answers)) as server:
        assert ask_about(at(server), [widened(noisy())], 0) == [reason]
        assert len(server.bodies) == 3
        assert shown_picture(server.bodies[0]).shape == (160, 200, 3)
        asked = [body["messages"][0]["content"][-1]["text"] for body in server.bodies]
        assert sum('"Where is the red square?"' in text for text in asked) == 1


def test_a_picture_that_the_server_refuses_is_dropped_but_not_all_of_them() -> None:
    once = [status(400)]

    def picky(handler: Any, body: dict[str, Any]) -> None:
        is_second = shown_picture(body)[0, 0, 0] == 77
        (once[0] if is_second else when(("more than once", "no")))(handler, body)

    other = noisy()
    other[0, 0] = 77
    with chat_server(otherwise=picky) as server:
        assert ask_about(at(server), [widened(noisy()), widened(other)], 0) == [None, "refused"]
        # One alone may be to blame itself; of two problems, both refused, something else is.
        assert ask_about(at(server), [widened(other)], 0) == ["refused"]
        second = widened(other)
        second = replace(second, problem=replace(second.problem, id="b"))
        with pytest.raises(UserError, match="refuses everything"):
            ask_about(at(server), [widened(other), second], 0)


# Stages 3 and 4: proposals, boxes, prompts.


GOOD = {"box": [60, 8, 80, 28], "description": "a small blue ring"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps([GOOD]), ["good", "missing"]),
        ("```json\n" + json.dumps([GOOD, GOOD, GOOD]) + "\n```", ["good", "good"]),
        ("Here they are: " + json.dumps([GOOD]), ["not_json"] * 2),
        ("", ["not_json"] * 2),
        ("[" * 50_000, ["not_json"] * 2),
        ("[" + "1" * 5_000 + "]", ["not_json"] * 2),
        (" " * 100_001, ["too_long"] * 2),
        (json.dumps(GOOD), ["not_a_list"] * 2),
        (json.dumps([GOOD | {"why": "x"}, 3]), ["bad_entry"] * 2),
        (json.dumps([GOOD | {"box": [60, 8, 60, 28]}, GOOD | {"box": [60, 8, 80]}]), ["bad_box"] * 2),
        (json.dumps([GOOD | {"box": [0, 0, True, 9]}, GOOD | {"box": [0, 0, 10**400, 9]}]), ["bad_box"] * 2),
        (json.dumps([GOOD | {"box": [0, 0, float("nan"), 9]}, GOOD | {"box": "0189"}]), ["bad_box"] * 2),
        (json.dumps([GOOD | {"description": " "}, GOOD | {"description": ["ring"]}]), ["bad_description"] * 2),
        (json.dumps([GOOD | {"description": "x" * 201}, GOOD | {"description": "a\nb"}]), ["bad_description"] * 2),
    ],
)
def test_proposals_are_read_strictly(text: str, found: list[str]) -> None:
    good = Proposal(Box(60, 8, 80, 28), "a small blue ring")
    assert read_proposals(text, 2) == [good if one == "good" else one for one in found]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((60, 10, 80, 30), None),
        ((81, 10, 101, 30), "outside"),
        ((-1, 10, 9, 30), "outside"),
        # The picture has 8000 pixels; bounds are 16 and 800 of them.
        ((60, 10, 63, 15), "too_small"),
        ((60, 10, 64, 14), None),
        ((60, 5, 80, 46), "too_large"),
        # The square ends at 50; its margin is 2 pixels.
        ((51.9, 30, 60, 50), "overlaps_target"),
        ((52, 30, 60, 50), None),
    ],
)
def test_a_distractor_has_to_lie_in_the_picture_and_off_the_target(
    box: tuple[float, float, float, float], reason: str | None
) -> None:
    assert box_fault(Proposal(Box(*box), "blue ring"), problem(), CONFIG) == reason


def test_a_distractor_must_not_be_what_is_asked_for() -> None:
    def fault(words: str, **changes: Any) -> str | None:
        return prompt_fault(Proposal(Box(0, 0, 9, 9), words), problem(**changes))

    assert fault("a large red square") == "names_target"
    assert fault("red ring") is None
    assert fault("red ring", question="How many red things are there?") == "names_target"
    # A picture without labels does not tell.
    assert fault("red square", boxes=(Box(30, 30, 50, 50),)) is None


@pytest.mark.parametrize(
    ("words", "box", "add"),
    [
        # Cells of 10 x 8 pixels; radii are 2.8, 5.6 and 8.4.
        ("a small Blue ring", (60, 8, 80, 28), Add("blue", "ring", 7, 2, 3)),
        ("black cross", (61, 9, 67, 15), Add("black", "cross", 6, 1, 1)),
        ("blue", (60, 8, 80, 28), None),
        ("a shiny silver canister", (60, 8, 80, 28), None),
        ("red or blue ring", (60, 8, 80, 28), None),
    ],
)
def test_words_become_a_program(words: str, box: tuple[float, float, float, float], add: Add | None) -> None:
    assert program_of(Proposal(Box(*box), words), problem(), Language()) == add


def test_random_distractors_take_free_places_and_half_are_like_a_target() -> None:
    config, own = replace(CONFIG, num_proposals=32), problem()
    (proposed,) = random_proposer(config, 5)([own])
    assert len(proposed) == 32 and proposed == random_proposer(config, 5)([own])[0]
    num_alike = 0
    for one in proposed:
        assert isinstance(one, Proposal)
        add = program_of(one, own, Language())
        assert add is not None and replace(one.box, label=one.description) == box_of(add, own, Language())
        assert box_fault(one, own, replace(config, min_box=0.0)) is None
        # All that is painted lies in the box.
        changed = (execute(parse(str(add), Language()), own.images[0], Language(), seed=0).image != own.images[0]).any(
            0
        )
        rows, columns = (torch.nonzero(changed.any(axis)).flatten().tolist() for axis in (1, 0))
        assert one.box.left <= columns[0] and columns[-1] + 1 <= one.box.right
        assert one.box.top <= rows[0] and rows[-1] + 1 <= one.box.bottom
        num_alike += "red" in one.description or "square" in one.description
    # 1/2 and, of the others, 1/10 + 1/5 - 1/50: 20.5 of 32 are expected, with a deviation of 2.7.
    assert 13 <= num_alike <= 28


# The whole way, with a served model.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures of a red square; the third problem has no box, the fourth two pictures."""
    rows = []
    for number in range(6):
        own = problem()
        pixels = own.images[0].permute(1, 2, 0).numpy() + np.random.default_rng(number).integers(3, size=(80, 100, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        row: dict[str, Any] = {"id": f"set/{number}", "question": "Is the red square large?", "answer": "yes"}
        box = {"left": 30, "top": 30, "right": 50, "bottom": 50, "label": "red square", "image": int(number == 3)}
        row |= {} if number == 2 else {"boxes": [box]}
        rows.append(row | {"images": ["0.png"] * (number == 3) + [f"{number}.png"]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


PROPOSED = json.dumps(
    [
        {"box": [4, 4, 20, 20], "description": "blue ring"},
        {"box": [4, 4, 20, 20], "description": "red square"},
        {"box": [4, 4, 20, 20], "description": "wooden clock"},
        {"box": [31, 31, 45, 45], "description": "blue ring"},
        {"box": [70, 4, 86, 20], "description": "white ring"},
        {"box": [4, 4, 20], "description": "blue ring"},
    ]
)


def is_blue_or_white(body: dict[str, Any], colour: str) -> bool:
    pictures = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    pixels = shown_picture(body, len(pictures) - 1).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return bool((blue > red + 100).any() if colour == "blue" else ((red > 250) & (green > 250)).any())


def misled_by_blue(handler: Any, body: dict[str, Any]) -> None:
    """Proposes, and answers rightly unless there is something blue."""
    if "Propose" in body["messages"][0]["content"][-1]["text"]:
        answer_with(PROPOSED)(handler, body)
    else:
        answer_with("\\boxed{no}" if is_blue_or_white(body, "blue") else "\\boxed{yes}")(handler, body)


def config_at(server: ChatServer, data: Path, out: Path, **changes: Any) -> AOTSFTConfig:
    model = ModelConfig(server.url)
    config = AOTSFTConfig(
        model=model,
        endpoint=QUICK,
        temperature=1.0,
        data=str(data),
        proposals="model",
        helper=HelperConfig(model, QUICK),
        stages=StagesConfig(num_proposals=7, num_draws=2, scale=1.0),
        source="photographs of squares",
        license="CC0-1.0",
        batch_size=2,
        out=out,
    )
    return replace(config, **changes)


def test_every_candidate_is_kept_or_has_its_reason(data: Path, tmp_path: Path) -> None:
    done: list[int] = []
    out = tmp_path / "out"
    with chat_server(otherwise=misled_by_blue) as server:
        manifest = open_making(config_at(server, data, out)).run(done.append)
    assert done == [2, 4, 6]
    assert manifest["stages"] == {
        "extend": {"in": 6, "out": 5, "dropped": {"no_boxes": 1}},
        "check": {"in": 5, "out": 5, "dropped": {}},
        "propose": {"in": 35, "out": 25, "dropped": {"bad_box": 5, "missing": 5}},
        "box": {"in": 25, "out": 20, "dropped": {"overlaps_target": 5}},
        "prompt": {"in": 20, "out": 15, "dropped": {"names_target": 5}},
        "implant": {"in": 15, "out": 10, "dropped": {"cannot_draw": 5}},
        "probe": {"in": 10, "out": 5, "dropped": {"useless": 5}},
    }
    assert manifest["effective"] == {"kept": 5, "of": 10} and manifest["control"] == {"failing": 0, "of": 5}
    assert manifest["broken"] == {"kept": 0, "of": 0}  # nobody knows of photographs
    assert manifest["settings"]["pictures"] == {"source": "photographs of squares", "license": "CC0-1.0"}
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 1 + 35 and records == sorted(records, key=lambda r: (r["problem_id"], r["number"] or 0))
    kept = [record for record in records if record["reason"] == "kept"]
    assert [record["id"] for record in kept] == [f"set/{number}-0" for number in (0, 1, 3, 4, 5)]
    # 16 pixels wide around (12, 12): cell 1 1 of 10 x 8, radius 8.
    assert {record["program"] for record in kept} == {"add blue ring 1 1 3"}
    assert all((r["right_before"], r["right_control"], r["right_after"]) == (1.0, 1.0, 0.0) for r in kept)
    assert not (out / "batches").exists()


def test_the_folder_loads_as_problems_and_as_pairs_of_the_attacker(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_server(otherwise=misled_by_blue) as server:
        open_making(config_at(server, data, out)).run()
    pairs, clean = JsonlProblems(out / "pairs.jsonl"), JsonlProblems(out / "clean.jsonl")
    attacker = file_pairs(str(out / "attacker.jsonl"))
    given = JsonlProblems(data)
    assert len(pairs) == len(clean) == len(attacker.source.problems) == 5
    for index, source in enumerate((0, 1, 3, 4, 5)):
        edited, own, asked, was = pairs[index], clean[index], attacker.source.problems[index], given[source]
        assert edited.id == own.id == asked.id and edited.boxes == own.boxes == was.boxes
        assert (edited.question, edited.answer) == (own.question, own.answer) == (was.question, was.answer)
        place = int(source == 3)
        assert all(image.equal(other) for image, other in zip(own.images, was.images, strict=True))
        assert asked.question.startswith("Edit the picture") and asked.question.endswith(was.question)
        (target,) = attacker.targets(asked)
        # What the attacker is to write makes the manipulated picture.
        again = execute(parse(target.text, Language()), asked.images[place], Language(), seed=0).image
        assert again.equal(edited.images[place]) and not again.equal(own.images[place])


def test_an_interrupted_run_ends_like_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server(otherwise=misled_by_blue) as server:
        whole, broken = (config_at(server, data, tmp_path / name) for name in ("whole", "broken"))
        open_making(whole).run()
        # Broken off between the pictures of a batch and its lines, then between the last batch and the manifest.
        written = folder_module.write_text

        def stop_at(name: str) -> None:
            def write(path: Path, text: str) -> None:
                if path.name == name:
                    raise KeyboardInterrupt
                written(path, text)

            monkeypatch.setattr(folder_module, "write_text", write)
            with pytest.raises(KeyboardInterrupt):
                open_making(broken).run()
            monkeypatch.setattr(folder_module, "write_text", written)

        stop_at("00000002.jsonl")
        assert not (broken.out / "pairs.jsonl").exists()
        stop_at("manifest.json")
        manifest = open_making(broken).run()
        assert contents(broken.out) == contents(whole.out)
        num_asked = len(server.bodies)
        assert open_making(broken).run() == manifest and len(server.bodies) == num_asked
        with pytest.raises(UserError, match=r"seed was 0.*--out"):
            open_making(replace(broken, seed=1)).run()
        with pytest.raises(UserError, match="pictures was"):
            open_making(replace(broken, license="other")).run()


def test_a_base_model_that_never_knew_the_answer_is_not_misled(data: Path, tmp_path: Path) -> None:
    def wrong(handler: Any, body: dict[str, Any]) -> None:
        is_asked = "Propose" in body["messages"][0]["content"][-1]["text"]
        answer_with(PROPOSED if is_asked else "\\boxed{no}")(handler, body)

    with chat_server(otherwise=wrong) as server:
        manifest = open_making(config_at(server, data, tmp_path / "out")).run()
    assert manifest["stages"]["probe"] == {"in": 10, "out": 0, "dropped": {"wrong_on_clean": 10}}
    assert manifest["num_pairs"] == 0 and (tmp_path / "out" / "pairs.jsonl").read_text() == ""
    assert manifest["control"] == {"failing": 0, "of": 0}


def test_a_server_that_fails_ends_the_run_which_goes_on_later(data: Path, tmp_path: Path) -> None:
    hasty = replace(QUICK, first_wait_seconds=1000.0)
    with chat_server(otherwise=status(500)) as server, pytest.raises(UserError, match="set/0"):
        open_making(
            config_at(server, data, tmp_path / "out", helper=HelperConfig(ModelConfig(server.url), hasty))
        ).run()
    with chat_server(otherwise=misled_by_blue) as server:
        assert open_making(config_at(server, data, tmp_path / "out")).run()["num_pairs"] == 5


def with_copy(image: torch.Tensor) -> torch.Tensor:
    """With a smaller red square within columns 3 to 20 and rows 4 to 19."""
    copied = image.clone()
    copied[:, 5:19, 5:19] = image[:, 32:46, 32:46]
    return copied


@pytest.mark.parametrize(
    ("paint", "reason"),
    [
        (lambda image, is_new: image, "unchanged"),
        (lambda image, is_new: torch.where(is_new, 40, 255 - image), "target_changed"),
        (lambda image, is_new: with_copy(image), "duplicate_target"),
    ],
)
def test_what_a_painter_makes_has_to_pass_the_gate(paint: Any, reason: str) -> None:
    places: list[tuple[int, int]] = []

    def painter(image: torch.Tensor, is_new: torch.Tensor, prompt: str, seed: int) -> torch.Tensor:
        assert prompt == "wooden clock" and image.equal(problem().images[0])
        places.append((int(is_new.sum()), int(is_new[4:20, 3:21].sum())))
        painted: torch.Tensor = paint(image, is_new)
        return painted

    def propose(problems: Sequence[Problem]) -> list[list[Proposal | str]]:
        return [[Proposal(Box(3.5, 4, 20.2, 19.1), "wooden clock")] for _ in problems]

    # The base model is not asked about what the gate refuses.
    stages = Stages(CONFIG, keep, propose, None, None, 0, painter=painter)  # type: ignore[arg-type]
    (found,) = stages.run([problem()])
    assert (found.stage, found.reason, found.program) == ("implant", reason, None)
    # Whole pixels around the box: columns 3 to 20, rows 4 to 19.
    assert places == [(18 * 16, 18 * 16)]


def test_counts_follow_the_candidates_from_stage_to_stage() -> None:
    def record(name: str, stage: str, reason: str) -> dict[str, str]:
        return {"problem_id": name, "stage": stage, "reason": reason}

    records = [
        record("a", "extend", "no_boxes"),
        record("b", "check", "flat_extension"),
        *[record("c", "propose", "not_json")] * 2,
        record("d", "box", "outside"),
        record("d", "probe", "kept"),
    ]
    found = counts(records, 2)
    flow = {stage: (one["in"], one["out"]) for stage, one in found.items()}
    assert flow == {
        "extend": (4, 3), "check": (3, 2), "propose": (4, 2), "box": (2, 1), "prompt": (1, 1), "implant": (1, 1),
        "probe": (1, 1),
    }  # fmt: skip
    for one in found.values():
        assert one["in"] == one["out"] + sum(one["dropped"].values())


def test_names_of_pictures_are_names_and_differ() -> None:
    names = [file_name(name) for name in ("a/b", "a_b", "../x", "a" * 300, "a" * 301)]
    assert len(set(names)) == 5 and names[1] == "a_b"
    assert not any("/" in name or "." in name or len(name) > 130 for name in names)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale": 0.5}, "scale=0.5"),
        ({"num_proposals": 33}, "num_proposals=33"),
        ({"num_things": 0}, "num_things=0"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"min_box": 0.2}, "min_box=0.2"),
        ({"right_after": 0.75}, "right_after=0.75"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StagesConfig(**changes)


def test_greedy_answers_are_drawn_once_and_every_field_is_explained() -> None:
    with pytest.raises(ValueError, match="num_draws=4"):
        AOTSFTConfig(temperature=None)
    with pytest.raises(ValueError, match=r"painter.path=''"):
        AOTSFTConfig(implants="paint")
    with pytest.raises(ValueError, match=r"painter.path='x'"):
        AOTSFTConfig(painter=PainterConfig("x"))
    for config in (AOTSFTConfig, HelperConfig, PainterConfig, StagesConfig):
        assert undocumented_fields(config) == []


@pytest.mark.slow
def test_the_command_makes_pairs_from_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["data", "aot-sft", "--num-problems", "32", "--model.precision", "fp32", "--out", str(out)]
    assert main(command) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    pairs, clean = JsonlProblems(out / "pairs.jsonl"), JsonlProblems(out / "clean.jsonl")
    attacker = file_pairs(str(out / "attacker.jsonl"))
    assert len(pairs) == len(clean) == len(attacker.source.problems) == manifest["num_pairs"] > 0
    assert manifest["settings"]["pictures"] == {"source": "generated", "license": "generated"}
    assert manifest["broken"]["of"] == manifest["num_pairs"]
    assert sum(stage["in"] - stage["out"] for stage in manifest["stages"].values()) + len(pairs) == len(
        (out / "records.jsonl").read_text().splitlines()
    )
    assert {"probe", "useless"} <= set(capsys.readouterr().out.replace(",", " ").split())
    sizes: Sequence[int] = [pairs[0].images[0].shape[-1], clean[0].images[0].shape[-1]]
    assert sizes == [144, 144]
