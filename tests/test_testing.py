"""A whole test of a model: its folder, interruptions, and what must not be mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chat_server import answer_with, chat_server, shown_picture, status
from sparring.configs import ConfigError
from sparring.endpoints import EndpointConfig, EndpointError
from sparring.errors import UserError
from sparring.evaluation.comparison import compare, read_tested
from sparring.evaluation.suite import read_outcomes
from sparring.recipes import testing as recipe
from sparring.recipes.run import ModelConfig
from sparring.recipes.testing import AttackSettings, TestingConfig, open_test
from sparring.report.page import write_report
from sparring.report.tables import card_lines
from sparring.rewards import Grader
from toy_grader import ParityGrader


@pytest.fixture(autouse=True)
def parity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random responses of an untrained model are right every other time."""
    monkeypatch.setattr(recipe, "Grader", ParityGrader)
    yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows with small pictures, and one that is none."""
    folder = tmp_path_factory.mktemp("data")
    for n in range(5):
        Image.fromarray(np.random.default_rng(n).integers(256, size=(16, 24, 3), dtype=np.uint8)).save(
            folder / f"{n}.png"
        )
    rows = [{"question": f"Is number {n} red?", "image": f"{n}.png", "answer": ("yes", "no")[n % 2]} for n in range(5)]
    (folder / "data.jsonl").write_text("{\n" + "".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.fixture
def config(tiny_folders: dict[str, Path], data: Path) -> TestingConfig:
    return TestingConfig(
        model=ModelConfig(str(tiny_folders["qwen3_vl"]), precision="fp32", device="cpu"),
        data=str(data),
        on_bad="skip",
        num_problems=4,
        threats=("gaussian_noise:5", "typos:3"),
        max_new_tokens=4,
        batch_size=2,
        gallery=0,
    )


def outcomes(folder: Path) -> list[dict[str, Any]]:
    found = [vars(outcome) for outcome in read_outcomes(folder / "outcomes.jsonl")]
    return sorted(found, key=lambda o: (o["threat"], o["problem_id"], o["sample"]))


def run_test(config: TestingConfig, folder: Path, on_progress: Any = None) -> dict[str, Any]:
    return open_test(replace(config, out=folder)).run(on_progress)


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop_after(num: int, stage: str = "testing") -> Any:
    def on_progress(now: str, num_done: int, total: int) -> None:
        if now == stage and num_done >= num:
            raise Stop

    return on_progress


def interrupted(config: TestingConfig, folder: Path, num: int, stage: str = "testing") -> None:
    with pytest.raises(Stop):
        run_test(config, folder, stop_after(num, stage))


def test_the_folder_of_a_test(config: TestingConfig, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    threats = ("gaussian_noise:1", "gaussian_noise:5", "typos:3")
    config = replace(config, threats=threats, gallery=1)
    card = run_test(config, tmp_path, lambda *progress: seen.append(progress))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "provenance.jsonl", "outcomes.jsonl", "card.json", "card.md", "gallery", "bad-rows.txt",
    }  # fmt: skip
    # The row that is no JSON is counted wherever the problems are, with the file that says what is wrong with it.
    (why,) = (tmp_path / "bad-rows.txt").read_text().splitlines()
    assert why.startswith(f"{config.data}, line 1: not JSON")
    said = "4 problems, 1 bad row left out (bad-rows.txt says why)"
    assert said in (tmp_path / "card.md").read_text() and card_lines(card)[0] == said
    assert said in write_report(tmp_path).read_text()
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert list(card["threats"]) == ["clean", "blank", *threats]
    assert {k: card["data"][k] for k in ("name", "num_problems", "num_bad")} == {
        "name": "data.jsonl", "num_problems": 4, "num_bad": 1,
    }  # fmt: skip
    assert card["decoding"] == {"mode": "greedy", "num_samples": 1, "temperature": None, "max_new_tokens": 4}
    # Two batches of two problems under five threats; then an example for each of three threats.
    tested = [("testing", num, 20) for num in range(0, 21, 2)]
    assert seen == tested + [("gallery", num, 3) for num in range(4)] and len(outcomes(tmp_path)) == 20
    for name, entry in card["threats"].items():
        right = [o["is_correct"] for o in outcomes(tmp_path) if o["threat"] == name]
        assert entry["accuracy"]["value"] == sum(right) / 4
    assert set(card["corruptions"]["by_name"]["gaussian_noise"]["severities"]) == {"1", "5"}
    examples = [json.loads(line) for line in (tmp_path / "gallery/gallery.jsonl").read_text().splitlines()]
    assert len(examples) == 3, "blank, one severity of the noise, and the edit"


@pytest.mark.parametrize("num_samples", [1, 2])
def test_an_interrupted_test_goes_on_to_the_same_end(
    config: TestingConfig, tmp_path: Path, num_samples: int, caplog: pytest.LogCaptureFixture
) -> None:
    if num_samples > 1:
        config = replace(config, num_samples=2, temperature=0.8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run_test(config, whole)
    interrupted(config, parts, 3)
    # What a kill in the middle of a write leaves: a torn line, and before it problems without their other sample.
    file = parts / "outcomes.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]) + b'{"problem_id": "scen')
    caplog.clear()
    interrupted(replace(config, batch_size=3, threads=1), parts, 8)
    assert [record.getMessage() for record in caplog.records] == [f"{file}: its last line was cut off and is removed"]
    assert run_test(config, parts) == expected
    assert outcomes(parts) == outcomes(whole)
    assert len((parts / "provenance.jsonl").read_text().splitlines()) == 3
    # Nothing is left to do, and nothing is done twice.
    before = file.read_bytes()
    assert run_test(config, parts) == expected and file.read_bytes() == before


def test_attacks_and_their_checks_resume_too(config: TestingConfig, tmp_path: Path) -> None:
    settings = AttackSettings(num_steps=1, num_restarts=1, num_checked=2)
    config = replace(config, threats=("pgd:16/255",), attack=settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run_test(config, whole)
    own = expected["attacks"]["pgd:16/255"]
    assert own["accuracy"]["value"] == expected["threats"]["pgd:16/255"]["accuracy"]["value"]
    assert len(own["loss_by_step"][0]) == 2, "before the step, and at the end"
    checks = {check["name"]: check for check in expected["checks"]}
    assert {check["threat"] for check in expected["checks"]} == {"pgd:16/255"}
    assert checks["regenerated"]["passed"] and "not run" in checks["stronger_than_transfer"]["detail"]
    assert "not run" not in checks["stronger_than_noise"]["detail"]
    interrupted(config, parts, 6)
    # The outcomes of the last part are lost, the records of its attack are not.
    file = parts / "outcomes.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2]))
    # Made again in batches of the same size: another packing would round the losses otherwise.
    interrupted(config, parts, 0, "checking attacks")
    # Two controls of two problems, one batch after another; they too go on where they were.
    interrupted(replace(config, batch_size=1), parts, 1, "checking attacks")
    seen: list[tuple[str, int, int]] = []
    assert run_test(config, parts, lambda *progress: seen.append(progress)) == expected
    assert [done[1:] for done in seen if done[0] == "checking attacks"] == [(0, 4), (2, 4), (4, 4)]
    # Of the controls the last is lost: it alone is made again.
    file = parts / "attacks.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert run_test(config, parts) == expected
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["control"], line["problem_id"]) for line in lines} >= {("attack", "data-2"), ("noise", "data-3")}


def test_another_test_is_refused_by_name(config: TestingConfig, tmp_path: Path) -> None:
    interrupted(config, tmp_path, 1)
    for other, name in (
        (replace(config, seed=1), "seed"),
        (replace(config, threats=("fog:1",), max_new_tokens=5), "threats, max_new_tokens"),
        (replace(config, num_problems=3), "num_problems"),
    ):
        with pytest.raises(ConfigError, match=f"differs from this test in: {name};"):
            run_test(other, tmp_path)
    with pytest.raises(UserError, match="needs the model's weights"):
        run_test(replace(config, threats=("pgd:4/255",), model=ModelConfig("http://host/v1")), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_test(replace(config, model=ModelConfig("nowhere")), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    first, *rest = (tmp_path / "provenance.jsonl").read_text().splitlines()
    assert rest == [], "what was refused has left no trace"
    changed = json.loads(first) | {"model": {"config.json": "other"}}
    (tmp_path / "provenance.jsonl").write_text(json.dumps(changed) + "\n")
    with pytest.raises(ConfigError, match="begun with other model"):
        run_test(config, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"outcomes without a config\.json"):
        run_test(config, tmp_path)


def test_a_reference_card(config: TestingConfig, tmp_path: Path) -> None:
    run_test(config, tmp_path / "base")
    again = run_test(replace(config, reference=tmp_path / "base"), tmp_path / "base")
    mce = again["corruptions"]["mce"]
    assert mce["value"] == pytest.approx(1) or mce["notes"]
    (tmp_path / "no.json").write_text("{}")
    for path in (tmp_path / "no.json", tmp_path / "nowhere.json"):
        with pytest.raises(UserError, match=r"not the card\.json"):
            run_test(replace(config, reference=path), tmp_path / "new")


def test_a_reference_that_does_not_fit_is_refused_before_anything_is_tested(
    config: TestingConfig, tmp_path: Path
) -> None:
    run_test(config, tmp_path / "base")
    for other, said in ((replace(config, threats=("snow:4",)), "lacks snow at severity 4"),
                        (replace(config, num_problems=3), "on other data")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            open_test(replace(other, reference=tmp_path / "base", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_endpoint_on_a_file_goes_on_after_it_went_down(config: TestingConfig, tmp_path: Path) -> None:
    is_open: list[bool] = [True] * 5 + [False]

    def moody(handler: Any, body: dict[str, Any]) -> None:
        """Five answers, then a refusal, then answers again."""
        step = answer_with("\\boxed{yes}") if not is_open or is_open.pop(0) else status(400, "closed")
        step(handler, body)

    with chat_server(otherwise=moody) as server:
        config = replace(
            config,
            model=ModelConfig(server.url),
            endpoint=EndpointConfig(model="m", first_wait_seconds=0.01, concurrency=1),
            threats=("fog:1",),
        )
        folder = tmp_path / "eval"
        with pytest.raises(EndpointError, match="closed"):
            run_test(config, folder)
        # The first batch of two came whole under clean and blank; of fog one answer came, and is in the cache.
        assert len(outcomes(folder)) == 4 and len(list((folder / "cache").glob("*.json"))) == 5
        card = run_test(replace(config, endpoint=replace(config.endpoint, concurrency=4)), folder)
        assert len(server.bodies) == 12 + 1, "nothing is asked twice but what was refused"
    assert len(outcomes(folder)) == 12 and card["threats"]["clean"]["yes_no"]["num"] == 4


def test_an_endpoint_and_a_policy_are_compared(config: TestingConfig, tmp_path: Path) -> None:
    run_test(replace(config, threats=("fog:1",)), tmp_path / "policy")
    with chat_server() as server:
        endpoint = EndpointConfig(model="m")
        by_http = replace(config, model=ModelConfig(server.url), endpoint=endpoint, threats=("fog:1",), gallery=2)
        card = run_test(by_http, tmp_path / "endpoint")
        assert len(server.bodies) == 12, "the gallery asks for nothing new"
    assert card["model"] == {"name": f"m at {server.url}", "kind": "endpoint", "fingerprint": None}
    found = compare(read_tested(tmp_path / "policy"), read_tested(tmp_path / "endpoint"))
    assert list(found["threats"]) == ["clean", "blank", "fog:1"] and found["num_problems"] == 4
    run_test(replace(config, data="scenes", num_problems=1, threats=("fog:1",), gallery=0), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not the same problems"):
        compare(read_tested(tmp_path / "policy"), read_tested(tmp_path / "elsewhere"))


def test_an_endpoint_is_attacked_with_noise_and_from_another_model(
    config: TestingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "Grader", Grader)
    by_number: dict[int, list[np.ndarray]] = {}

    def answer(handler: Any, body: dict[str, Any]) -> None:
        """Right on the clean picture, the first to be shown, and on the first changed one; then wrong."""
        number = int(body["messages"][0]["content"][1]["text"].split()[2])
        seen = by_number.setdefault(number, [])
        picture = shown_picture(body).astype(int)
        if picture.std() > 0:  # not the blank one
            seen.append(picture)
        word = ("yes", "no")[(number + (len(seen) > 2)) % 2]
        answer_with(f"\\boxed{{{word}}}")(handler, body)

    with chat_server(otherwise=answer) as server:
        config = replace(
            config,
            model=replace(config.model, path=server.url),
            endpoint=EndpointConfig(model="m", concurrency=1),
            threats=("random_sign:8/255", "transfer:8/255"),
            attack=AttackSettings(num_steps=1, num_restarts=2, surrogate=config.model.path),
            gallery=1,
        )
        card = run_test(config, tmp_path)
        # Clean and blank; two draws, the second of which breaks; and the first picture of the other model, broken too.
        assert len(server.bodies) == 4 * (2 + 2 + 1), "the gallery asks for nothing new"
        assert run_test(config, tmp_path) == card and len(server.bodies) == 20, "and so does the same test again"
    # The surrogate is part of the test as the model is.
    first, *_ = (tmp_path / "provenance.jsonl").read_text().splitlines()
    origin = json.loads(first)
    assert origin["model"] is None and len(origin["surrogate"]) == 64
    (tmp_path / "provenance.jsonl").write_text(json.dumps(origin | {"surrogate": "0" * 64}) + "\n")
    with pytest.raises(ConfigError, match="begun with other surrogate"):
        run_test(config, tmp_path)
    (tmp_path / "provenance.jsonl").write_text(json.dumps({k: origin[k] for k in origin if k != "surrogate"}) + "\n")
    open_test(replace(config, out=tmp_path))
    for clean, *changed in by_number.values():
        for picture in changed:
            assert picture.shape == (16, 24, 3) and 0 < abs(picture - clean).max() <= 8
    lines = [json.loads(line) for line in (tmp_path / "attacks.jsonl").read_text().splitlines()]
    assert {(line["threat"], line["broken_by"], line["is_right_unrounded"]) for line in lines} == {
        ("random_sign:8/255", 1, False), ("transfer:8/255", 0, False),
    }  # fmt: skip
    assert card["threats"]["clean"]["accuracy"]["value"] == 1 and card["checks"] == []
    for name in config.threats:
        assert card["threats"][name]["accuracy"]["value"] == card["attacks"][name]["accuracy_float"]["value"] == 0


def test_default_threats_are_what_the_subject_allows(config: TestingConfig) -> None:
    named = [threat.name for threat in replace(config, threats=()).all_threats]
    assert named[:2] == ["clean", "blank"] and len(named) == 2 + 15 + 2 and named[-1] == "pgd:4/255"
    for other in (replace(config, temperature=0.5), replace(config, model=ModelConfig("http://localhost:1/v1"))):
        assert [threat.name for threat in replace(other, threats=()).all_threats] == named[:-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_problems": 0}, {"num_samples": 0}, {"batch_size": 0}, {"gallery": -1}, {"temperature": 0.0},
        {"num_samples": 2}, {"max_new_tokens": 0}, {"threads": 0}, {"threats": ("cleen",)},
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TestingConfig(**settings)
    with pytest.raises(ValueError, match="num_checked=-1"):
        AttackSettings(num_checked=-1)
