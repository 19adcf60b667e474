import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparring.perturb.corruptions import (
    CORRUPTION_SETS,
    CORRUPTIONS,
    blank,
    contact_sheet,
    corrupt,
    gaussian_noise,
)
from sparring.perturb.space import quantize_8bit
from sparring.types import View


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view_of(*sizes: tuple[int, int]) -> View:
    """A clean view of random 8-bit pictures."""
    return View(
        "clean", tuple(quantize_8bit(torch.rand(3, *size, generator=seeded(i))) for i, size in enumerate(sizes))
    )


EVERY = [(name, severity) for name, entry in CORRUPTIONS.items() for severity in range(1, len(entry.severities) + 1)]
EVERY += [(name, None) for name, entry in CORRUPTIONS.items() if not entry.parameters]


def test_gaussian_noise_has_the_severities_of_imagenet_c():
    entry = CORRUPTIONS["gaussian_noise"]
    assert entry.parameters == ("sigma",)
    assert entry.severities == ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))


def test_gaussian_noise_has_the_asked_mean_and_spread():
    # 3 * 128 * 128 = 49,152 draws: the sample mean has standard error 0.05 / 222 = 2.3e-4, the spread 1.6e-4
    noise = gaussian_noise(torch.full((3, 128, 128), 0.5), sigma=0.05, generator=seeded(0)) - 0.5
    assert abs(float(noise.mean())) < 1e-3
    assert float(noise.std()) == pytest.approx(0.05, abs=1e-3)
    # independent over channels and neighbours
    assert abs(float(torch.corrcoef(noise.view(3, -1))[0, 1])) < 0.03
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.03 * 0.05**2


def test_no_noise_is_the_identity_bit_for_bit():
    images = torch.rand(2, 3, 4, 5, generator=seeded(1))
    assert torch.equal(gaussian_noise(images, sigma=0.0, generator=seeded(0)), images)


def test_noise_is_clamped_and_lets_the_gradient_through_inside_the_range():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3).expand(3, 40, 3).clone().requires_grad_()
    noisy = gaussian_noise(images, sigma=0.1, generator=seeded(0))
    assert noisy.min() == 0 and noisy.max() == 1
    noisy.sum().backward()
    is_inside = (noisy > 0) & (noisy < 1)
    assert torch.equal(images.grad, is_inside.float())


@pytest.mark.parametrize("sigma", [-0.1, 10.0, float("nan")])
def test_sigma_is_in_pixel_units(sigma):
    with pytest.raises(ValueError, match="ten grey levels are 10 / 255"):
        gaussian_noise(torch.zeros(3, 2, 2), sigma=sigma, generator=seeded(0))


def test_a_blank_picture_is_one_grey_and_knows_nothing_of_the_image():
    dark, bright = blank(torch.zeros(3, 2, 2)), blank(torch.ones(3, 2, 2))
    assert torch.equal(dark, bright)
    assert torch.equal(dark, quantize_8bit(torch.full((3, 2, 2), 0.502)))


@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_every_corruption_keeps_sizes_range_and_grid_is_seeded_and_changes_the_picture(name, severity):
    view = view_of((32, 49), (41, 33))
    originals = [image.clone() for image in view.images]
    result = corrupt(view, name, seed=7, severity=severity)
    again, other = corrupt(view, name, seed=7, severity=severity), corrupt(view, name, seed=8, severity=severity)
    for before, after, same, different in zip(view.images, result.images, again.images, other.images, strict=True):
        assert after.shape == before.shape and after.dtype == before.dtype
        assert after.min() >= 0 and after.max() <= 1
        assert torch.equal(quantize_8bit(after), after)
        assert torch.equal(after, same)
        assert torch.equal(after, different) is not CORRUPTIONS[name].is_random
        assert not torch.equal(after, before)
    assert all(torch.equal(image, original) for image, original in zip(view.images, originals, strict=True))


def smooth_pictures(count: int, side: int) -> torch.Tensor:
    """Pictures with edges and shades: flat patches of random colour under a gradient."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(11))
    patches = F.interpolate(coarse, size=(side, side), mode="nearest")
    return (0.7 * patches + 0.3 * torch.linspace(0, 1, side)).clamp(0, 1)


UNEVEN = {"glass_blur", "snow", "frost", "fog", "spatter"}
"""ImageNet-C's constants change several things at once, so that a step may undo a little of the one before."""


