"""Attention on a CPU: matrix products beside SDPA's kernel, forward and backward, by shape.

    python benchmarks/attention.py [--precision fp32] [--rounds 5]

`models.attention.attend` with random inputs; it takes products up to ``MATMUL_SCORES`` scores a head, and this is where
that number is from. Both are timed in turn in one process, round after round.
"""

from __future__ import annotations

import statistics

import torch

from harness import machine, parser_of, spread, timed
from sparring.models import attention

SHAPES = {
    "128 responses of 23, prompt 60": (128, 6, 2, 23, 83),
    "16 pictures of 144 patches": (16, 5, 5, 144, 144),
    "16 responses of 128, prompt 128": (16, 6, 2, 128, 256),
    "16 responses of 200, prompt 300": (16, 6, 2, 200, 500),
}
"""Rows, heads, key-value heads, queries, keys; heads are 32 wide."""


def main() -> None:
    options = parser_of(__doc__, rounds=5, steps=5).parse_args()
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    print(f"{options.precision}, {machine()}; milliseconds, medians of {options.rounds} rounds with their range")
    print("| | scores a head | SDPA | matrix products | SDPA / products |\n|---|---|---|---|---|")
    for name, (rows, heads, kv_heads, queries, keys) in SHAPES.items():
        query, key, value = (
            torch.randn(rows, number, length, 32, dtype=dtype, requires_grad=True)
            for number, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
        )
        mask_nrs = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(rows, -1, -1)

        def step(tensors: tuple[torch.Tensor, ...] = (query, key, value), mask: torch.Tensor = mask_nrs) -> None:
            attention.attend(*tensors, scaling=32**-0.5, mask_nrs=mask).sum().backward()

        found: dict[int, list[float]] = {0: [], 10**9: []}
        for _ in range(options.rounds):
            for limit, seconds in found.items():
                attention.MATMUL_SCORES = limit
                seconds.append(1e3 * statistics.median(timed(step, num_warmup=2, num_steps=options.steps)))
        sdpa, products = found.values()
        ratio = spread([a / b for a, b in zip(sdpa, products, strict=True)])
        print(f"| {name} | {queries * keys} | {spread(sdpa, 1)} | {spread(products, 1)} | {ratio} |")


if __name__ == "__main__":
    main()
