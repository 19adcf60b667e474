"""Changing what the model sees, knowing nothing about models.

- ``space``: pixels in [0, 1], the 8-bit grid, and typed budgets ``Linf`` and ``L2``; alone knows what a radius means.
- ``attack``: one gradient attack loop over any function of pixels, and the random control of the same size.
- ``corruptions``: named, seeded image corruptions with graded severities, and named sets of them.
- ``text``: named, seeded perturbations of the question.
"""
