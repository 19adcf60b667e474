"""What a response is paid: answers compared with the truth, format, and the grader that weighs them.

``answer`` finds and compares final answers, ``format`` checks the form of a response, ``judge`` asks a language model
whether an answer is correct, ``grader`` puts them together and owns the process (``math_child``) that compares
mathematical answers.
"""

from sparring.rewards.answer import AnswerReason, extract_boxed
from sparring.rewards.format import FormatReason, check_format
from sparring.rewards.grader import AnswerBy, Grader, MathBackend, MathProcess, RewardConfig
from sparring.rewards.judge import Judge, JudgeReason

__all__ = [
    "AnswerBy",
    "AnswerReason",
    "FormatReason",
    "Grader",
    "Judge",
    "JudgeReason",
    "MathBackend",
    "MathProcess",
    "RewardConfig",
    "check_format",
    "extract_boxed",
]
