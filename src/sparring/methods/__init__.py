"""The methods, one file each, and their registry."""

from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.kl_cov import ClipCovConfig, Covariance, KLCovConfig
from sparring.methods.noisyrollout import NoisyRollout, NoisyRolloutConfig
from sparring.methods.rad import RAD, RADConfig
from sparring.methods.saei import SaEI, SaEIConfig

MethodConfig = GRPOConfig | SaEIConfig | NoisyRolloutConfig | KLCovConfig | ClipCovConfig | RADConfig

METHODS: dict[type, type[GRPO] | type[SaEI] | type[NoisyRollout] | type[Covariance] | type[RAD]] = {
    GRPOConfig: GRPO,
    SaEIConfig: SaEI,
    NoisyRolloutConfig: NoisyRollout,
    KLCovConfig: Covariance,
    ClipCovConfig: Covariance,
    RADConfig: RAD,
}
"""From a method's configuration to the method."""

__all__ = [
    "GRPO",
    "METHODS",
    "RAD",
    "ClipCovConfig",
    "Covariance",
    "GRPOConfig",
    "KLCovConfig",
    "MethodConfig",
    "NoisyRollout",
    "NoisyRolloutConfig",
    "RADConfig",
    "SaEI",
    "SaEIConfig",
]
