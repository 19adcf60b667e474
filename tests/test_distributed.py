from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from sparring import distributed

WORKER = """
    import json, sys
    from pathlib import Path

    import torch
    from sparring import distributed as d

    device = d.initialise("cpu")
    mine = torch.tensor([[1.0, -5.0], [float(d.rank()), 2.0]]).T
    result = {
        "rank": d.rank(),
        "world_size": d.world_size(),
        "is_main": d.is_main(),
        "device": str(device),
        "sum": d.all_reduce_sum(mine).tolist(),
        "max": d.all_reduce_max(mine).tolist(),
        "mine": mine.tolist(),
        "sum_float": d.all_reduce_sum(0.1),
        "sum_int": d.all_reduce_sum(2**60 + d.rank()),
        "max_int": d.all_reduce_max(-3 + d.rank()),
        "max_float": d.all_reduce_max(0.5 - d.rank()),
        "objects": d.all_gather_object({"rank": d.rank(), "text": "x" * d.rank()}),
    }
    # Rank 0 writes before the barrier, rank 1 looks for the file behind it.
    flag = Path(sys.argv[1]) / "flag"
    if d.is_main():
        flag.write_text("")
    d.barrier()
    result["saw_flag"] = flag.exists()
    (Path(sys.argv[1]) / f"rank{result['rank']}.json").write_text(json.dumps(result))
    d.end(0)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What each of two processes that torchrun started has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, str(script), str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_every_rank_knows_its_place(results: list[dict[str, object]]) -> None:
    assert [result["rank"] for result in results] == [0, 1]
    assert [result["is_main"] for result in results] == [True, False]
    for result in results:
        assert (result["world_size"], result["device"]) == (2, "cpu")


def test_both_ranks_hold_the_same_reductions(results: list[dict[str, object]]) -> None:
    for rank, result in enumerate(results):
        # Rank r holds the transpose of [[1, -5], [r, 2]]: [[1, r], [-5, 2]].
        assert result["mine"] == [[1.0, float(rank)], [-5.0, 2.0]]
        assert result["sum"] == [[2.0, 0.0 + 1.0], [-10.0, 4.0]]
        assert result["max"] == [[1.0, 1.0], [-5.0, 2.0]]
        assert result["sum_float"] == 0.1 + 0.1  # in float64: a float32 sum would differ
        assert result["sum_int"] == 2**61 + 1  # beyond the integers of float64
        assert result["max_int"] == -2
        assert result["max_float"] == 0.5
        assert result["objects"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
        assert result["saw_flag"] is True


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.initialise("cpu") == torch.device("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    for reduce in (distributed.all_reduce_sum, distributed.all_reduce_max):
        reduced = reduce(value)
        assert torch.equal(reduced, value) and not reduced.requires_grad
        assert reduced.data_ptr() != value.data_ptr()
        assert reduce(3) == 3 and type(reduce(3)) is int
    assert distributed.all_gather_object("x") == ["x"]
    distributed.barrier()
    with pytest.raises(SystemExit, match="3"):
        distributed.end(3)
