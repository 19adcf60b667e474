"""The gallery: pictures that are whole and inside its folder, tokens in their colours."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_folders import HOSTILE, HOSTILE_SHOWN, example, write_picture
from sparring.report import gallery
from sparring.report.gallery import Gallery, Token, read_gallery


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("x-clean.png", "x-shown.png", "x-diff.png"):
        write_picture(tmp_path / "gallery" / name)
    return tmp_path / "gallery"


def read(folder: Path, *records: dict[str, object]) -> Gallery:
    found = read_gallery(folder, records)
    assert found is not None
    return found


def test_an_example_in_full(folder: Path) -> None:
    found = read(folder, example())
    (one,) = found.by_threat["typos:2"]
    assert found.notes == [] and found.has_entropies
    assert one.outcome == "right → wrong" and one.is_changed
    assert [picture.caption for picture in one.pictures] == [
        "clean", "typos:2", "difference × 8 (grey: unchanged; clipped)",  # noqa: RUF001
    ]  # fmt: skip
    data = base64.b64decode(one.pictures[0].uri.removeprefix("data:image/png;base64,"))
    assert data == (folder / "x-clean.png").read_bytes()
    clean, shown = one.sides
    assert [(token.text, token.level) for token in clean.tokens] == [("fine", 0), (" four", 5)]
    assert clean.mean_entropy == 0.85 and clean.least_sure == Token(" four", 1.7)
    assert shown.reward == 0.1 and shown.parts == [("answer", 0.0, "fine")]


@pytest.mark.parametrize(
    ("entropy", "level"), [(None, 0), (0.0, 0), (0.049, 0), (0.05, 1), (0.2, 2), (0.5, 3), (1.0, 4), (1.5, 5), (9.0, 5)]
)
def test_levels(entropy: float | None, level: int) -> None:
    assert Token("x", entropy).level == level


def test_tokens_take_the_spaces_of_the_text(folder: Path) -> None:
    record = example()
    record["clean"] |= {"text": "at a\n glance", "tokens": [["at", 0.1], ["a", 0.2], ["glance", 0.3], ["<end>", 0.4]]}
    (one,) = read(folder, record).by_threat["typos:2"]
    assert [token.text for token in one.sides[0].tokens] == ["at", " a", "\n glance", "<end>"]
    assert one.sides[0].tokens[2].space == "\n "


def test_what_a_model_wrote_is_made_visible(folder: Path) -> None:
    (one,) = read(folder, example(HOSTILE)).by_threat["typos:2"]
    assert one.sides[0].tokens[0].text == HOSTILE_SHOWN
    assert one.sides[1].text == f"{HOSTILE_SHOWN} four"


def test_a_huge_response_is_cut(folder: Path) -> None:
    record = example()
    record["clean"] |= {"text": "word " * 100_000, "tokens": [["word ", 0.1]] * 100_000}
    (one,) = read(folder, record).by_threat["typos:2"]
    # 800 tokens of five letters are 4000 letters.
    assert len(one.sides[0].tokens) == 801 and one.sides[0].tokens[-1].text == " … (99,200 more tokens)"
    assert one.sides[0].text.endswith("more characters)")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "missing.png", "note.txt", "torn.png"])
def test_only_whole_pictures_of_the_folder_are_shown(folder: Path, name: str) -> None:
    write_picture(folder.parent / "secret.png")
    (folder / "note.txt").write_text("no picture")
    (folder / "torn.png").write_bytes((folder / "x-clean.png").read_bytes()[:-40])
    found = read(folder, example(difference=name))
    assert [picture.caption for picture in found.by_threat["typos:2"][0].pictures] == ["clean", "typos:2"]
    assert found.notes == ["1 pictures are missing or broken and not shown."]


def test_a_page_is_not_endless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_BYTES", (folder / "x-clean.png").stat().st_size)
    monkeypatch.setattr(gallery, "MOST_EXAMPLES", 1)
    found = read(folder, example(), example())
    (one,) = found.by_threat["typos:2"]
    assert len(one.pictures) == 1
    assert "2 pictures are not shown" in found.notes[0] and "1 more examples" in found.notes[1]


def test_what_does_not_fit_is_missing_from_all_threats_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As files have them: controls first, attacks last.
    names = ["blank"] * 3 + ["fog:1"] * 3 + ["pgd:4/255"] * 3
    records = [example(threat=name, problem_id=f"p{n}") for n, name in enumerate(names)]
    # Two rounds, the second without blank; six pictures are in the first two examples.
    monkeypatch.setattr(gallery, "MOST_EXAMPLES", 5)
    monkeypatch.setattr(gallery, "MOST_BYTES", 6 * (folder / "x-clean.png").stat().st_size)
    found = read(folder, *records)
    shown = {threat: [(one.problem, len(one.pictures)) for one in own] for threat, own in found.by_threat.items()}
    assert list(shown) == ["fog:1", "pgd:4/255", "blank"]
    assert shown == {"fog:1": [("p3", 3), ("p4", 0)], "pgd:4/255": [("p6", 3), ("p7", 0)], "blank": [("p0", 0)]}
    assert "9 pictures are not shown" in found.notes[0] and "4 more examples" in found.notes[-1]


def test_large_pictures_are_shown_smaller(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(600, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "x-clean.png")
    found = read(folder, example())
    large, small, _ = found.by_threat["typos:2"][0].pictures
    assert (large.width, large.height) == (448, 224) and small.width == 8
    data = base64.b64decode(large.uri.removeprefix("data:image/jpeg;base64,"))
    assert len(data) < (folder / "x-clean.png").stat().st_size / 5
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (448, 224) and abs(np.asarray(image).mean() - noise.mean()) < 2
    assert found.notes == [
        f"1 pictures are shown smaller, with 448 pixels on the longer side; at their own size they are in {folder}."
    ]


def test_missing_pieces(folder: Path) -> None:
    bare = {"problem_id": 3, "threat": "endpoint", "clean": {"text": "a"}, "shown": {"text": "b", "tokens": None}}
    (one,) = read(folder, bare).by_threat["endpoint"]
    assert one.pictures == [] and one.outcome == "not graded → not graded"
    assert not read(folder, bare).has_entropies and one.sides[0].mean_entropy is None
    assert read_gallery(folder, []) is None
