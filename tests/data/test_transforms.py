"""Transforms against torchvision one image at a time, and against plain loops that use the same
draws.
"""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from inco.data.recipes import RECIPES, make_recipe
from inco.data.transforms import (
    Cutout,
    Normalise,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
    crop_resize,
    shift_crop,
)
from inco.errors import ConfigError

NATIVE = {
    "digits": (1, 8, 8),
    "synthetic": (2, 12, 12),
    "fashion_mnist": (1, 28, 28),
    "svhn": (3, 32, 32),
    "cifar10": (3, 32, 32),
    "cinic10": (3, 32, 32),
    "images": (3, 40, 40),
}
CIFAR_MEAN, CIFAR_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(m: int = 6, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 1) -> torch.Tensor:
    return torch.randint(256, (m, *shape), generator=gen(seed), dtype=torch.uint8)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255


def test_random_crop_equals_padding_and_slicing_one_image_at_a_time() -> None:
    x, g = images(20), gen(7)
    top = torch.randint(9, (20,), generator=g)
    left = torch.randint(9, (20,), generator=g)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    expected = np.stack(
        [
            padded[i, :, t : t + 32, c : c + 32]
            for i, (t, c) in enumerate(zip(top, left, strict=True))
        ]
    )
    assert np.array_equal(RandomCrop(4)(x, gen(7)).numpy(), expected)
    # every offset occurs, both ends included
    assert set(top.tolist()) | set(left.tolist()) == set(range(9))


def test_crop_in_the_middle_is_the_identity() -> None:
    x, four = images(), torch.full((6,), 4)
    assert torch.equal(shift_crop(x, 4, four, four), x)


def test_random_flip_mirrors_the_images_it_draws_and_no_other() -> None:
    x = images(50)
    out = RandomFlip()(x, gen(3))
    mirrored = torch.rand((50, 1, 1, 1), generator=gen(3)).flatten() < 0.5
    assert 10 < mirrored.sum() < 40
    for i in range(50):
        assert torch.equal(out[i], reference.hflip(x[i]) if mirrored[i] else x[i])


def test_cutout_equals_a_loop_with_clipping() -> None:
    x, g = torch.randn(64, 3, 32, 32, generator=gen(2)), gen(5)
    rows = torch.randint(32, (64,), generator=g)
    columns = torch.randint(32, (64,), generator=g)
    expected = x.clone()
    for i, (y, c) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        expected[i, :, max(0, y - 8) : min(32, y + 8), max(0, c - 8) : min(32, c + 8)] = 0
    assert torch.equal(Cutout(16)(x, gen(5)), expected)
    assert rows.min() == 0 and rows.max() == 31


