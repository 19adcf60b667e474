import json

import pytest
import torch

from sparring.perturb.corruptions import CORRUPTIONS, blank, corrupt, gaussian_noise
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
    view = view_of((6, 8), (5, 5))
    result = corrupt(view, name, seed=7, severity=severity)
    again, other = corrupt(view, name, seed=7, severity=severity), corrupt(view, name, seed=8, severity=severity)
    for before, after, same, different in zip(view.images, result.images, again.images, other.images, strict=True):
        assert after.shape == before.shape and after.dtype == before.dtype
        assert after.min() >= 0 and after.max() <= 1
        assert torch.equal(quantize_8bit(after), after)
        assert torch.equal(after, same)
        assert torch.equal(after, different) is not CORRUPTIONS[name].is_random
        assert not torch.equal(after, before)


def test_higher_severity_changes_more():
    view = view_of((32, 32))
    changes = [
        float((corrupt(view, "gaussian_noise", seed=0, severity=s).images[0] - view.images[0]).square().mean())
        for s in range(1, 6)
    ]
    assert changes == sorted(changes) and changes[0] < 0.5 * changes[-1]


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
        ("gausian_noise", {"severity": 1}, "unknown corruption 'gausian_noise': known are gaussian_noise, blank"),
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
