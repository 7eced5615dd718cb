"""Stage and layer splits: a smaller client holds the first blocks of each group (Chan et al., ICLR
2024, Appendix H.4).
"""

from collections.abc import Sequence
from itertools import pairwise

from inco.errors import ConfigError
from inco.models.base import Family
from inco.splits.base import BlockSplit, Norm


class Depth(BlockSplit):
    """Sub-models that keep the first blocks of each group of the global model.

    `levels`: for each level, smallest first, blocks kept in each group: [1, 1, 2, 2] for the four
    stages of a ResNet (stage split), [9] or 9 for the blocks of a ViT (layer split). `bn`,
    `bn_images`: see `Norm`.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[int] | int],
        bn: str = "aggregated",
        bn_images: int | None = None,
        *,
        family: Family,
    ) -> None:
        super().__init__(family, depth_table(levels), Norm(bn, bn_images))


def depth_table(levels: Sequence[Sequence[int] | int]) -> list[list[int]]:
    """Return levels as lists of blocks kept in each group.

    Raises ConfigError where they are not distinct or not smallest first.
    """
    table = [[keep] if isinstance(keep, int) else list(keep) for keep in levels]
    if not table:
        raise ConfigError("split.levels=[]: list at least one level, smallest first")
    if len({tuple(keep) for keep in table}) < len(table):
        raise ConfigError(f"split.levels={table}: a level is listed twice; list each size once")
    if any(sum(small) > sum(large) for small, large in pairwise(table)):
        raise ConfigError(f"split.levels={table}: list the levels smallest first")
    return table
