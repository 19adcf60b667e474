"""Local copies of data sets of the hub: where their rows are, and what is checked of each."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from hub_copies import picture, table, write_copy
from sparring.data import datasets as own_datasets
from sparring.data.scenes import SceneConfig
from sparring.data.sources import Source, open_source
from sparring.errors import UserError

datasets = pytest.importorskip("datasets", reason="copies are read by the extra datasets")

ROWS = [{"problem": f"<image>Find x_{n}.", "answer": str(n), "images": [picture(n)]} for n in range(3)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def opened(name: str | Path, num: int | None = None, **more: Any) -> Source:
    return open_source(str(name), num, SceneConfig(), **more)


def copy_of(folder: Path, split: str = "train", **more: Any) -> Path:
    return write_copy(folder, ROWS, ["images"], f"data/{split}-00000-of-00001.parquet", **more)


def test_every_kind_of_copy_holds_the_same_problems(tmp_path: Path) -> None:
    shards = copy_of(tmp_path / "shards")
    file = shards / "data/train-00000-of-00001.parquet"
    table(ROWS, ["images"]).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table(ROWS, ["images"])}).save_to_disk(str(tmp_path / "splits"))
    snapshot = tmp_path / "datasets--o--n" / "snapshots" / "abc"
    copy_of(snapshot)
    (tmp_path / "datasets--o--n" / "refs").mkdir()
    (tmp_path / "datasets--o--n" / "refs" / "main").write_text("abc")
    sources = [
        opened(path)
        for path in (shards, f"{shards}:train", file, tmp_path / "saved", tmp_path / "splits",
                     f"{tmp_path / 'splits'}:train", tmp_path / "datasets--o--n", snapshot)
    ]  # fmt: skip
    assert len({source.fingerprint for source in sources}) == 1
    problems = sources[0].problems
    assert [problem.question for problem in problems] == ["Find x_0.", "Find x_1.", "Find x_2."]
    assert [problem.answer for problem in problems] == ["0", "1", "2"]
    assert [int(problem.images[0][0, 0, 0]) for problem in problems] == [0, 1, 2]
    assert sources[0].problems[1].id == "shards-1" and sources[0].describe()["num_bad"] == 0
    assert len(opened(shards, 2).problems) == 2
    assert opened(shards, 2).fingerprint != sources[0].fingerprint


def test_pictures_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(copy_of(tmp_path / "c"))
    read: list[int] = []
    before = own_datasets.Table.__getitem__
    monkeypatch.setattr(own_datasets.Table, "__getitem__", lambda self, i: read.append(i) or before(self, i))
    source.problems[2]
    assert read == [2]


def bomb() -> bytes:
    """The header of a picture of 81 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + picture()[33:]


def test_a_bad_row_is_named_by_its_number_or_left_out(tmp_path: Path) -> None:
    wrong = [
        ({"images": [picture()[:-30]]}, "picture 1 of row 1 is broken"),
        ({"images": [b"text"]}, "picture 1 of row 1 cannot be read: not a picture file"),
        ({"problem": "Find x.", "images": [picture(), bomb()]}, "picture 2 of row 1 claims 9000 x 9000 pixels"),
        ({"images": []}, "images not a list of paths"),
        ({"answer": " "}, "answer is empty"),
        ({"problem": "<image><image>?"}, "2 <image> placeholders"),
    ]
    for number, (change, said) in enumerate(wrong):
        rows = [ROWS[0], ROWS[1] | change, ROWS[2]]
        folder = write_copy(tmp_path / str(number), rows, ["images"], "train-00000-of-00001.parquet")
        with pytest.raises(UserError) as caught:
            opened(folder)
        assert f"{folder}, row 1: " in str(caught.value) and said in str(caught.value)
        assert "--on-bad skip" in str(caught.value) and "\n" not in str(caught.value)
        left = opened(folder, on_bad="skip")
        assert [problem.answer for problem in left.problems] == ["0", "2"]
        assert left.describe()["num_bad"] == 1 and said in left.bad[0]


def test_paths_in_rows_start_at_the_folder(tmp_path: Path) -> None:
    folder = write_copy(tmp_path / "c", [{"question": "How many?", "answer": "3", "image": "images/a.png"}], [])
    with pytest.raises(UserError, match=r"images/a\.png is missing"):
        opened(folder)
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(picture(7))
    assert int(opened(folder).problems[0].images[0][0, 0, 0]) == 7


def test_splits_and_configurations(tmp_path: Path) -> None:
    folder = copy_of(tmp_path / "c")
    copy_of(folder, "test")
    with pytest.raises(UserError, match=r"several tables \(it has data/test, data/train\): name a split"):
        opened(folder)
    assert len(opened(f"{folder}:test").problems) == 3
    with pytest.raises(UserError, match=r"no table for split 'validation'"):
        opened(f"{folder}:validation")
    write_copy(folder, ROWS[:1], ["images"], "Full/test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="several tables for split 'test'"):
        opened(f"{folder}:test")
    assert len(own_datasets.open_copy(folder, "Full", "test")) == 1
    datasets.DatasetDict({"a": table(ROWS, ["images"]), "b": table(ROWS, ["images"])}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="several splits: name one of a, b"):
        opened(tmp_path / "d")
    with pytest.raises(UserError, match="no split 'c': name one of a, b"):
        opened(f"{tmp_path / 'd'}:c")


def test_what_is_no_copy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_text("x")
    (tmp_path / "datasets--o--n" / "snapshots").mkdir(parents=True)
    for name, said in (
        (tmp_path / "empty", "nor a folder of Parquet files"),
        (tmp_path / "broken.parquet", "cannot be read as a data set"),
        (tmp_path / "none.parquet", "give scenes"),
        (tmp_path / "datasets--o--n", "has 0 snapshots"),
        ("hf:name", "write hf:OWNER/NAME"),
        ("hf:a/b/c/d", "write hf:OWNER/NAME"),
        ("hf:nobody/nothing:train", "nobody/nothing:train of the hub cannot be had"),
        ("mathvsta", "did you mean mathvista"),
    ):
        with pytest.raises(UserError, match=said):
            opened(name)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tmp_path / "c")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'sparring\[datasets\]'"):
        opened(folder)


def test_rows_with_one_picture_are_held_out_together(tmp_path: Path) -> None:
    from sparring.data.sources import hold_out

    rows = [{"problem": f"Find x_{n}.", "answer": str(n), "images": [picture(n // 2)]} for n in range(8)]
    source = opened(write_copy(tmp_path / "c", rows, ["images"], "train-00000-of-00001.parquet"), part="train")
    pictures = source.problems.pictures  # type: ignore[attr-defined]
    held_out, train = hold_out(source, [1], seed=0, pictures=pictures)
    own = int(held_out.problems[0].answer)
    assert {int(problem.answer) for problem in train.problems} == set(range(8)) - {own, own ^ 1}
