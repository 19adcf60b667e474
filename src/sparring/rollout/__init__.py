"""Responses sampled from views: requests in, rollouts out. `hf` runs the policy's own module."""

from sparring.rollout.base import SampleRequest, SamplingConfig
from sparring.rollout.hf import draw_tokens, invert_cdf, sample

__all__ = ["SampleRequest", "SamplingConfig", "draw_tokens", "invert_cdf", "sample"]
