"""How the bundled VLM is made: a tiny Qwen3-VL trained from scratch on generated scenes.

Five phases, each with a reason (figures in ``docs/bundled_vlm.md``):

1. *See*: the vision tower alone. Each image token tells whether an object's centre lies in its cell, and the object's
   colour, shape and place. Dense labels without the cost of a language model: shapes are learned many times faster than
   through words. The loss stays on, at a small weight, in the phases that follow.
2. *Describe*: the whole model describes pictures in one fixed order and looks up places and names. A tiny model that is
   shown reasoning first stays blind: guessing costs it less than learning to see.
3. *Reason*: the question families in four styles of varied wording, with some description kept in.
4. *Sharpen*: the same with half of the questions on relations, which are learned last: to find an object by colour and
   shape together, twice, takes the longest.
5. *Settle*: the problems as they are (harder pictures than before), and the habits of a base model: it mostly glances,
   and its glances are rash, although it can do better. That is the room that reinforcement needs.

Several questions about one picture share one row: the picture, most of the cost, is encoded once for all of them.

Every batch is drawn from (seed, step) and the state is saved regularly, so a run that was stopped goes on where it was
and ends with the same weights.
"""

from __future__ import annotations

from sparring.recipes.bundled_vlm.config import BundledVLMConfig
from sparring.recipes.bundled_vlm.training import train_bundled_vlm

__all__ = ["BundledVLMConfig", "train_bundled_vlm"]