@pytest.mark.parametrize("name", [name for name, entry in CORRUPTIONS.items() if entry.severities])
def test_higher_severity_changes_more_on_average(name):
    pictures = smooth_pictures(12, 64)
    changes = []
    for severity in range(1, 6):
        results = [corrupt(View("clean", (p,)), name, seed=i, severity=severity) for i, p in enumerate(pictures)]
        changed = torch.stack([result.images[0] for result in results])
        changes.append(float((changed - pictures).square().mean().sqrt()))
    if name == "saturate":
        # 1 and 2 take colour away, 3 to 5 add it: each half is graded for itself
        assert changes[0] < changes[1] and changes[2] < changes[3] < changes[4]
    elif name in UNEVEN:
        assert all(after > 0.85 * before for before, after in itertools.pairwise(changes)), changes
        assert changes[4] > 1.1 * changes[0], changes
    else:
        assert changes == sorted(changes) and changes[0] < 0.9 * changes[-1], changes


SEEDED = [name for name, entry in CORRUPTIONS.items() if entry.is_random]


def values_at(name, severity):
    """The parameters of a severity; None is for a corruption that is not graded."""
    entry = CORRUPTIONS[name]
    return dict(zip(entry.parameters, entry.severities[severity - 1], strict=True)) if severity else {}


MILD_AND_STRONG = [(name, severity) for name, severity in EVERY if severity in (1, 3, 5, None)]


@pytest.mark.parametrize("size", [(33, 40), (52, 21)])
@pytest.mark.parametrize(("name", "severity"), MILD_AND_STRONG)
def test_a_batch_equals_its_pictures_one_by_one(name, severity, size):
    entry, values = CORRUPTIONS[name], values_at(name, severity)
    pictures = torch.rand(2, 2, 3, *size, generator=seeded(3))

    def streams(count):
        return {"generator": [seeded(100 + i) for i in range(count)]} if entry.is_random else {}

    batch = entry.apply(pictures, **values, **streams(4))
    assert batch.shape == pictures.shape
    for i, picture in enumerate(pictures.flatten(0, 1)):
        own = {"generator": seeded(100 + i)} if entry.is_random else {}
        alone = entry.apply(picture, **values, **own)
        assert torch.allclose(batch.flatten(0, 1)[i], alone, rtol=0, atol=1e-6)
    if entry.is_random:
        # one generator for all: drawn in order, as if each were given after the other
        stream = seeded(5)
        one_by_one = [entry.apply(picture, **values, generator=stream) for picture in pictures[0]]
        together = entry.apply(pictures[0], **values, generator=seeded(5))
        assert torch.allclose(together, torch.stack(one_by_one), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "severity"), MILD_AND_STRONG)
def test_a_batch_of_no_pictures_is_fine(name, severity):
    streams = {"generator": []} if CORRUPTIONS[name].is_random else {}
    empty = CORRUPTIONS[name].apply(torch.zeros(2, 0, 3, 33, 40), **values_at(name, severity), **streams)
    assert empty.shape == (2, 0, 3, 33, 40)


