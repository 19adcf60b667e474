"""Spatter of ImageNet-C's extra set: drops of water or mud on the lens. Constants: arXiv 1903.12261.

The light on drops of water is made by 8-bit steps of OpenCV (edges, distance to them, equalisation, relief). They are
written out here in torch, so that they run on any device, on a batch at once, and OpenCV is not needed. Their planes
are (N, 1, H, W), as torch's convolutions want them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.perturb.corruptions.draws import Generators, drawn, normal
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
    (noise,) = drawn(images, generator, lambda stream: [normal(stream, 1, *images.shape[-2:])])
    liquid = gaussian(location + scale * noise, sigma)
    liquid = torch.where(liquid < threshold, 0.0, liquid)
    colour = images.new_tensor(_MUD if is_mud else _WATER)[:, None, None]
    if is_mud:
        cover = gaussian((liquid > threshold).to(images), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return (images * (1.0 - cover) + colour * cover).clamp(0.0, 1.0)
    levels = (liquid * 255.0).floor().clamp(0.0, 255.0)
    light = _light_on_water(levels.reshape(-1, *levels.shape[-3:])).view_as(levels)
    return (images + strength * light * colour).clamp(0.0, 1.0)


def _light_on_water(levels: Tensor) -> Tensor:
    """In [0, 1], 1 at the brightest place of each plane: the liquid times a relief of the distance to its edges."""
    distance = _distance_to(_edges(levels, low=50.0, high=150.0)).clamp(max=float(_FARTHEST))
    relief = _equalised(_mean_of_nine(distance).floor())
    kernel = [[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    relief = _correlate(relief, kernel).clamp(0.0, 255.0)
    light = levels * _mean_of_nine(relief).round()
    return light / light.amax((-2, -1), keepdim=True).clamp(min=1.0)


def _correlate(planes: Tensor, kernel: list[list[float]]) -> Tensor:
    return F.conv2d(pad(planes, 1, 1, "reflect"), planes.new_tensor(kernel)[None, None])


def _mean_of_nine(planes: Tensor) -> Tensor:
    # Exact for whole numbers, which a kernel of ninths would not be, and for others not rounded as convolutions are on
    # a GPU.
    return F.avg_pool2d(pad(planes, 1, 1, "reflect"), 3, stride=1)


def _edges(levels: Tensor, *, low: float, high: float) -> Tensor:
    """Bool: Canny's edges with Sobel gradients and their L1 size, as ``cv2.Canny(levels, low, high)``."""
    padded = pad(levels, 1, 1, "edge")
    sobel = levels.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    dx, dy = F.conv2d(padded, sobel[None, None]), F.conv2d(padded, sobel.T[None, None].contiguous())
    size = dx.abs() + dy.abs()
    height, width = size.shape[-2:]
    around = F.pad(size, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        return around[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

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
        grown = (F.max_pool2d(edges.to(size), 3, 1, 1) > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance_to(edges: Tensor) -> Tensor:
    """Float32: chamfer distance to the nearest edge pixel, right up to ``_FARTHEST`` and too large beyond.

    OpenCV's 5 x 5 mask: steps of 1 straight, 1.4 along a diagonal, 2.1969 as a knight.
    """
    height, width = edges.shape[-2:]
    far = 4 * _FARTHEST
    column = torch.arange(width, device=edges.device)
    last = torch.where(edges, column, -far).cummax(-1).values
    following = torch.where(edges, column, width + far).flip(-1).cummin(-1).values.flip(-1)
    in_row = torch.minimum(column - last, following - column).clamp(max=far).to(torch.float32)
    padded = F.pad(in_row, (0, 0, _FARTHEST, _FARTHEST), value=float(far))
    nearest = torch.full_like(in_row, float(far))
    for away in range(-_FARTHEST, _FARTHEST + 1):
        aside = padded[..., _FARTHEST + away : _FARTHEST + away + height, :]
        longer, shorter = aside.clamp(min=abs(away)), aside.clamp(max=abs(away))
        wide = (longer - 2 * shorter) + 2.1969 * shorter
        steep = 1.4 * (2 * shorter - longer) + 2.1969 * (longer - shorter)
        nearest = torch.minimum(nearest, torch.where(longer >= 2 * shorter, wide, steep))
    return nearest


def _equalised(levels: Tensor) -> Tensor:
    """Whole levels 0 to 255 of each plane spread so that their shares are even, as ``cv2.equalizeHist``."""
    flat = levels.flatten(1).to(torch.int64)
    counts = flat.new_zeros(len(flat), 256).scatter_add(1, flat, torch.ones_like(flat))
    is_above = torch.arange(256, device=flat.device) > flat.amin(1, keepdim=True)
    above = torch.where(is_above, counts, 0).cumsum(1)
    rest = above[:, -1:]
    table = (above.to(levels) * (255.0 / rest.clamp(min=1))).round()
    # A plane of one level has nothing to spread.
    return torch.where((rest == 0)[..., None, None], levels, table.gather(1, flat).view_as(levels))
