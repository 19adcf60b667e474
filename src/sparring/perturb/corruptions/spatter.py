"""Spatter of ImageNet-C's extra set: drops of water or mud on the lens. Constants: arXiv 1903.12261.

The light on drops of water is made by 8-bit steps of OpenCV (edges, distance to them, equalisation, relief). They are
written out here in torch, so that they run on any device and OpenCV is not needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.perturb.corruptions.draws import Generators, each, normal
from sparring.perturb.corruptions.filters import gaussian, pad

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_FARTHEST = 20
"""Pixels at which distances to an edge are cut off."""


def spatter(
    images: Tensor,
    *,
    location: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    is_mud: float,
    generator: Generators,
) -> Tensor:
    """Drops where normal noise (``location``, ``scale``) blurred by ``sigma`` pixels exceeds ``threshold``.

    Water (``is_mud`` 0) adds light up to ``strength`` in [0, 1]; mud (1) covers, its edge softened by ``strength``
    pixels. A picture too small for any drop stays as it is.
    """

    def splash(image: Tensor, stream: torch.Generator) -> Tensor:
        noise = location + scale * normal(stream, *image.shape[-2:]).to(image)[None]
        liquid = gaussian(noise, sigma)
        liquid = torch.where(liquid < threshold, 0.0, liquid)
        colour = image.new_tensor(_MUD if is_mud else _WATER)[:, None, None]
        if is_mud:
            cover = gaussian((liquid > threshold).to(image), strength)
            cover = torch.where(cover < 0.8, 0.0, cover)
            return image * (1.0 - cover) + colour * cover
        light = _light_on_water((liquid[0] * 255.0).floor().clamp(0.0, 255.0))
        return image + strength * light * colour

    return each(images, generator, splash).clamp(0.0, 1.0)


def _light_on_water(levels_HW: Tensor) -> Tensor:
    """(H, W) in [0, 1], 1 at the brightest place: the liquid times a relief of the distance to its edges."""
    distance = _distance_to(_edges(levels_HW, low=50.0, high=150.0)).clamp(max=float(_FARTHEST))
    relief = _equalised(_mean_of_nine(distance).floor())
    kernel = [[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    relief = _correlate(relief, kernel).clamp(0.0, 255.0)
    light = levels_HW * _mean_of_nine(relief).round()
    return light / light.amax().clamp(min=1.0)


def _correlate(plane_HW: Tensor, kernel: list[list[float]]) -> Tensor:
    padded = pad(plane_HW, 1, 1, "reflect")
    return F.conv2d(padded[None, None], plane_HW.new_tensor(kernel)[None, None])[0, 0]


def _mean_of_nine(plane_HW: Tensor) -> Tensor:
    # Exact for whole numbers, which a kernel of ninths would not be.
    return _correlate(plane_HW, [[1.0] * 3] * 3) / 9.0


def _edges(levels_HW: Tensor, *, low: float, high: float) -> Tensor:
    """Bool (H, W): Canny's edges with Sobel gradients and their L1 size, as ``cv2.Canny(levels, low, high)``."""
    padded = pad(levels_HW, 1, 1, "edge")[None, None]
    sobel = levels_HW.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    dx, dy = F.conv2d(padded, sobel[None, None])[0, 0], F.conv2d(padded, sobel.T[None, None].contiguous())[0, 0]
    size = dx.abs() + dy.abs()
    height, width = size.shape
    around = F.pad(size, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # Ridges across the gradient, in four directions: within 22.5 degrees of an axis, or along a diagonal.
    tangent = 0.4142135623730950488
    is_flat, is_steep = dy.abs() < tangent * dx.abs(), dy.abs() > (2.0 + tangent) * dx.abs()
    is_rising = torch.signbit(dx) != torch.signbit(dy)
    across_x = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    across_y = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    down = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    up = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    is_ridge = torch.where(is_flat, across_x, torch.where(is_steep, across_y, torch.where(is_rising, up, down)))
    weak = is_ridge & (size > low)
    edges = weak & (size > high)
    while True:
        grown = (F.max_pool2d(edges[None, None].to(size), 3, 1, 1)[0, 0] > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance_to(edges_HW: Tensor) -> Tensor:
    """(H, W): chamfer distance to the nearest edge pixel, right up to ``_FARTHEST`` and too large beyond.

    OpenCV's 5 x 5 mask: steps of 1 straight, 1.4 along a diagonal, 2.1969 as a knight.
    """
    height, width = edges_HW.shape
    far = 4 * _FARTHEST
    column = torch.arange(width, device=edges_HW.device).expand(height, width)
    last = torch.where(edges_HW, column, -far).cummax(1).values
    following = torch.where(edges_HW, column, width + far).flip(1).cummin(1).values.flip(1)
    in_row = torch.minimum(column - last, following - column).clamp(max=far).to(torch.float32)
    padded = F.pad(in_row, (0, 0, _FARTHEST, _FARTHEST), value=float(far))
    nearest = torch.full_like(in_row, float(far))
    for away in range(-_FARTHEST, _FARTHEST + 1):
        aside = padded[_FARTHEST + away : _FARTHEST + away + height]
        longer, shorter = aside.clamp(min=abs(away)), aside.clamp(max=abs(away))
        wide = (longer - 2 * shorter) + 2.1969 * shorter
        steep = 1.4 * (2 * shorter - longer) + 2.1969 * (longer - shorter)
        nearest = torch.minimum(nearest, torch.where(longer >= 2 * shorter, wide, steep))
    return nearest


def _equalised(levels_HW: Tensor) -> Tensor:
    """Whole levels 0 to 255 spread so that their shares are even, as ``cv2.equalizeHist``."""
    flat = levels_HW.flatten().to(torch.int64)
    counts = torch.bincount(flat, minlength=256)
    lowest = int(flat.min())
    rest = flat.numel() - int(counts[lowest])
    if rest == 0:
        return levels_HW
    above = counts.clone()
    above[: lowest + 1] = 0
    table = (above.cumsum(0).to(levels_HW) * (255.0 / rest)).round()
    return table[flat].view_as(levels_HW)
