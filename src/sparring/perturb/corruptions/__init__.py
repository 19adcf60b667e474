"""Named, seeded picture corruptions with graded severities, on any device.

A corruption is a function of RGB images, float tensors (..., 3, H, W) in [0, 1] of any size; it gives images of the
same shape in [0, 1], changes nothing in place, and is differentiable where it says so. The random ones take one
generator, or one per picture: a batch equals its pictures one by one.

- ``registry``: ``CORRUPTIONS``, all of them by name with five severities each, and :func:`corrupt`, which applies one
  to a view.
- ``sets``: ``CORRUPTION_SETS``, named lists of (corruption, severity); ``sheet``: a picture of a set.
- ``noise``, ``blur``, ``weather`` (with ``frost``), ``spatter``, ``digital``: the 15 + 4 of ImageNet-C; ``field``: what
  pictures from scans, phones and messengers have been through.
- ``draws``, ``filters``: random numbers per picture; blurs, zooms and warps that several share.

What each does, its constants and where it differs from ImageNet-C: docs/robustness/corruptions.md.
"""

from sparring.perturb.corruptions.digital import MID_GREY, blank
from sparring.perturb.corruptions.noise import gaussian_noise
from sparring.perturb.corruptions.registry import CORRUPTIONS, Corruption, corrupt
from sparring.perturb.corruptions.sets import CORRUPTION_SETS, CorruptionSet
from sparring.perturb.corruptions.sheet import contact_sheet

__all__ = [
    "CORRUPTIONS",
    "CORRUPTION_SETS",
    "MID_GREY",
    "Corruption",
    "CorruptionSet",
    "blank",
    "contact_sheet",
    "corrupt",
    "gaussian_noise",
]
