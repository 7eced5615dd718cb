"""Cross-layer pairs: found by name, the user's own, absent, wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import inco
from inco.server.cross_layer import mix
from inco.types import Pair


def golden(name: str, part: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as arrays:
        return {
            k.removeprefix(part + "/"): torch.from_numpy(arrays[k])
            for k in arrays.files
            if k.startswith(part + "/")
        }


def shapes_of(**blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a BasicBlock ResNet with the given blocks a stage, layer1=2 and so on."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (8, 3, 7, 7)}
    for stage, count in blocks.items():
        width = 8 * 2 ** (int(stage[-1]) - 1)
        for b in range(count):
            into = width if b or width == 8 else width // 2
            found[f"{stage}.{b}.conv1.weight"] = (width, into, 3, 3)
            found[f"{stage}.{b}.bn1.weight"] = (width,)
            found[f"{stage}.{b}.conv2.weight"] = (width, width, 3, 3)
    return found


def test_resnet_pairs() -> None:
    shapes = shapes_of(layer1=2, layer2=3)
    official = [("layer1.1.conv1", "layer1.0.conv2"), ("layer1.1.conv2", "layer1.0.conv2")]
    official += [(f"layer2.{b}.conv{i}", "layer2.0.conv2") for b in (1, 2) for i in (1, 2)]
    named = [Pair(f"{t}.weight", f"{r}.weight") for t, r in official]
    assert list(inco.cross_layer_pairs(shapes)) == named
    assert (
        list(inco.cross_layer_pairs({k: torch.empty(s) for k, s in reversed(shapes.items())}))[-2:]
        == named[:2]
    )
    paper = [
        (f"layer1.{b}.conv{i}", "layer1.0.conv1") for b, i in ((0, 2), (1, 1), (1, 2))
    ] + official[2:]
    assert list(inco.cross_layer_pairs(shapes, "paper")) == [
        Pair(f"{t}.weight", f"{r}.weight") for t, r in paper
    ]


def test_blocks_are_numbers_not_text() -> None:
    pairs = inco.cross_layer_pairs(
        {f"layer1.{b}.conv{i}.weight": (4, 4, 3, 3) for b in range(12) for i in (1, 2)}, "paper"
    )
    assert len(pairs) == 23 and {p.reference for p in pairs} == {"layer1.0.conv1.weight"}
    assert pairs[-1].target == "layer1.11.conv2.weight"


@pytest.mark.parametrize("style", ["official", "paper"])
def test_bottleneck_and_prefixes(style: str) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        net = models.resnet50()
    pairs = inco.cross_layer_pairs(dict(net.named_parameters()), style)
    convs = {p.target.split(".", 2)[2] for p in pairs}
    assert convs == (
        {"conv2.weight"}
        if style == "official"
        else {"conv1.weight", "conv2.weight", "conv3.weight"}
    )
    small, large = shapes_of(layer1=1), shapes_of(layer1=2)
    both = {f"resnet10/{k}": s for k, s in small.items()} | {
        f"resnet14/module.{k}": s for k, s in large.items()
    }
    prefixed = inco.cross_layer_pairs(both, style)
    assert len(prefixed) == (2 if style == "official" else 4)
    assert all(
        p.target.rpartition("layer")[0] == p.reference.rpartition("layer")[0] for p in prefixed
    )


def test_vit_pairs() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"blocks.{b}.{role}.weight": (4,) for b in range(3) for role in ("norm1", "norm2")
    }
    shapes |= {f"blocks.{b}.attn.qkv.weight": (12, 4) for b in range(3)} | {
        "norm.weight": (4,),
        "blocks.0.norm1.bias": (4,),
    }
    assert inco.cross_layer_pairs(shapes) == tuple(
        Pair(f"blocks.{b}.norm2.weight", f"blocks.{b}.norm1.weight") for b in range(3)
    )
    paper = inco.cross_layer_pairs(shapes, "paper")
    roles = ("attn.qkv", "norm1", "norm2")
    assert paper == tuple(
        Pair(f"blocks.{b}.{r}.weight", f"blocks.0.{r}.weight") for b in (1, 2) for r in roles
    )


@pytest.mark.parametrize("style", ["official", "paper"])
def test_names_that_match_nothing(style: str) -> None:
    update = {
        "fc.weight": torch.ones(4, 4),
        "mylayer1.0.conv2.weight": torch.ones(4, 4, 3, 3),
        "head": torch.ones(()),
    }
    assert inco.cross_layer_pairs(update, style) == ()
    assert inco.cross_layer_gradients(update, style) == update


def test_own_pairs() -> None:
    update = {
        "a": torch.tensor([0.03, 0.04]),
        "b": torch.tensor([0.01, 0.02]),
        "steps": torch.tensor(3),
    }
    expected = mix(update["b"], update["a"]).update
    for pairs in ([("b", "a")], [["b", "a"]], {"b": "a"}, (Pair("b", "a"),), iter([("b", "a")])):
        result = inco.cross_layer_gradients(update, pairs)
        assert (
            torch.equal(result["b"], expected)
            and result["a"] is update["a"]
            and result["steps"] is update["steps"]
        )
    assert inco.cross_layer_pairs(update, [("b", "a")]) == (Pair("b", "a"),)


def test_every_read_is_of_the_untransformed_update() -> None:
    update = {
        name: torch.tensor(values)
        for name, values in (("a", (0.03, 0.04)), ("b", (0.01, 0.02)), ("c", (-0.02, 0.01)))
    }
    chain = inco.cross_layer_gradients(update, {"b": "a", "c": "b", "a": "c"})
    for target, reference in (("b", "a"), ("c", "b"), ("a", "c")):
        assert torch.equal(chain[target], mix(update[target], update[reference]).update)


def test_a_tensor_that_nobody_sent() -> None:
    update = golden("inco_resnet_stage_seed7", "mean")
    for missing in ("layer1.2.conv1.weight", "layer3.0.conv2.weight"):
        update.pop(missing)
    after = inco.cross_layer_gradients(update)
    assert "layer1.2.conv1.weight" not in after
    assert after["layer3.1.conv1.weight"] is update["layer3.1.conv1.weight"]
    assert after["layer1.2.conv2.weight"] is not update["layer1.2.conv2.weight"]
    own = [
        ("layer1.2.conv1.weight", "layer1.0.conv2.weight"),
        ("layer1.2.conv2.weight", "layer1.0.conv2.weight"),
    ]
    after = inco.cross_layer_gradients(update, own)
    assert [k for k in after if after[k] is not update[k]] == ["layer1.2.conv2.weight"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("papers", r"pairs=papers: no such style; use official, paper"),
        (
            [("layer1.1.conv1", "layer1.0.conv2.weight")],
            r"layer1\.1\.conv1 <- .* no tensor is called .*\.1\.conv1\.weight\b",
        ),
        (
            [("layer1.1.conv1.weight", "conv1.weight")],
            r"\[8, 8, 3, 3\] and \[8, 3, 7, 7\] differ, .*; of shape .* are layer1\.0",
        ),
        ([("conv1.weight", "conv1.weight")], r"its own reference"),
        ([("layer1.1.conv1.weight",)], r"is not a pair; give \[target, reference\]"),
        (["ab"], r"'ab' is not a pair"),
        ([("a", "b"), ("a", "c")], r"a is the target of two pairs"),
        ([("a", "b"), ("c", "conv1.weight")], r"(?s)called a.*called b.*called c"),
    ],
)
def test_wrong_pairs(pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inco.cross_layer_pairs(shapes_of(layer1=2), pairs)


def test_wrong_calls() -> None:
    update = {name: torch.zeros(shape) for name, shape in shapes_of(layer1=2).items()}
    # not one of the names is known
    with pytest.raises(ValueError, match=r"did you mean .*layer1\.1\.conv1\.weight"):
        inco.cross_layer_gradients(update, [("layer1.1.conv1", "layer1.0.conv2")])
    with pytest.raises(TypeError, match=r"update\['w'\] is a ndarray, .* torch.from_numpy"):
        inco.cross_layer_gradients({"w": np.zeros(3)})  # type: ignore[dict-item]
    with pytest.raises(
        ValueError, match=r"b <- a: dtypes torch.int64, torch.float32: only floating-point"
    ):
        inco.cross_layer_gradients({"a": torch.ones(2), "b": torch.ones(2).long()}, {"b": "a"})
    with pytest.raises(AttributeError, match="no attribute 'cross_layers'"):
        _ = inco.cross_layers
