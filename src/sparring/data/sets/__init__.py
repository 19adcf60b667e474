"""Data sets by name: where they are, what their columns mean, and how a benchmark asks.

How an answer is read out of a response is in ``rewards.protocols``, what is computed of the verdicts in
``evaluation.benchmarks``; both know a set by the protocol and the tags that its importer gives its problems.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparring.data.sets.base import KnownSet
from sparring.data.sets.mathematics import MATHVERSE, MATHVISION, MATHVISTA
from sparring.data.sets.perception import HALLUSIONBENCH, HRBENCH4K, HRBENCH8K, POPE, VSTAR
from sparring.data.sets.reasoning import GEOMETRY3K, MMK12, VIRL39K

SETS: Mapping[str, KnownSet] = {
    known.name: known
    for known in (
        GEOMETRY3K,
        MMK12,
        VIRL39K,
        MATHVISTA,
        MATHVERSE,
        MATHVISION,
        HALLUSIONBENCH,
        POPE,
        VSTAR,
        HRBENCH4K,
        HRBENCH8K,
    )
}

__all__ = ["SETS", "KnownSet"]
