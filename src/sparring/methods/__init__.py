"""The methods, one file each, and their registry."""

from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.kl_cov import ClipCovConfig, Covariance, KLCovConfig
from sparring.methods.noisyrollout import NoisyRollout, NoisyRolloutConfig
from sparring.methods.rad import RAD, RADConfig
from sparring.methods.roma import ROMA, ROMAConfig
from sparring.methods.saei import SaEI, SaEIConfig

MethodConfig = GRPOConfig | SaEIConfig | NoisyRolloutConfig | KLCovConfig | ClipCovConfig | RADConfig | ROMAConfig

METHODS: dict[type, type[GRPO] | type[SaEI] | type[NoisyRollout] | type[Covariance] | type[RAD] | type[ROMA]] = {
    GRPOConfig: GRPO,
    SaEIConfig: SaEI,
    NoisyRolloutConfig: NoisyRollout,
    KLCovConfig: Covariance,
    ClipCovConfig: Covariance,
    RADConfig: RAD,
    ROMAConfig: ROMA,
}
"""From a method's configuration to the method."""

__all__ = [
    "GRPO",
    "METHODS",
    "RAD",
    "ROMA",
    "ClipCovConfig",
    "Covariance",
    "GRPOConfig",
    "KLCovConfig",
    "MethodConfig",
    "NoisyRollout",
    "NoisyRolloutConfig",
    "RADConfig",
    "ROMAConfig",
    "SaEI",
    "SaEIConfig",
]
