"""Teachers' texts as rollouts of a student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparring.data.teachers import ResponseRecord, TeacherFolder, TeacherResponses, problem_fingerprint
from sparring.errors import UserError
from sparring.models.processor import Processor
from sparring.rollout.taught import TaughtRollouts
from sparring.types import FinishReason
from tiny_models import tiny_problem

PROBLEM = tiny_problem(0)


def teach(cache: Path, name: str, *said: tuple[str, FinishReason]) -> None:
    folder = TeacherFolder(cache, name)
    folder.begin({}, {})
    asked, verdict = problem_fingerprint(PROBLEM), {"answer": "correct"}
    folder.add(
        [
            ResponseRecord(PROBLEM.id, asked, number, text, reason, 0, 0, 0.0, verdict)
            for number, (text, reason) in enumerate(said)
        ]
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_students_of_any_tokenizer_read_what_they_can(
    tiny_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    processor = Processor.from_pretrained(tiny_folders[family])
    placeholder = processor.family.image_token
    teach(tmp_path, "b", ("ab", "stop"), ("ab", "stop"), ("a picture: " + placeholder, "stop"), ("abc", "length"))
    teach(tmp_path, "a", ("x" * 6, "length"), ("x" * 6, "stop"), ("", "stop"))
    taught = TaughtRollouts(TeacherResponses(tmp_path, ("b", "a")), processor, max_tokens=6)
    found = taught.of(PROBLEM)
    # Bytes are tokens here: six of them fill a response that was cut off, and leave no room for a stop token.
    assert [(one.teacher, one.number, one.num_drawn) for one in found] == [("b", 0, 2), ("b", 3, 1), ("a", 0, 1)]
    assert [one.rollout.text for one in found] == ["ab", "abc", "x" * 6]
    assert [one.rollout.token_ids.numel() for one in found] == [3, 3, 6]
    assert found[0].rollout.token_ids[-1] in processor.stop_token_ids
    assert found[0].rollout.sampler_logprobs.isnan().all() and found[0].rollout.view == "clean"
    assert taught.num_refused == {"special_tokens": 1, "too_long": 1, "empty": 1}
    assert taught.of(PROBLEM) is found, "tokenized once"
    assert taught.num_refused.total() == 3
    assert taught.of(tiny_problem(1)) == ()


def test_other_data_is_refused_also_when_the_texts_were_read_before(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    teach(tmp_path, "a", ("ab", "stop"))
    taught = TaughtRollouts(TeacherResponses(tmp_path), Processor.from_pretrained(tiny_folders["qwen3_vl"]), 8)
    assert torch.equal(taught.of(PROBLEM)[0].rollout.token_ids[:2], torch.tensor(_bytes(taught, "ab")))
    with pytest.raises(UserError, match="another problem under the id"):
        taught.of(tiny_problem(0, question="What else?"))
    with pytest.raises(ValueError, match="max_tokens=0"):
        TaughtRollouts(taught.responses, Processor.from_pretrained(tiny_folders["qwen3_vl"]), 0)


def _bytes(taught: TaughtRollouts, text: str) -> list[int]:
    return list(taught._processor.tokenizer(text, add_special_tokens=False).input_ids)
