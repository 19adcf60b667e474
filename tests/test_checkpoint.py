from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.checkpoint import CheckpointError, checkpoint_path, load_checkpoint, load_latest, save_checkpoint


def same(left: Any, right: Any) -> bool:
    """Equal in value, type and, for tensors, in every bit."""
    if isinstance(left, Tensor):
        if not isinstance(right, Tensor) or left.dtype != right.dtype or left.shape != right.shape:
            return False
        return left.contiguous().view(-1).view(torch.uint8).equal(right.contiguous().view(-1).view(torch.uint8))
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


def round_trip(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_checkpoint(folder, 1, state)
    loaded = load_latest(folder)
    assert loaded is not None
    return loaded.state


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def loaded_step(folder: Path) -> int:
    loaded = load_latest(folder)
    assert loaded is not None
    return loaded.step


def damage(path: Path) -> None:
    """Flip the last byte of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    count = torch.empty(shape, dtype=dtype).numel() * torch.empty((), dtype=dtype).element_size()
    raw = torch.tensor([random.Random(count).randrange(2 if dtype == torch.bool else 256) for _ in range(count)])
    # Random bits include not-a-number with a payload and negative zero.
    tensor = raw.to(torch.uint8).view(dtype).reshape(shape)
    state = {"x": tensor}
    assert same(round_trip(tmp_path, state), state)


def test_plain_values_and_nesting_come_back_equal_in_type(tmp_path: Path) -> None:
    state = {
        "numbers": [0, -1, 2**80, 0.1, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")],
        "plain": [True, False, None, "", "ünï\n\x00", []],
        "pair": (1, [2, (3,)], ()),
        "keys": {0: "int", "0": "str", -5: {}},
        "dollar": {"$tensor": "not one", "$dict": [[1, 2]]},
        "empty": {},
        # Two places whose dotted names are equal.
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        "list": [torch.ones(2), {"deep": (torch.zeros(1, dtype=torch.bfloat16),)}],
    }
    assert same(round_trip(tmp_path, state), state)


def test_views_tied_weights_and_parameters(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"a": weight, "tied": weight, "row": weight[1], "turned": weight.T, "parameter": nn.Parameter(weight + 1)}
    loaded = round_trip(tmp_path, state)
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor)
        assert not loaded[name].requires_grad


def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.AdamW, torch.Generator]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        return (
            model,
            torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.99)),
            torch.Generator().manual_seed(7),
        )

    def train(model: nn.Module, optimizer: torch.optim.AdamW, generator: torch.Generator, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()

    model, optimizer, generator = make()
    train(model, optimizer, generator, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": generator.get_state()}
    loaded = round_trip(tmp_path, state)
    assert all(isinstance(key, int) for key in loaded["optimizer"]["state"])
    assert same(loaded["optimizer"], optimizer.state_dict())
    train(model, optimizer, generator, 3)

    other, other_optimizer, other_generator = make()
    other.load_state_dict(loaded["model"])
    other_optimizer.load_state_dict(loaded["optimizer"])
    other_generator.set_state(loaded["random"])
    train(other, other_optimizer, other_generator, 3)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {})
    with pytest.raises(TypeError, match=r"^state\.players\.0\.config is of type Path|PosixPath"):
        save_checkpoint(tmp_path, 2, {"players": [{"config": Path("x")}]})
    with pytest.raises(TypeError, match=r"^state\.x has the key 1\.5"):
        save_checkpoint(tmp_path, 2, {"x": {1.5: 0}})
    with pytest.raises(ValueError, match="keep_last is 0"):
        save_checkpoint(tmp_path, 2, {}, keep_last=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_exported_weights_stand_beside_the_state(tmp_path: Path) -> None:
    def export(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(b"w" * 10)

    path = save_checkpoint(tmp_path, 7, {"x": 1}, {"policy": export})
    assert path == tmp_path / "step-000007"
    assert (path / "policy" / "deep" / "weights").read_bytes() == b"w" * 10
    assert loaded_step(tmp_path) == 7
    damage(path / "policy" / "deep" / "weights")
    with pytest.raises(CheckpointError, match="policy/deep/weights"):
        load_checkpoint(path)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(0, 60, 10):
        save_checkpoint(tmp_path, step, {"step": step}, keep_last=2, is_best=step in (0, 10))
    assert steps_in(tmp_path) == [10, 40, 50]
    assert checkpoint_path(tmp_path, "best") == tmp_path / "step-000010"
    assert checkpoint_path(tmp_path, "latest") == tmp_path / "step-000050"
    assert checkpoint_path(tmp_path, "other") is None
    # Back to step 20 by hand: later ones are left alone, and latest follows the run.
    save_checkpoint(tmp_path, 20, {"step": 20}, keep_last=1)
    assert steps_in(tmp_path) == [10, 20, 40, 50]
    assert loaded_step(tmp_path) == 20


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"x": 1})
    save_checkpoint(tmp_path, 3, {"x": 2})
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.state == {"x": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000003"]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", [damage, truncate, os.remove])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    name: str, harm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.tensor(step)}, keep_last=3)
    harm(tmp_path / "step-000003" / name)
    with caplog.at_level(logging.WARNING):
        loaded = load_latest(tmp_path)
    assert loaded is not None and (loaded.step, loaded.state["step"]) == (2, 2)
    [record] = caplog.records
    assert "step-000003 is damaged" in record.getMessage()
    assert f"falling back to {tmp_path / 'step-000002'}" in record.getMessage()


def test_if_none_is_whole_it_says_so(tmp_path: Path) -> None:
    for step in (1, 2):
        (save_checkpoint(tmp_path, step, {}) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="is whole: step-000002, step-000001"):
        load_latest(tmp_path)


def test_a_lost_marker_is_no_loss(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {})
    (tmp_path / "latest").unlink()
    assert loaded_step(tmp_path) == 2
    (tmp_path / "latest").write_text("step-000009\n")
    assert loaded_step(tmp_path) == 2
    (tmp_path / "latest").write_text("../elsewhere\n")
    assert loaded_step(tmp_path) == 2


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    manifest = save_checkpoint(tmp_path, 1, {}) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="its format is 2, this version reads 1"):
        load_checkpoint(manifest.parent)
    manifest.write_text("[]")
    with pytest.raises(CheckpointError, match="lists no files"):
        load_checkpoint(manifest.parent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_in_an_export_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"x": 1})

    def export(folder: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=r"step-000002: .*No space left on device.*MiB free there") as caught:
        save_checkpoint(tmp_path, 2, {"x": 2}, {"policy": export})
    assert isinstance(caught.value.__cause__, OSError)
    assert loaded_step(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_a_refused_tensor_file_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """The tensors are written by Rust, whose errors are of another class: a limit on file sizes provokes a real one."""
    code = f"""
        import resource, signal, torch
        from sparring.checkpoint import CheckpointError, save_checkpoint
        save_checkpoint({str(tmp_path)!r}, 1, {{"x": torch.zeros(10)}})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save_checkpoint({str(tmp_path)!r}, 2, {{"x": torch.zeros(10_000)}})
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert f"cannot write checkpoint {tmp_path / 'step-000002'}" in done.stdout
    assert "earlier checkpoints are untouched" in done.stdout
    assert loaded_step(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may handle it."""


@pytest.mark.parametrize("call", range(1, 28))
def test_a_crash_at_any_call_leaves_a_checkpoint_that_loads(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the save at its n-th step that touches the disk (it has 26); then load, and save over the leftovers."""
    save_checkpoint(tmp_path, 1, {"x": 1})
    count = 0

    def counted(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count = min(count + 1, call)  # after the kill nothing is cleaned up either
            if count == call:
                raise Killed
            return function(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "open"), (Path, "rename"), (Path, "replace"), (Path, "mkdir")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        patch.setattr(Path, "write_text", counted(Path.write_text))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with contextlib.suppress(Killed):
            save_checkpoint(tmp_path, 2, {"x": 2}, keep_last=1)
    assert count == min(call, 26), "the number of steps has changed: adapt the range, so that each is tried"
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.state == {"x": loaded.step}
    save_checkpoint(tmp_path, 2, {"x": 22}, keep_last=1)
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.state == {"x": 22}
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "step-000002"}
