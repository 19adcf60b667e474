"""What a response is paid: answers compared with the truth, format, and the grader that weighs them.

``answer`` finds and compares final answers, ``format`` checks the form of a response, ``grader`` puts both together and
owns the process (``math_child``) that compares mathematical answers.
"""

from sparring.rewards.answer import AnswerReason, extract_boxed
from sparring.rewards.format import FormatReason, check_format
from sparring.rewards.grader import Grader, MathBackend, MathProcess, RewardConfig

__all__ = [
    "AnswerReason",
    "FormatReason",
    "Grader",
    "MathBackend",
    "MathProcess",
    "RewardConfig",
    "check_format",
    "extract_boxed",
]
