"""Seeds derived from what they are for, so that no draw depends on how many were made before it.

A run has one seed. Everything random in it takes ``derive_seed(run_seed, step, problem_id, purpose)`` or the like: the
same place in a run gets the same numbers after a resume, in another order of work, and in another process.
"""

from __future__ import annotations

import hashlib
import json

import torch


def derive_seed(run_seed: int, *parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part and on their order.

    ``parts`` say what the seed is for, e.g. ``(step, problem.id, "rollout")``. They are hashed with BLAKE2b (RFC 7693)
    in JSON form, which keeps apart ``1`` and ``"1"``, and ``("ab", "c")`` and ``("a", "bc")``. Python's own ``hash``
    would not do: it differs from process to process for strings and is nearly the identity for integers.

    Raises TypeError for anything but int and str: floats do not print alike everywhere, and True equals 1.
    """
    for part in (run_seed, *parts):
        if type(part) not in (int, str):
            raise TypeError(
                f"a seed is derived from int and str, got {part!r} of type {type(part).__name__}: convert it"
            )
    digest = hashlib.blake2b(json.dumps([run_seed, *parts]).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A CPU generator started from ``seed``, so that the numbers do not depend on the accelerator.

    torch's CPU engine (mt19937) keeps only the low 32 bits of a seed: two of n derived streams coincide with
    probability about n^2 / 2^33, which is 1e-8 among 8 siblings. Take seeds from ``derive_seed``, whose low bits
    depend on every part.
    """
    return torch.Generator().manual_seed(seed)
