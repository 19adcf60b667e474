"""The methods, one file each, and their registry."""

from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.saei import SaEI, SaEIConfig

MethodConfig = GRPOConfig | SaEIConfig

METHODS: dict[type, type[GRPO] | type[SaEI]] = {GRPOConfig: GRPO, SaEIConfig: SaEI}
"""From a method's configuration to the method."""

__all__ = ["GRPO", "METHODS", "GRPOConfig", "MethodConfig", "SaEI", "SaEIConfig"]