def test_normalise_equals_torchvision() -> None:
    x = images()
    expected = reference.normalize(unit(x), list(CIFAR_MEAN), list(CIFAR_STD))
    torch.testing.assert_close(
        Normalise(CIFAR_MEAN, CIFAR_STD)(x, gen()), expected, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(("native", "size"), [(28, 32), (28, 224), (32, 16), (40, 24)])
def test_resize_equals_torchvision_tensor_resize(native: int, size: int) -> None:
    x = images(shape=(1, native, native))
    expected = reference.resize(x.float(), [size, size], antialias=True)
    torch.testing.assert_close(Resize(size)(x, gen()), expected, rtol=0, atol=2e-3)  # of 255


@pytest.mark.parametrize("size", [8, 20, 48])
def test_crop_resize_equals_torchvision_one_image_at_a_time(size: int) -> None:
    x = images(8, (3, 32, 24)).float()
    draw = RandomResizedCrop(size).draw(8, 32, 24, gen(4), x.device)
    out = crop_resize(x, *draw, size)
    for i, (top, left, height, width) in enumerate(zip(*(d.tolist() for d in draw), strict=True)):
        expected = reference.resized_crop(
            x[i], top, left, height, width, [size, size], antialias=True
        )
        torch.testing.assert_close(out[i], expected, rtol=0, atol=2e-3)  # of 255


def test_crop_resize_is_within_a_grey_level_of_pil() -> None:
    from PIL import Image

    x = images(4)
    draw = RandomResizedCrop(224).draw(4, 32, 32, gen(9), x.device)
    out = crop_resize(x.float(), *draw, 224)
    for i, (top, left, height, width) in enumerate(zip(*(d.tolist() for d in draw), strict=True)):
        picture = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        expected = np.asarray(
            reference.resized_crop(picture, top, left, height, width, [224, 224])
        ).transpose(2, 0, 1)
        assert np.abs(out[i].numpy() - expected).max() < 1.01


def test_rectangles_follow_the_published_rule() -> None:
    m = 4000
    top, left, height, width = RandomResizedCrop(224).draw(m, 32, 32, gen(1), torch.device("cpu"))
    assert (
        min(top.min(), left.min()) >= 0
        and (top + height).max() <= 32
        and (left + width).max() <= 32
    )
    share = (height * width).float() / 1024
    assert 0.05 < share.min() < 0.12 and share.max() > 0.9
    ratio = width / height
    assert ratio.min() > 0.6 and ratio.max() < 1.6
    assert abs(ratio.log().mean()) < 0.02  # symmetric in the logarithm
    assert (top + height).eq(32).any() and top.eq(0).any()  # both borders are reached
    # the distribution of the area, against torchvision's own draws
    from torchvision.transforms import RandomResizedCrop as Torchvision

    torch.manual_seed(0)
    theirs = [
        Torchvision.get_params(torch.zeros(3, 32, 32), [0.08, 1.0], [3 / 4, 4 / 3])
        for _ in range(m)
    ]
    their_share = torch.tensor([h * w / 1024 for _, _, h, w in theirs])
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(share.quantile(q) - their_share.quantile(q)) < 0.04


def test_a_rectangle_that_never_fits_is_the_centre_with_the_allowed_ratio() -> None:
    top, left, height, width = RandomResizedCrop(8, scale=(4.0, 5.0)).draw(
        3, 30, 60, gen(), torch.device("cpu")
    )
    assert [t.tolist() for t in (top, left, height, width)] == [
        [0] * 3,
        [10] * 3,
        [30] * 3,
        [40] * 3,
    ]


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("variant", ["published", "corrected"])
def test_every_recipe_gives_the_shape_it_says_and_repeats_itself(
    name: str, family: str, size: int | None, variant: str
) -> None:
    recipe = make_recipe(name, NATIVE[name], family, size, variant)
    x = images(3, NATIVE[name]) // (15 if name == "digits" else 1)
    kept = x.clone()
    for transform in (recipe.train, recipe.test):
        out = transform(x, gen(1))
        assert (
            out.shape == (3, *recipe.shape) and out.dtype == torch.float32 and out.isfinite().all()
        )
        assert torch.equal(out, transform(x, gen(1)))
        assert torch.equal(x, kept)  # the resident images are never written to
    assert size is None or recipe.shape[1:] == (size, size)
    assert recipe.test(x[:0], gen()).shape == (0, *recipe.shape)  # a rank may have no example left


@pytest.mark.parametrize(
    ("name", "family", "shape"),
    [
        ("digits", "resnet", (1, 16, 16)),
        ("fashion_mnist", "resnet", (1, 32, 32)),
        ("fashion_mnist", "vit", (3, 224, 224)),
        ("svhn", "vit", (3, 224, 224)),
        ("cifar10", "resnet", (3, 32, 32)),
        ("cinic10", "vit", (3, 224, 224)),
    ],
)
def test_the_usual_sizes(name: str, family: str, shape: tuple[int, int, int]) -> None:
    assert make_recipe(name, NATIVE[name], family, None, "published").shape == shape


def test_published_cifar10_resnet_step_by_step() -> None:
    x, g = images(16), gen(11)
    recipe = make_recipe("cifar10", (3, 32, 32), "resnet", None, "published")
    top, left = torch.randint(9, (16,), generator=g), torch.randint(9, (16,), generator=g)
    mirrored = torch.rand((16, 1, 1, 1), generator=g).flatten() < 0.5
    rows, columns = torch.randint(32, (16,), generator=g), torch.randint(32, (16,), generator=g)
    out = recipe.train(x, gen(11))
    for i in range(16):
        one = reference.crop(reference.pad(x[i], [4, 4, 4, 4]), int(top[i]), int(left[i]), 32, 32)
        one = reference.hflip(one) if mirrored[i] else one
        one = reference.normalize(unit(one), list(CIFAR_MEAN), list(CIFAR_STD))
        y, c = int(rows[i]), int(columns[i])
        one[:, max(0, y - 8) : y + 8, max(0, c - 8) : c + 8] = 0
        torch.testing.assert_close(out[i], one, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        recipe.test(x, gen()),
        reference.normalize(unit(x), CIFAR_MEAN, CIFAR_STD),
        rtol=0,
        atol=2e-6,
    )


def test_fashion_mnist_published_is_neither_normalised_nor_augmented() -> None:
    x = images(4, (1, 28, 28))
    resnet = make_recipe("fashion_mnist", (1, 28, 28), "resnet", None, "published")
    torch.testing.assert_close(
        resnet.train(x, gen()),
        reference.resize(unit(x), [32, 32], antialias=True),
        rtol=0,
        atol=1e-5,
    )
    vit = make_recipe("fashion_mnist", (1, 28, 28), "vit", None, "published").train(x, gen())
    three = reference.resize(unit(x).expand(-1, 3, -1, -1), [224, 224], antialias=True)
    torch.testing.assert_close(vit, three, rtol=0, atol=1e-5)
    corrected = make_recipe("fashion_mnist", (1, 28, 28), "resnet", None, "corrected").train(
        x, gen()
    )
    torch.testing.assert_close(
        corrected, (resnet.train(x, gen()) - 0.2860) / 0.3530, rtol=0, atol=1e-5
    )


def test_cinic10_published_mirrors_test_images_and_corrected_does_not() -> None:
    x = images(40)
    published, corrected = (
        make_recipe("cinic10", (3, 32, 32), "resnet", None, v) for v in ("published", "corrected")
    )
    plain, mirrored = corrected.test(x, gen()), published.test(x, gen())
    same = (plain == mirrored).flatten(1).all(1)
    assert 5 < same.sum() < 35
    assert torch.equal(mirrored[~same], plain[~same].flip(-1))
    torch.testing.assert_close(
        plain,
        reference.normalize(
            unit(x), [0.47889522, 0.47227842, 0.43047404], [0.24205776, 0.23828046, 0.25874835]
        ),
        rtol=0,
        atol=2e-6,
    )
    assert "Cutout" not in repr(published.train)


def test_svhn_vit_mirrors_only_when_published() -> None:
    steps = {
        v: repr(make_recipe("svhn", (3, 32, 32), "vit", None, v).train)
        for v in ("published", "corrected")
    }
    assert "RandomFlip" in steps["published"] and "RandomFlip" not in steps["corrected"]
    resnet = repr(make_recipe("svhn", (3, 32, 32), "resnet", None, "published").train)
    assert (
        "Cutout(length=16)" in resnet and "RandomCrop" not in resnet and "RandomFlip" not in resnet
    )


def test_vit_test_images_are_resized_then_normalised() -> None:
    x = images(2)
    out = make_recipe("cifar10", (3, 32, 32), "vit", None, "published").test(x, gen())
    expected = reference.normalize(
        reference.resize(unit(x), [224, 224], antialias=True), [0.5] * 3, [0.5] * 3
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_vit_training_images_are_crops_of_the_normalised_image() -> None:
    x, g = images(5), gen(6)
    recipe = make_recipe("cifar10", (3, 32, 32), "vit", 48, "published")
    mirrored = torch.rand((5, 1, 1, 1), generator=g).flatten() < 0.5
    draw = RandomResizedCrop(48).draw(5, 32, 32, g, x.device)
    out = recipe.train(x, gen(6))
    for i, (top, left, height, width) in enumerate(zip(*(d.tolist() for d in draw), strict=True)):
        one = unit(reference.hflip(x[i]) if mirrored[i] else x[i])
        one = reference.resized_crop(one, top, left, height, width, [48, 48], antialias=True)
        torch.testing.assert_close(out[i], (one - 0.5) / 0.5, rtol=0, atol=2e-5)


def test_digits_are_scaled_from_sixteen() -> None:
    x = torch.full((1, 1, 8, 8), 16, dtype=torch.uint8)
    out = make_recipe("digits", (1, 8, 8), "resnet", None, "published").test(x, gen())
    torch.testing.assert_close(out, torch.full((1, 1, 16, 16), (1 - 0.3050) / 0.3759))


def test_cutout_keeps_its_share_at_another_size() -> None:
    assert "Cutout(length=8)" in repr(
        make_recipe("svhn", (3, 32, 32), "resnet", 16, "published").train
    )


def test_wrong_family_variant_and_size_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        make_recipe("digits", (1, 8, 8), "mlp", 0, "best")
    assert len(error.value.problems) == 3 and all(
        word in str(error.value) for word in ("mlp", "best", "image_size=0")
    )


def test_integers_with_a_bound_each_stay_below_it() -> None:
    from inco.data.transforms import integers

    high = torch.tensor([1, 2, 3]).repeat(500)
    drawn = integers(high, 1500, gen(), torch.device("cpu"))
    assert (drawn < high).all() and (drawn >= 0).all()
    assert abs(drawn[2::3].float().mean() - 1) < 0.12 and math.isclose(drawn[0::3].sum().item(), 0)
