"""The methods, one file each, and their registry."""

from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.roma import ROMA, ROMAConfig
from sparring.methods.saei import SaEI, SaEIConfig

MethodConfig = GRPOConfig | SaEIConfig | ROMAConfig

METHODS: dict[type, type[GRPO] | type[SaEI] | type[ROMA]] = {GRPOConfig: GRPO, SaEIConfig: SaEI, ROMAConfig: ROMA}
"""From a method's configuration to the method."""

__all__ = ["GRPO", "METHODS", "ROMA", "GRPOConfig", "MethodConfig", "ROMAConfig", "SaEI", "SaEIConfig"]
