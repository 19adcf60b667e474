"""The methods, one file each, and their registry."""

from sparring.methods.aot import AOT, AOTConfig
from sparring.methods.aot_editor import EditorAOT, EditorAOTConfig
from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.kl_cov import ClipCovConfig, Covariance, KLCovConfig
from sparring.methods.noisyrollout import NoisyRollout, NoisyRolloutConfig
from sparring.methods.rad import RAD, RADConfig
from sparring.methods.ril import RIL, RILConfig
from sparring.methods.roma import ROMA, ROMAConfig
from sparring.methods.saei import SaEI, SaEIConfig

MethodConfig = (
    GRPOConfig | SaEIConfig | NoisyRolloutConfig | KLCovConfig | ClipCovConfig | RADConfig | ROMAConfig | RILConfig
)

METHODS: dict[
    type,
    type[GRPO] | type[SaEI] | type[NoisyRollout] | type[Covariance] | type[RAD] | type[ROMA] | type[RIL] | type[AOT],
] = {
    GRPOConfig: GRPO,
    SaEIConfig: SaEI,
    NoisyRolloutConfig: NoisyRollout,
    KLCovConfig: Covariance,
    ClipCovConfig: Covariance,
    RADConfig: RAD,
    ROMAConfig: ROMA,
    RILConfig: RIL,
    AOTConfig: AOT,
}
"""From the configuration of a method that trains a policy to the method. AOT's trains an attacker: `recipes.attacking`
runs it, and `recipes.editing` runs EditorAOT, which trains an image editor."""

__all__ = [
    "AOT",
    "GRPO",
    "METHODS",
    "RAD",
    "RIL",
    "ROMA",
    "AOTConfig",
    "ClipCovConfig",
    "Covariance",
    "EditorAOT",
    "EditorAOTConfig",
    "GRPOConfig",
    "KLCovConfig",
    "MethodConfig",
    "NoisyRollout",
    "NoisyRolloutConfig",
    "RADConfig",
    "RILConfig",
    "ROMAConfig",
    "SaEI",
    "SaEIConfig",
]
