"""Stage and layer splits: a smaller client holds the first blocks of each group (Chan et al., ICLR
2024, Appendix H.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from inco.errors import ConfigError
from inco.models.base import Family
from inco.settings import LEVELS, BatchNorm, BatchNormImages, checked
from inco.splits.base import BlockSplit, Norm


class Depth(BlockSplit):
    """Sub-models that keep the first blocks of each group of the global model.

    The four stages of a ResNet (stage split), or the blocks of a ViT (layer split).
    """

    @checked("split")
    def __init__(
        self,
        levels: Annotated[
            list[Any],
            LEVELS,
            "blocks kept by each level, smallest first: of a ResNet one number a stage, as"
            " [1, 1, 2, 2], of a ViT one number",
        ],
        bn: BatchNorm = "aggregated",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        super().__init__(family, depth_table(levels), Norm(bn, bn_images))


def depth_table(levels: Sequence[Sequence[int] | int]) -> list[list[int]]:
    """Return levels as lists of blocks kept in each group.

    Raises ConfigError where they are not distinct or not smallest first.
    """
    table = [[keep] if isinstance(keep, int) else list(keep) for keep in levels]
    if len({tuple(keep) for keep in table}) < len(table):
        raise ConfigError(f"split.levels={table}: a level is listed twice; list each size once")
    if any(sum(small) > sum(large) for small, large in pairwise(table)):
        raise ConfigError(f"split.levels={table}: list the levels smallest first")
    return table
