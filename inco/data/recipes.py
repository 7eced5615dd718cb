"""What is done to images before a model sees them: the published way, and the corrected one.

`published` is what the published experiments did, odd points included; `corrected` repairs the
three that are mistakes: Fashion-MNIST without normalisation, CINIC-10 mirrored at random at *test*
time, SVHN digits mirrored in the ViT runs. Where nothing was wrong the two are equal. (Constants
and order: Chan et al., "Internal Cross-layer Gradients for Extending Homogeneity to Heterogeneity
in Federated Learning", ICLR 2024, and its published code.)
"""

from dataclasses import dataclass

from inco.data.transforms import (
    Cutout,
    Normalise,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Replicate,
    Resize,
    Step,
    Transform,
)
from inco.errors import ConfigError

CIFAR10 = Normalise((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
CINIC10 = Normalise((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))
FASHION_MNIST = Normalise((0.2860,), (0.3530,))
HALF = Normalise((0.5,), (0.5,))
PLAIN = Normalise()
DIGITS = Normalise((0.3050,), (0.3759,), full=16.0)


@dataclass(frozen=True)
class Recipe:
    """The two transforms of a dataset for one model family, and the shape that comes out."""

    train: Transform
    test: Transform
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Published:
    """How the published experiments prepare the images of a dataset.

    `sides`: usual side of a ResNet's and of a ViT's input (None: the images' own). For a ResNet in
    training, `crop`: random crop (padding an eighth of the side) and mirror, `cutout`: Cutout of
    half the side. `vit_crop`: a ViT trains on RandomResizedCrop, mirror, and .5/.5.
    """

    normalise: Normalise
    sides: tuple[int, int] | None = None
    crop: bool = False
    cutout: bool = False
    vit_crop: bool = False


RECIPES = {
    "digits": Published(DIGITS, (16, 16)),
    "synthetic": Published(HALF),
    "fashion_mnist": Published(PLAIN, (32, 224)),
    "svhn": Published(HALF, (32, 224), cutout=True, vit_crop=True),
    "cifar10": Published(CIFAR10, (32, 224), crop=True, cutout=True, vit_crop=True),
    "cinic10": Published(CINIC10, (32, 224), crop=True, vit_crop=True),
    "images": Published(HALF, crop=True, vit_crop=True),
}


def make_recipe(
    name: str, shape: tuple[int, int, int], family: str, image_size: int | None, variant: str
) -> Recipe:
    """Return the recipe of dataset `name`, whose images have `shape` (C, H, W).

    `image_size` None: the usual one. ConfigError for an unknown family or variant.
    """
    _check(family, image_size, variant)
    published = RECIPES[name]
    corrected = variant == "corrected"
    vit = family == "vit"
    channels, side, _ = shape
    size = image_size or (published.sides[vit] if published.sides else side)
    if vit and published.vit_crop:
        scaled = _scaled(HALF, side, size)
        # crops are placed uniformly, so the mirror may come first, where pixels are few
        mirror: list[Step] = [] if name == "svhn" and corrected else [RandomFlip()]
        train: list[Step] = [*mirror, HALF, RandomResizedCrop(size)]
        return Recipe(Transform(train), Transform(scaled), (channels, size, size))
    fashion = name == "fashion_mnist"
    scaled = _scaled(FASHION_MNIST if fashion and corrected else published.normalise, side, size)
    if fashion and vit:
        scaled.append(Replicate(3))
        channels = 3
    before: list[Step] = [RandomCrop(max(1, side // 8)), RandomFlip()] if published.crop else []
    after: list[Step] = [Cutout(size // 2)] if published.cutout else []
    at_test: list[Step] = [RandomFlip()] if name == "cinic10" and not corrected else []
    train = [*before, *scaled, *after]
    return Recipe(Transform(train), Transform([*at_test, *scaled]), (channels, size, size))


def _check(family: str, image_size: int | None, variant: str) -> None:
    problems = []
    if family not in ("resnet", "vit"):
        problems.append(f"model family={family!r}: a recipe exists for resnet and vit; use one")
    if variant not in ("published", "corrected"):
        rule = "must be published or corrected; use dataset.transforms=published"
        problems.append(f"dataset.transforms={variant!r}: {rule}")
    if image_size is not None and image_size < 1:
        rule = "must be at least 1 pixel; leave it out for the usual size"
        problems.append(f"model image_size={image_size}: {rule}")
    if problems:
        raise ConfigError(problems)


def _scaled(normalise: Normalise, side: int, size: int) -> list[Step]:
    """Resize and normalise, which commute: normalise where the image is smaller."""
    if size == side:
        return [normalise]
    return [normalise, Resize(size)] if size > side else [Resize(size), normalise]