class Watch(TorchDispatchMode):
    """Counts operations on ``meta`` tensors and refuses those that mix devices, as a GPU would refuse or be slowed by
    them. Such tensors hold no values, so copying one to the CPU or asking for a number fails by itself."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        assert len(devices) <= 1, f"{operation} takes tensors of {devices}"
        self.count += "meta" in devices
        return operation(*args, **(kwargs or {}))


PICTURE_BY_PICTURE = {"shot_noise", "jpeg_compression", "jpeg_chain"}
"""A draw that depends on the picture, and what Pillow stores."""


@pytest.mark.parametrize(("name", "severity"), [e for e in MILD_AND_STRONG if e[0] not in PICTURE_BY_PICTURE])
def test_all_pictures_are_worked_on_at_once_where_they_are(name, severity, monkeypatch):
    entry, values = CORRUPTIONS[name], values_at(name, severity)
    # glass and spatter repeat a step until nothing changes: the one thing that is asked of values
    monkeypatch.setattr(torch, "equal", lambda first, second: True)

    def num_operations(count):
        pictures = torch.empty(count, 2, 3, 33, 40, device="meta")
        streams = {"generator": [seeded(i) for i in range(2 * count)]} if entry.is_random else {}
        with Watch() as watch:
            result = entry.apply(pictures, **values, **streams)
        assert result.device == pictures.device and result.shape == pictures.shape
        return watch.count

    assert num_operations(1) == num_operations(4) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_on_a_gpu_pictures_differ_from_the_cpus_by_a_grey_level_at_most(name):
    severity = 3 if CORRUPTIONS[name].severities else None
    here = corrupt(view_of((65, 80)), name, seed=7, severity=severity).images[0]
    there = corrupt(View("clean", (view_of((65, 80)).images[0].cuda(),)), name, seed=7, severity=severity).images[0]
    assert there.is_cuda
    # A threshold (an edge of spatter, a pixel of glass) may fall to the other side in a few places.
    apart = 255 * (there.cpu() - here).abs()
    assert float((apart <= 1.01).double().mean()) >= 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "severity"), MILD_AND_STRONG)
def test_a_batch_on_a_gpu_differs_from_the_cpus_by_a_grey_level_at_most(name, severity):
    entry, values = CORRUPTIONS[name], values_at(name, severity)
    pictures = quantize_8bit(torch.rand(2, 2, 3, 65, 80, generator=seeded(3)))

    def applied(images):
        streams = {"generator": [seeded(i) for i in range(4)]} if entry.is_random else {}
        return entry.apply(images, **values, **streams)

    there = applied(pictures.cuda())
    assert there.is_cuda
    apart = 255 * (there.cpu() - applied(pictures)).abs()
    assert float((apart <= 1.01).double().mean()) >= 0.99


@pytest.mark.parametrize("name", SEEDED)
def test_as_many_generators_as_pictures(name):
    entry = CORRUPTIONS[name]
    values = dict(zip(entry.parameters, entry.severities[0], strict=True))
    with pytest.raises(ValueError, match="2 pictures, 3 generators"):
        entry.apply(torch.zeros(2, 3, 32, 32), **values, generator=[seeded(i) for i in range(3)])


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1024, 3)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_odd_sizes_are_fine(name, size):
    for severity in (1, 5) if CORRUPTIONS[name].severities else (None,):
        result = corrupt(view_of(size), name, seed=1, severity=severity)
        assert result.images[0].shape == (3, *size)
        assert result.images[0].isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_black_and_white_pictures_are_fine(name, grey):
    picture = torch.full((3, 32, 32), grey)
    for severity in (1, 5) if CORRUPTIONS[name].severities else (None,):
        result = corrupt(View("clean", (picture,)), name, seed=1, severity=severity).images[0]
        assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


DIFFERENTIABLE = (
    "gaussian_noise", "speckle_noise", "defocus_blur", "motion_blur", "zoom_blur", "gaussian_blur", "brightness",
    "contrast", "pixelate", "low_resolution", "uneven_light", "shadow", "frost", "watermark", "text_overlay",
)  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_what_is_called_differentiable_has_the_derivative_of_small_changes(name):
    # all of these are locally linear in the picture away from the clamps, so a finite difference is nearly exact
    entry = CORRUPTIONS[name]
    values = dict(zip(entry.parameters, entry.severities[0], strict=True))
    picture = (0.4 + 0.1 * torch.rand(3, 20, 24, generator=seeded(0))).double().requires_grad_()
    direction = torch.randn(3, 20, 24, generator=seeded(1)).double()

    def scalar(image):
        own = {"generator": seeded(2)} if entry.is_random else {}
        return (entry.apply(image, **values, **own) * torch.linspace(0, 1, 24)).sum()

    scalar(picture).backward()
    step = 1e-6
    with torch.no_grad():
        slope = (scalar(picture + step * direction) - scalar(picture - step * direction)) / (2 * step)
    assert float((picture.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_sets_name_known_corruptions_and_severities_once():
    for name, entry in CORRUPTION_SETS.items():
        assert entry.name == name and entry.description
        assert len(set(entry.members)) == len(entry.members) > 0
        assert all(1 <= severity <= len(CORRUPTIONS[corruption].severities) for corruption, severity in entry.members)
    assert len(CORRUPTION_SETS["imagenet-c"].corruptions) == 15
    assert len(CORRUPTION_SETS["imagenet-c-extra"].corruptions) == 4
    groups = [CORRUPTION_SETS[name].corruptions for name in ("noise", "blur", "weather", "digital")]
    assert [len(group) for group in groups] == [3, 4, 4, 4]
    assert tuple(c for group in groups for c in group) == CORRUPTION_SETS["imagenet-c"].corruptions
    everywhere = {c for name in ("imagenet-c", "imagenet-c-extra", "field") for c in CORRUPTION_SETS[name].corruptions}
    assert everywhere | {"blank"} == set(CORRUPTIONS)


TWINS = (
    {"gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"},
    {"jpeg_compression", "jpeg_chain"},
    {"low_resolution", "pixelate"},
)


def test_no_near_duplicate_crosses_from_seen_to_unseen():
    seen, unseen = (set(CORRUPTION_SETS[name].corruptions) for name in ("roma-seen", "roma-unseen"))
    assert not seen & unseen
    for twins in TWINS:
        assert seen & twins and not unseen & twins


def test_a_contact_sheet_shows_each_corruption_beside_the_clean_picture():
    picture = torch.full((3, 40, 50), 0.2)
    sheet = contact_sheet([picture], CORRUPTION_SETS["noise"])
    # 1 clean + 5 severities of 50 + 6 pixels, 3 corruptions of 40 + 6 + a line of 16, and a gap of 6
    assert sheet.size == (6 * 56 + 6, 3 * 62 + 6)
    for row in range(3):
        assert sheet.getpixel((6, 6 + row * 62 + 16)) == (51, 51, 51)
    noisy = torch.tensor([list(sheet.getpixel((6 + 56 + x, 6 + 16 + y))) for x in range(50) for y in range(40)])
    assert abs(float(noisy.double().mean()) - 51) < 3 and float(noisy.double().std()) > 10


PAGE = Path(__file__).parents[2] / "docs" / "robustness" / "corruptions.md"


def test_the_page_lists_every_corruption_with_its_constants():
    tables = PAGE.read_text(encoding="utf-8").partition("\n## Speed")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", tables, flags=re.MULTILINE))
    for name, entry in CORRUPTIONS.items():
        assert name in rows, f"{name} is missing on {PAGE.name}"
        if entry.severities:
            written = [[float(n) for n in re.findall(r"[\d.]+", part)] for part in rows[name].split("; ")]
            assert written == [list(values) for values in entry.severities], name


def test_pictures_of_one_view_get_different_noise():
    picture = torch.full((3, 6, 6), 128 / 255)
    first, second = corrupt(View("clean", (picture, picture)), "gaussian_noise", seed=0, sigma=0.1).images
    assert not torch.equal(first, second)


def test_provenance_says_everything_needed_to_repeat_it():
    parent = corrupt(view_of((6, 8)), "gaussian_noise", seed=3, sigma=0.1)
    result = corrupt(parent, "gaussian_noise", seed=4, severity=2)
    assert (parent.name, result.name) == ("gaussian_noise(sigma=0.1)", "gaussian_noise-2")
    record = json.loads(json.dumps(result.provenance))
    assert record == {
        "operator": "gaussian_noise",
        "parameters": {"sigma": 0.12},
        "severity": 2,
        "seed": 4,
        "sizes": [[6, 8]],
        "parent": {"name": parent.name, "provenance": parent.provenance},
    }
    repeated = corrupt(parent, record["operator"], seed=record["seed"], **record["parameters"])
    assert torch.equal(repeated.images[0], result.images[0])


def test_a_corruption_without_randomness_records_no_seed():
    result = corrupt(view_of((4, 4)), "blank", seed=9)
    assert result.name == "blank"
    assert result.provenance["seed"] is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gausian_noise", {"severity": 1}, "unknown corruption 'gausian_noise': known are gaussian_noise, shot_noise"),
        ("gaussian_noise", {"severity": 6}, "1 to 5"),
        ("gaussian_noise", {"severity": 0}, "1 to 5"),
        ("gaussian_noise", {}, "give a severity or exactly sigma; got neither"),
        ("gaussian_noise", {"std": 0.1}, "exactly sigma; got std"),
        ("gaussian_noise", {"severity": 1, "sigma": 0.1}, "not both"),
        ("blank", {"severity": 1}, "it is not graded"),
        ("blank", {"grey": 0.5}, "exactly no parameters"),
    ],
)
def test_wrong_arguments_say_what_is_right(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(view_of((4, 4)), name, seed=0, **arguments)
