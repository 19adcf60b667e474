"""Edit programs: a few edits of a picture as text, written by a language model and drawn by `execute`.

See docs/edits.md.
"""

from sparring.opponents.edits.executor import Edited, Note, execute
from sparring.opponents.edits.program import GRAMMAR, Language, MalformedProgram, Program, grammar, parse
from sparring.opponents.edits.proposals import propose
from sparring.opponents.edits.scene import edited_scene

__all__ = [
    "GRAMMAR",
    "Edited",
    "Language",
    "MalformedProgram",
    "Note",
    "Program",
    "edited_scene",
    "execute",
    "grammar",
    "parse",
    "propose",
]
