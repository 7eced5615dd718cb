"""Rules across groups that a split takes part in; see `cross`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Settings = Mapping[str, Any]
_PUBLISHED_LEVELS = {
    "inco.splits.isolated.Isolated": 5,
    "inco.splits.inclusive.Inclusive": 5,
    "inco.splits.scalefl.ScaleFL": 4,
}
_WIDTHS = ("inco.splits.width.Width", "inco.splits.width.Rolling")


def _rising(values: Sequence[Any]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _blocks(model: Mapping[str, Any]) -> list[int] | None:
    """Blocks in each group of the global model, where its settings tell."""
    if "blocks" in model:
        return list(model["blocks"])
    return [model["depth"]] if "depth" in model else None


_BY_BLOCKS = (
    "inco.splits.depth.Depth",
    "inco.splits.isolated.Isolated",
    "inco.splits.inclusive.Inclusive",
)


def _split_fits_model(settings: Settings) -> Iterable[str]:
    levels = settings["split"].get("levels")
    most = _blocks(settings["model"])
    if levels is None or most is None or settings["split"]["_target_"] not in _BY_BLOCKS:
        return
    groups = (
        "one number of blocks (split=layer)"
        if len(most) == 1
        else f"{len(most)} numbers of blocks, one a stage (split=stage)"
    )
    for level in levels:
        kept = [level] if isinstance(level, int) else list(level)
        if len(kept) != len(most):
            yield f"split.levels has {level}, but the model takes {groups}"
            return
        if any(k > m for k, m in zip(kept, most, strict=True)):
            yield (
                f"split.levels has {level}, but the model has only {most} blocks; list fewer, or"
                " use a deeper model"
            )
            return


def _blocks_to_leave_out(settings: Settings) -> Iterable[str]:
    needs = (*_BY_BLOCKS, "inco.splits.scalefl.ScaleFL")
    if (
        settings["model"]["_target_"] == "inco.models.cnn.CNNFamily"
        and settings["split"]["_target_"] in needs
    ):
        yield (
            "model=cnn with a split by blocks (stage, layer, isolated, inclusive, scalefl): the"
            " model has no blocks that smaller clients could leave out; use split=none, width or"
            " rolling"
        )


def _clients_for_each_level(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    clients = settings["num_clients"]
    count = (
        len(split["levels"]) if split.get("levels") else _PUBLISHED_LEVELS.get(split["_target_"], 0)
    )
    if settings["capacity"]["_target_"] == "inco.clients.capacity.FiveLevels" and clients < count:
        yield (
            f"num_clients={clients}: the split has {count} sizes and capacity=five_levels gives"
            f" each a group of clients; use num_clients={count} or more, or fewer split.levels"
        )


def _exits_fit_model(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    blocks = _blocks(settings["model"])
    if split["_target_"] != "inco.splits.scalefl.ScaleFL" or blocks is None:
        return
    exits = split["exits"]
    levels = split["levels"]
    most = sum(blocks)
    if exits and (exits != sorted(set(exits)) or exits[-1] >= most):
        yield (
            f"split.exits={exits}: list them in order, each after 1 to {most - 1} blocks: the model"
            f" has {most}, and ends with its own"
        )
    elif not exits and most < 6:
        yield (
            f"split.exits=null with a model of {most} blocks: the published exits fall together;"
            " list split.exits and split.levels"
        )
    heads = len(exits or [0, 0, 0]) + 1
    if levels is None and heads != 4:
        yield (
            f"split.exits={exits} with split.levels=null: the published levels need three early"
            " exits; give split.levels as well"
        )
    elif levels and any(count > heads for _, count in levels):
        yield (
            f"split.levels={levels}: a level has 1 to {heads} exits, the model's own classifier"
            " included"
        )
    elif levels and not _rising([(count, rate) for rate, count in levels]):
        yield f"split.levels={levels}: list the levels smallest first, by exits and then by rate"
    elif levels and (levels[-1][0] != 1 or levels[-1][1] != heads):
        yield f"split.levels={levels}: the last level is the whole model; end with [1.0, {heads}]"


def _widths_rise(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    if split["_target_"] in _WIDTHS and not _rising(split["levels"]):
        yield f"split.levels={split['levels']}: list the widths smallest first, each once"


def _windows_that_move(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    if split.get("window") == "random" and split.get("overlap") is not None:
        yield (
            f"split.overlap={split['overlap']} with split.window=random: an overlap is of windows"
            " that move; use split.overlap=null"
        )


def _nested_levels(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    if split["_target_"] != "inco.splits.inclusive.Inclusive" or not split["levels"]:
        return
    table = [[level] if isinstance(level, int) else level for level in split["levels"]]
    if any(
        len(a) != len(b) or any(x > y for x, y in zip(a, b, strict=True))
        for a, b in pairwise(table)
    ):
        yield (
            f"split.levels={split['levels']}: with split=inclusive each level has at least the"
            " blocks of the one before it"
        )


def _images_to_measure(settings: Settings) -> Iterable[str]:
    split = settings["split"]
    if split.get("bn_images") is not None and split["bn"] != "static":
        yield (
            f"split.bn_images={split['bn_images']} with split.bn={split['bn']}: only"
            " split.bn=static measures images; leave it null"
        )


def _sums_of_weighted_widths(settings: Settings) -> Iterable[str]:
    """Their server vectors are sums over clients; a mean that weighs channels does not give
    them.
    """
    methods = {
        "inco.algorithms.scaffold.Scaffold": "scaffold",
        "inco.algorithms.feddyn.FedDyn": "feddyn",
    }
    method = methods.get(settings["algorithm"]["_target_"])
    if method and settings["split"].get("weighting") == "width":
        yield (
            f"split.weighting=width with algorithm={method}: its server vectors are sums over"
            " clients alike; use split.weighting=clients"
        )


Rules = tuple[tuple[tuple[str, ...], Callable[[Settings], Iterable[str]]], ...]
SPLIT_RULES: Rules = (
    (("split", "model"), _split_fits_model),
    (("split", "model"), _blocks_to_leave_out),
    (("", "split", "capacity"), _clients_for_each_level),
    (("split", "model"), _exits_fit_model),
    (("split",), _widths_rise),
    (("split",), _windows_that_move),
    (("split",), _nested_levels),
    (("split",), _images_to_measure),
    (("split", "algorithm"), _sums_of_weighted_widths),
)
