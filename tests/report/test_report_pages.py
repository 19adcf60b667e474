"""Whole pages: what they say, what they leave out, and that nothing a model wrote becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_folders import (
    HOSTILE,
    HOSTILE_SHOWN,
    card,
    metrics,
    outcomes,
    write_evaluation,
    write_json,
    write_lines,
    write_run,
    write_study,
)
from sparring.cli import main
from sparring.errors import UserError
from sparring.evaluation.comparison import compare, read_tested
from sparring.report.page import write_comparison_page, write_report

BLOCKS = frozenset({"dd", "dt", "pre", "small", "td", "th"})
"""What stands apart from the text before it without white space between them."""


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.style = ""
        self._pieces: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    @property
    def text(self) -> str:
        """All text, with white space as a reader sees it."""
        return " ".join("".join(self._pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in BLOCKS:
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style" and not self.style:
            self.style = data
        else:
            self._pieces.append(data)


def test_a_run(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run")))
    # Clean: 2 of 8 became 7 of 8. Noisy: one gained, one lost.
    for expected in (
        "grpo on bundled",
        "After training, accuracy changed: clean +62.5 points (95 % interval",
        "no change can be told on noisy",
        "4 of 4 done",
        "step 4, the best on validation",
        "torch 2.13.0",
        f"sparring train --config {tmp_path}/run/config.json --out {tmp_path}/run-again",
        "Left out: no gallery of examples.",
        "25.0 7.1–59.1",  # Wilson, 2 of 8
    ):
        assert expected in page.text
    row = page.text[page.text.index("clean 25.0") :].partition("noisy")[0]
    # McNemar: of seven that changed six were gained, 2 (1 + 7) / 2^7 = 0.125; Holm doubles it, as noisy is tested too.
    assert (
        "87.5" in row
        and "6 / 1 0.250" in row
        and "1 / 1 1.000" in page.text
        and "100.0 → 100.0" in row
        and "13.5 → 13.5" in row
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data": "scenes", "style": "list"}, "data generated scenes with their reasoning in the style list"),
        ({"data": "pairs.jsonl", "style": None, "teachers": None}, "data responses in pairs.jsonl"),
        ({"data": "scenes", "teachers": "runs/t"}, "data responses of teachers in runs/t to problems of scenes"),
    ],
)
def test_a_supervised_run(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    run = write_run(tmp_path / "run")
    write_json(run / "config.json", {"steps": 3, "method": {"name": "sft"}, "model": {"path": "bundled"}, **settings})
    validation = {"step": 3, "validation/nll": 0.6, "validation/score": 0.55, "validation/accuracy": 0.5}
    logged = [{"step": step, "loss": 1 / step, "nll": 1 / step, "seconds": 1.0} for step in (1, 2, 3)]
    write_lines(run / "metrics.jsonl", [*logged, validation])
    page = Page(write_report(run))
    for expected in (
        "sft on bundled",
        "clean +62.5 points",
        told,
        "Negative log-likelihood, nats per token training validation",
        f"sparring sft --config {tmp_path}/run/config.json",
    ):
        assert expected in page.text, expected


def test_a_run_shows_the_corruptions_of_its_card(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "Corruptions after training" not in Page(write_report(run)).text
    write_json(run / "card-after.json", card())
    page = Page(write_report(run))
    assert "Corruptions after training Mean over all corruptions 50.0" in page.text
    assert any((value or "").startswith("Accuracy under gaussian_noise by severity") for _, value in page.attributes)


def test_a_run_shows_what_its_cards_say_of_its_tests(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for label, value in (("before", 0.25), ("after", 0.75)):
        told = {"families": {"reading": {"value": value, "low": 0.1, "high": 0.9}}, "reasons": {"shouted": value}}
        write_json(run / f"card-{label}.json", {"threats": {"clean": told | {"well_formed": value}}})
    text = Page(write_report(run)).text
    assert "reading 25.0 10.0–90.0 75.0 10.0–90.0" in text and "25.0 → 75.0" in text
    assert "threat shouted clean 25.0" in text and "threat shouted clean 75.0" in text


@pytest.mark.parametrize(
    ("num_steps", "is_tested", "parts"),
    [
        (2, False, ["has done 2 of 4 steps", "no test before training", "no test after training: 2 of 4"]),
        (4, False, ["has not been tested", "no test after training"]),
        (0, False, ["has done 0 of 4 steps", "no gallery"]),
    ],
)
def test_a_run_that_is_going_on(tmp_path: Path, num_steps: int, is_tested: bool, parts: list[str]) -> None:
    page = Page(write_report(write_run(tmp_path, num_steps=num_steps, is_tested=is_tested)))
    assert all(part in page.text for part in parts)


def test_a_run_that_was_only_tested_before(tmp_path: Path) -> None:
    write_run(tmp_path, num_steps=2)
    (tmp_path / "test-after.jsonl").unlink()
    # The line that a crash cut off is left out.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    page = Page(write_report(tmp_path))
    assert "Before training" in page.text and "25.0 7.1–59.1" in page.text and "has done 2 of 4 steps" in page.text


def test_an_evaluation(tmp_path: Path) -> None:
    page = Page(write_report(write_evaluation(tmp_path)))
    for expected in (
        "How well fine holds up",
        "Right on 80.0 % (95 % interval 70.0 to 90.0) of clean pictures, and on 10.0 %",
        "under the worst of 7 threats, pgd:4/255; one sanity check failed",
        "1 of 3 checks passed, 1 failed",
        "mCE 90.0, relative mCE –, against older = 100",
        "relative mCE undefined",
        "gaussian_noise CE 90.0, relative – 50.0",
        "Edited questions Accuracy by severity of the edit",
        "F1 precision recall yes ratio questions typos:2 70.0 90.0 – 50.0 8",
        "answer 4 · right → wrong · p1 · the threat changed the question",
        "answer 0: fine",
        "least sure of “four”, 1.70 nats",
        "greedy, at most 64 tokens",
        "pgd:4/255 2 2 10.0",
    ):
        assert expected in page.text
    assert page.tags.count("img") == 3 and page.tags.count("del") >= 1
    charts = [value for name, value in page.attributes if name == "aria-label" and value]
    assert any(
        value.startswith("Accuracy under gaussian_noise by severity. gaussian_noise: 80.0 %") for value in charts
    )
    edited = next(value for value in charts if value.startswith("Accuracy under typos by severity"))
    assert "typos: 80.0 % at severity 0, 50.0 % at severity 5" in edited
    assert "all samples right" not in page.text
    assert any("pgd: 80.0 % at radius in 255ths (L∞) 0, 10.0 %" in value for value in charts)
    assert any("restart 1: 0.3 at step of the attack 0, 1.2 at step of the attack 2" in value for value in charts)


def test_an_evaluation_without_attacks_lacks_no_checks(tmp_path: Path) -> None:
    told, folder = card(), write_evaluation(tmp_path)
    threats = told["threats"]
    told["checks"] = []
    write_json(folder / "card.json", told)
    assert "no checks of the attacks" in Page(write_report(folder)).text
    told["threats"] = {name: threats[name] for name in ("clean", "blank", "gaussian_noise:5", "random_sign:4/255")}
    write_json(folder / "card.json", told)
    text = Page(write_report(folder)).text
    assert "no checks of the attacks" not in text
    # Random signs are a control; of one threat there is no worst.
    assert "and on 30.0 % (95 % interval 20.0 to 40.0) under gaussian_noise:5." in text


def test_one_severity_is_no_curve(tmp_path: Path) -> None:
    told, folder = card(), write_evaluation(tmp_path)
    by_name = told["corruptions"]["by_name"]
    by_name["gaussian_noise"]["severities"] = {"3": by_name["gaussian_noise"]["severities"]["3"]}
    del told["threats"]["typos:5"]
    write_json(folder / "card.json", told)
    text = Page(write_report(folder)).text
    assert "Accuracy by severity" not in text and "Mean over severities" in text and "typos:2" in text


CHECKS = [
    {"threat": "attacked", "name": "loss_rises", "passed": True, "detail": "mean 0.1 to 0.9 <b>"},
    {"threat": "attacked", "name": "large_budget", "passed": False, "detail": "9 of 50 right"},
]


def test_attacks_of_training_runs_and_studies_are_told_with_their_checks(tmp_path: Path) -> None:
    note = "Attacks: 5 steps, one restart, without controls and checks"
    checked = "Attacks: 5 steps, one restart, 1 of 2 checks passed, 1 failed."
    run = write_run(tmp_path / "run")
    assert "Attacks: " not in Page(write_report(run)).text, "it is not attacked"
    for name in ("test-before.jsonl", "test-after.jsonl"):
        write_lines(run / name, outcomes("clean", [1, 0]) + outcomes("attacked", [1, 0]))
    strength = {"evaluation": {"strength": {"attack_steps": 5}}}
    write_json(run / "config.json", json.loads((run / "config.json").read_text()) | strength)
    assert note in Page(write_report(run)).text, "as earlier versions left it"
    write_json(run / "card-after.json", {"checks": CHECKS})
    text = Page(write_report(run)).text
    assert checked in text and "attacked, after training 1 of 2 checks passed, 1 failed" in text
    assert "large budget 9 of 50 right" in text and "mean 0.1 to 0.9 <b>" in text
    study = write_study(tmp_path / "study")
    told = json.loads((study / "study.json").read_text())
    assert "Attacks: " not in Page(write_report(study)).text
    told |= {"conditions": [{"label": "hard", "threats": ["attacked"]}], "arms": {"grpo": {"config": strength}}}
    write_json(study / "study.json", told)
    assert note in Page(write_report(study)).text
    table = json.loads((study / "table.json").read_text())
    runs = [{"run": name} | check for name in ("before", "grpo-0") for check in CHECKS[:1]]
    write_json(study / "table.json", table | {"checks": [*runs, {"run": "grpo-0"} | CHECKS[1]]})
    text = Page(write_report(study)).text
    assert "Attacks: 5 steps, one restart, 2 of 3 checks passed, 1 failed." in text
    assert "loss rises passed for 2 of 2 models" in text
    assert "large budget passed for 0 of 1 models; failed for grpo-0: 9 of 50 right" in text


def test_two_tests_without_a_problem_in_common_make_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    write_lines(second / "outcomes.jsonl", outcomes("fog:1", [1, 0]))
    with pytest.raises(SystemExit) as stop:
        main(["report", str(first), str(second)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "there is nothing to pair" in error and error.count("\n") == 1
    assert list(second.glob("against-*")) == []


def test_lists_of_settings_are_written_as_in_a_command(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    write_json(first / "config.json", {"threats": ["fog:1", "pgd:4/255"]})
    write_json(second / "config.json", {"threats": []})
    text = Page(write_comparison_page(first, second)).text
    assert "threats fog:1 pgd:4/255 none" in text and "[" not in text.partition("Settings that differ")[2][:200]


def test_what_kept_the_figures_down_is_said_at_the_top(tmp_path: Path) -> None:
    told = card()
    told["threats"]["clean"] |= {"truncated": 0.62, "reasons": {"no_answer": 0.9}}
    folder = write_evaluation(tmp_path)
    assert "To be read with care" not in write_report(folder).read_text()
    write_json(folder / "card.json", told)
    text = write_report(folder).read_text()
    assert "62 % of the responses to clean pictures were cut at 64 tokens: raise --max-new-tokens" in text
    assert r"90 % of the responses to clean pictures have no \boxed{}" in text


def test_an_evaluation_of_several_samples(tmp_path: Path) -> None:
    sampled = card()
    for entry in sampled["threats"].values():
        entry["strict_k"] = {"value": 0.125, "low": 0.1, "high": 0.2}
    write_json(write_evaluation(tmp_path) / "card.json", sampled)
    page = Page(write_report(tmp_path))
    assert "all samples right" in page.text and "12.5 10.0–20.0" in page.text


def test_an_evaluation_without_card_is_counted_from_its_outcomes(tmp_path: Path) -> None:
    write_lines(tmp_path / "outcomes.jsonl", outcomes("clean", [1, 1, 0, 0]) + outcomes("fog:3", [1, 0, 0, 0]))
    page = Page(write_report(tmp_path))
    assert "Right on 50.0" in page.text and "fog:3" in page.text and "not finished" in page.text


def test_a_study(tmp_path: Path) -> None:
    written = write_report(write_study(tmp_path / "s"))
    page = Page(written)
    for expected in (
        "1 of 2 differences to grpo can be told from chance, the largest: saei on clean +5.0 points",
        "4 done, 1 failed",
        "roma-0 a loss that is not finite",
        "clean 50.0 ± 1.0 48.0–52.0 60.0 ± 1.0 58.0–62.0 65.0 ± 1.0 63.0–67.0",
        "saei − grpo",
        "2 seeds",
        f"sparring study 'my recipes/headline.py' --seeds 0 1 --out {tmp_path}/s-again",
    ):
        assert expected in page.text
    assert "Validation accuracy, sampled grpo saei" in page.text and "1 more curve" in page.text
    text = written.read_text()
    assert '<span class="best">65.0' in text and '<span class="second">60.0' in text
    assert any("grpo: 0.51 at step 1, 0.54 at step 4" in (value or "") for _, value in page.attributes)


def test_many_methods_of_a_study_stand_below_one_another(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s")
    record, table = (json.loads((study / name).read_text()) for name in ("study.json", "table.json"))
    for number in range(7):
        name = f"arm-{number}"
        record["arms"][name], table["cells"][name], table["seeds"][name] = {}, table["cells"]["saei"], [0]
        table["methods"].append(name)
    write_json(study / "study.json", record)
    write_json(study / "table.json", table)
    page = Page(write_report(study))
    assert "method clean blank before 50.0 ± 1.0 48.0–52.0 30.0" in page.text
    assert "arm-6 1 seed 65.0 ± 1.0 63.0–67.0 30.0" in page.text
    assert "methods 10 seeds" in page.text


def test_a_study_without_a_finished_run_has_no_curves(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    for name in ("table.json", "curves.json"):
        (study / name).unlink()
    page = Page(write_report(study))
    assert "Left out: no table and no curves: no run is finished." in page.text
    assert "svg" not in page.tags and "torch 2.13.0" in page.text
    # A study of an earlier version does not tell how it was started.
    told = json.loads((study / "study.json").read_text())
    write_json(study / "study.json", {name: value for name, value in told.items() if name != "recipe"})
    assert "sparring study" not in Page(write_report(study)).text


def test_two_runs_compared(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_lines(second / "test-after.jsonl", outcomes("clean", [1, 1, 1, 1], "new text") + outcomes("fog:1", [1]))
    config = json.loads((second / "config.json").read_text())
    write_json(second / "config.json", config | {"method": {"name": "saei", "num_clean": 4}, "out": "elsewhere"})
    written = write_comparison_page(first, second)
    assert written == second / "against-a.html"
    page = Page(written)
    # On p0 to p3, A is right on three and B on four; A's p4 to p7 have no partner, and noisy was not asked of B.
    for expected in (
        "75.0 30.1–95.4 100.0 51.0–100.0 +25.0",
        "1 / 0 1.000",
        "4 (4 left out: only one has them)",
        "method.name grpo saei method.num_clean not set 4",
        "clean p1 only B right A wrong fine B correct new text",
    ):
        assert expected in page.text
    assert "noisy" not in page.text and "elsewhere" not in page.text
    assert any("A: 0.51 at step 1" in (value or "") for _, value in page.attributes)


def test_a_page_of_two_tests_shows_the_figures_of_sparring_compare(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    for folder, verdicts in ((first, [0, 0, 0, 0, 0, 0, 0, 1]), (second, [1, 1, 1, 1, 1, 1, 1, 0])):
        rows = outcomes("clean", verdicts) + outcomes("fog:1", [1, *verdicts[1:]])
        write_lines(folder / "outcomes.jsonl", rows)
    found = compare(read_tested(first), read_tested(second))["threats"]
    # Of eight that differ seven were gained: 2 (1 + 8) / 2^8 = 0.0703; of seven six: 2 (1 + 7) / 2^7 = 0.125. Holm
    # doubles the smaller one, and the larger may not be below it.
    assert [found[name]["mcnemar"]["p_holm"] for name in ("clean", "fog:1")] == [2 * 18 / 256, 2 * 18 / 256]
    text = Page(write_comparison_page(first, second)).text
    for name, counts in (("clean", "7 / 1 0.141"), ("fog:1", "6 / 1 0.141")):
        low, high = (f"+{100 * found[name]['difference'][bound]:.1f}" for bound in ("low", "high"))
        assert f"+{100 * found[name]['difference']['value']:.1f} {low} to {high}" in text and counts in text


def test_tests_that_were_made_otherwise_are_not_compared_like_for_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    assert "Not like for like" not in Page(write_comparison_page(first, second)).text
    for folder, steps in ((first, 20), (second, 5)):
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"attack": {"num_steps": steps}})
        write_lines(folder / "outcomes.jsonl", outcomes("clean", [1, 0]) + outcomes("pgd:8/255", [1, 0]))
    page = Page(write_comparison_page(first, second))
    # In the box at the top; in the table of settings the same stands under its name in the file.
    assert "Not like for like. The two were not tested alike" in page.text
    assert "attack steps: 20 in A, 5 in B (pgd:8/255)" in page.text and "attack.num_steps 20 5" in page.text
    assert main(["compare", str(first), str(second)]) == 0
    assert "warning: not like for like: attack steps: 20 in A, 5 in B (pgd:8/255)" in capsys.readouterr().out


def test_nothing_that_a_model_wrote_becomes_markup(tmp_path: Path) -> None:
    run, other = (write_run(tmp_path / name, text=HOSTILE) for name in ("run", "other"))
    write_lines(other / "test-after.jsonl", outcomes("clean", [0] * 8, HOSTILE))
    for label, folder in (("a", run), ("b", other)):
        write_json(
            folder / "card-after.json", {"attacks": {}, "decoding": {"mode": "x", "temperature": HOSTILE + label}}
        )
    pages = [
        write_report(run),
        write_report(write_evaluation(tmp_path / "evaluation", text=HOSTILE)),
        write_report(write_study(tmp_path / "study", text=HOSTILE)),
        write_comparison_page(run, other),
    ]
    for path in pages:
        page = Page(path)
        assert not {"script", "iframe", "object", "form", "base"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
        assert not [value for name, value in page.attributes if name in ("src", "href") and not is_inside(value)]
        assert "\u202e" not in page.text and "\x00" not in page.text
    for path in pages[1:]:
        assert " ".join(HOSTILE_SHOWN.split()) in Page(path).text


def is_inside(address: str | None) -> bool:
    return address is not None and address.startswith(("data:", "#"))


def test_hostile_names_and_values(tmp_path: Path) -> None:
    """Records of the wrong kind make a page all the same: they are shown, or left out."""
    benchmark = {"title": HOSTILE, "protocol": 3, "figures": {HOSTILE: {HOSTILE: {"value": "x", "num": []}}}}
    threats = {HOSTILE: {"kind": HOSTILE, "accuracy": "x", "yes_no": {}}}
    write_json(tmp_path / "card.json", {"threats": threats, "benchmark": benchmark})
    write_lines(
        tmp_path / "gallery" / "gallery.jsonl", [{"clean": 3, "shown": [], "question": None, "threat": HOSTILE}]
    )
    page = Page(write_report(tmp_path))
    assert "⟨U+202E⟩gnp.exe" in page.text and "script" not in page.tags


def test_the_policy_allows_the_page_its_own_style_and_nothing_else(tmp_path: Path) -> None:
    page = Page(write_report(write_evaluation(tmp_path)))
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert policy == allowed and "@import" not in page.style and "url(" not in page.style


def test_headings_and_pictures_can_be_heard(tmp_path: Path) -> None:
    page = Page(write_report(write_evaluation(tmp_path)))
    assert page.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all(value for name, value in page.attributes if name == "alt")
    assert len([name for name, _ in page.attributes if name == "alt"]) == page.tags.count("img")
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href" and value and value[0] == "#"} <= anchors


ANYTHING: tuple[Any, ...] = (None, "x", [], {}, 3, float("nan"), True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*path, name)
        yield from places(part, (*path, name))


def spoiled(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """The value with another part in one place."""
    result = target = deepcopy(value)
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = part
    return result


@given(st.sampled_from(list(places(card()))), st.sampled_from(ANYTHING))
@settings(max_examples=60)
def test_a_spoiled_card_makes_a_page_or_an_error_in_one_line(path: tuple[Any, ...], part: Any) -> None:
    check_spoiled("card.json", spoiled(card(), path, part), lambda folder: write_evaluation(folder))


@given(st.sampled_from(list(places(card()))), st.sampled_from(ANYTHING))
@settings(max_examples=20)
def test_a_spoiled_card_of_a_run_makes_a_page_or_an_error_in_one_line(path: tuple[Any, ...], part: Any) -> None:
    check_spoiled("card-before.json", spoiled(card(), path, part), write_run)


@given(st.data())
@settings(max_examples=25)
def test_a_spoiled_study_makes_a_page_or_an_error_in_one_line(data: st.DataObject) -> None:
    with TemporaryDirectory() as root:
        files = {
            name: json.loads((write_study(Path(root)) / name).read_text())
            for name in ("study.json", "table.json", "curves.json")
        }
    name = data.draw(st.sampled_from(sorted(files)))
    path = data.draw(st.sampled_from(list(places(files[name]))))
    check_spoiled(name, spoiled(files[name], path, data.draw(st.sampled_from(ANYTHING))), write_study)


def check_spoiled(name: str, value: Any, write: Callable[[Path], Path]) -> None:
    with TemporaryDirectory() as root:
        folder = write(Path(root))
        write_json(folder / name, value)
        try:
            assert write_report(folder).stat().st_size > 0
        except UserError as error:
            assert str(folder / name) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("prepare", "parts"),
    [
        (lambda folder: None, ["holds no training run (metrics.jsonl)", "card.json", "study.json"]),
        (lambda folder: (folder / "card.json").write_text("{"), ["card.json: not JSON"]),
        (lambda folder: (folder / "card.json").write_text("[]"), ["card.json: holds list"]),
        (lambda folder: (folder / "card.json").write_text('{"format": 2}'), ["has format 2", "reads 1"]),
        (lambda folder: (folder / "card.json").write_text('{"checks": {}}'), ["card.json: checks is dict, not a list"]),
        (lambda folder: (folder / "metrics.jsonl").write_text("1\n"), ["metrics.jsonl, line 1"]),
        (lambda folder: (folder / "outcomes.jsonl").write_text("{}\n"), ["outcomes.jsonl, line 1: not an outcome"]),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path: Path, prepare: Callable[[Path], object], parts: list[str]) -> None:
    prepare(tmp_path)
    with pytest.raises(UserError) as error:
        write_report(tmp_path)
    message = str(error.value)
    assert all(part in message for part in parts) and str(tmp_path) in message and "\n" not in message


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    study, going = write_study(tmp_path / "study"), write_run(tmp_path / "going", num_steps=1, is_tested=False)
    run = write_run(tmp_path / "run")
    for pair, part in (((run, study), "is a study"), ((going, run), "it lacks test-after.jsonl")):
        with pytest.raises(UserError, match=part):
            write_comparison_page(*pair)


def test_problems_that_share_only_their_names_are_not_compared(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name) for name in ("a", "b"))
    for folder, truth in ((first, "3"), (second, "4")):
        write_lines(folder / "test-after.jsonl", outcomes("clean", [1, 0], truth=truth))
    with pytest.raises(UserError, match="the answer to 'p0' is '3' in"):
        write_comparison_page(first, second)


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_report(write_run(tmp_path))
    written = page.read_bytes()

    def fails(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path)
    assert page.read_bytes() == written and not list(tmp_path.glob("*.draft"))


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e")
    assert write_report(folder).read_bytes() == write_report(folder, tmp_path / "again.html").read_bytes()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "a"), write_evaluation(tmp_path / "b")
    assert main(["report", str(first)]) == 0
    assert capsys.readouterr().out == f"page: {first / 'report.html'}\n" and (first / "report.html").exists()
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(first), str(second), "--out", str(out)]) == 0
    assert "a against b" in Page(out).text
    assert main(["report", "--help"]) == 0 and "FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no training run"),
        (["a", "b", "c"], "one folder or two"),
        (["--light", "a"], "--light"),
        ([], "one folder or two"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and part in message and message.count("\n") == 1


def test_reporting_does_not_load_torch(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", metrics(3))
    code = "import sys; from sparring.cli import main; main(['report', sys.argv[1]]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
