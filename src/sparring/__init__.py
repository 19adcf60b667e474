"""sparring: fine-tune a vision-language model by reinforcement learning against an opponent, and prove the gain."""

__version__ = "0.1.0"
