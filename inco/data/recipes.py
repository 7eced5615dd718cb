"""What is done to images before a model sees them: the published way, and the corrected one.

`published` is what the published experiments did, odd points included; `corrected` repairs the
three that are mistakes: Fashion-MNIST without normalisation, CINIC-10 mirrored at random at *test*
time, SVHN digits mirrored in the ViT runs. Where nothing was wrong the two are equal. (Constants
and order: Chan et al., "Internal Cross-layer Gradients for Extending Homogeneity to Heterogeneity
in Federated Learning", ICLR 2024, and its published code.)

Images are resized to the model's `image_size` just before normalisation. Cutout keeps its share of
the image: 16 pixels at 32.
"""

from collections.abc import Sequence
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

FAMILIES = ("resnet", "vit")
VARIANTS = ("published", "corrected")

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
class Ask:
    """What a recipe is made for: native shape (C, H, W), model family, and size (None: usual)."""

    shape: tuple[int, int, int]
    family: str
    image_size: int | None
    corrected: bool

    @property
    def side(self) -> int:
        return self.shape[1]

    @property
    def vit(self) -> bool:
        return self.family == "vit"

    def size(self, resnet: int, vit: int) -> int:
        """Return the side of the model's input: what was asked for, else the family's usual one."""
        return self.image_size or (vit if self.vit else resnet)


def make_recipe(
    name: str, shape: tuple[int, int, int], family: str, image_size: int | None, variant: str
) -> Recipe:
    """Return the recipe of dataset `name`; ConfigError for an unknown family or variant."""
    problems = []
    if family not in FAMILIES:
        problems.append(
            f"model family={family!r}: a recipe exists for {' and '.join(FAMILIES)}; set family to"
            " one of them"
        )
    if variant not in VARIANTS:
        problems.append(
            f"dataset.transforms={variant!r}: must be published or corrected; use"
            " dataset.transforms=published"
        )
    if image_size is not None and image_size < 1:
        problems.append(
            f"model image_size={image_size}: must be at least 1 pixel; leave it out for the usual"
            " size"
        )
    if problems:
        raise ConfigError(problems)
    return RECIPES[name](Ask(shape, family, image_size, variant == "corrected"))


def _scaled(normalise: Normalise, ask: Ask, size: int) -> list[Step]:
    """Resize and normalise, which commute: normalise where the image is smaller."""
    if size == ask.side:
        return [normalise]
    return [normalise, Resize(size)] if size > ask.side else [Resize(size), normalise]


def _recipe(train: Sequence[Step], test: Sequence[Step], channels: int, size: int) -> Recipe:
    return Recipe(Transform(train), Transform(test), (channels, size, size))


def _rescaled_crop(ask: Ask, size: int, flip: bool) -> Recipe:
    """The ViT recipe: RandomResizedCrop, mirror, .5/.5; at test time a plain resize.

    The mirror comes first, where pixels are few: crops are placed uniformly, so the distribution is
    the same.
    """
    mirror: list[Step] = [RandomFlip()] if flip else []
    train: list[Step] = [*mirror, HALF, RandomResizedCrop(size)]
    return _recipe(train, _scaled(HALF, ask, size), 3, size)


def _digits(ask: Ask) -> Recipe:
    """8x8 shown at 16x16 (bilinear), scaled from 0..16, normalised; no augmentation."""
    size = ask.size(resnet=16, vit=16)
    steps = _scaled(DIGITS, ask, size)
    return _recipe(steps, steps, 1, size)


def _synthetic(ask: Ask) -> Recipe:
    """Normalised with .5/.5; no augmentation, since the classes are fixed patterns."""
    size = ask.size(resnet=ask.side, vit=ask.side)
    steps = _scaled(HALF, ask, size)
    return _recipe(steps, steps, ask.shape[0], size)


def _fashion_mnist(ask: Ask) -> Recipe:
    """Resized to 32 (ResNet) or to 224 in 3 channels (ViT); normalised only when corrected."""
    size = ask.size(resnet=32, vit=224)
    steps = _scaled(FASHION_MNIST if ask.corrected else PLAIN, ask, size)
    if ask.vit:
        steps = [*steps, Replicate(3)]
    return _recipe(steps, steps, 3 if ask.vit else 1, size)


def _svhn(ask: Ask) -> Recipe:
    """ResNet: .5/.5, Cutout; ViT: RandomResizedCrop, .5/.5, and a mirror unless `corrected`."""
    size = ask.size(resnet=32, vit=224)
    if ask.vit:
        return _rescaled_crop(ask, size, flip=not ask.corrected)
    scaled = _scaled(HALF, ask, size)
    return _recipe([*scaled, Cutout(size // 2)], scaled, 3, size)


def _cifar10(ask: Ask) -> Recipe:
    """ResNet: crop (padding 4), mirror, normalise, Cutout; ViT: rescaled crop, mirror, .5/.5."""
    size = ask.size(resnet=32, vit=224)
    if ask.vit:
        return _rescaled_crop(ask, size, flip=True)
    scaled = _scaled(CIFAR10, ask, size)
    return _recipe([RandomCrop(4), RandomFlip(), *scaled, Cutout(size // 2)], scaled, 3, size)


def _cinic10(ask: Ask) -> Recipe:
    """As CIFAR-10 without Cutout; `published` mirrors at test time as well with a ResNet."""
    size = ask.size(resnet=32, vit=224)
    if ask.vit:
        return _rescaled_crop(ask, size, flip=True)
    scaled = _scaled(CINIC10, ask, size)
    at_test: list[Step] = [] if ask.corrected else [RandomFlip()]
    return _recipe([RandomCrop(4), RandomFlip(), *scaled], [*at_test, *scaled], 3, size)


def _images(ask: Ask) -> Recipe:
    """ResNet: crop (padding side / 8), mirror, .5/.5; ViT: RandomResizedCrop, mirror, .5/.5."""
    size = ask.size(resnet=ask.side, vit=ask.side)
    if ask.vit:
        return _rescaled_crop(ask, size, flip=True)
    scaled = _scaled(HALF, ask, size)
    return _recipe([RandomCrop(max(1, ask.side // 8)), RandomFlip(), *scaled], scaled, 3, size)


RECIPES = {
    "digits": _digits,
    "synthetic": _synthetic,
    "fashion_mnist": _fashion_mnist,
    "svhn": _svhn,
    "cifar10": _cifar10,
    "cinic10": _cinic10,
    "images": _images,
}
