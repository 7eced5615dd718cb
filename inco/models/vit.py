"""Vision transformers on timm's blocks, cut to their first L blocks.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; Steiner et al., How to train your
ViT?, TMLR 2022 (weights). The layer split is that of Chan et al., ICLR 2024, Appendix H.4.
Parameter names are timm's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from timm.layers import Mlp
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from inco.errors import ConfigError, DataError
from inco.flat import Axes
from inco.models import base
from inco.models.base import PLAIN, Exits, Group, Variant, head_axes, linear_axes, scaler
from inco.settings import COUNT, WEIGHTS, ProjectionHead, above, checked
from inco.types import Output, Pair


class ExitHead(nn.Module):
    """An early classifier of [m, tokens, dim]: the norm of the class token, and a linear layer."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Output:
        features = self.norm(x[:, 0])
        return Output(self.fc(features), features)


class ViT(VisionTransformer):
    """timm's VisionTransformer that also returns what the classifier sees: [m, C, S, S] -> Output.

    Its first weights are drawn for the whole width, and again for blocks that `variant` narrows.
    """

    def __init__(self, family: ViTFamily, depth: int, variant: Variant) -> None:
        super().__init__(
            img_size=family.image_size,
            patch_size=family.patch,
            in_chans=family.channels,
            num_classes=family.num_classes,
            embed_dim=family.dim,
            depth=depth,
            num_heads=family.heads,
            mlp_ratio=family.mlp_ratio,
        )
        # one patch: any stride is the same, and oneDNN is wrong with its own
        if family.image_size == family.patch:
            self.patch_embed.proj.stride = (1, 1)
        head = family.projection_head
        self.projection, seen = base.projection(family.dim, head, family.dim)
        if head != "none":
            self.head = nn.Linear(seen, family.num_classes)
        exits, ends = variant.heads(depth, family.blocks["blocks"])
        heads = [ExitHead(family.dim, family.num_classes) for _ in exits]
        self.exits = Exits(heads, [f"blocks.{after - 1}" for after in exits], ends)
        if ends:
            del self.norm, self.head, self.projection
        if variant.sizes:
            self._narrow(family, variant)

    def _narrow(self, family: ViTFamily, variant: Variant) -> None:
        """Give blocks fewer heads and a narrower MLP."""
        sizes = variant.sizes_of(family.groups())
        head_dim = family.dim // family.heads
        for b, block in enumerate(self.blocks):
            heads = sizes[f"blocks.{b}.heads"] // head_dim
            block.attn = Attention(family.dim, heads, attn_head_dim=head_dim, qkv_bias=True)
            block.mlp = Mlp(family.dim, sizes[f"blocks.{b}.mlp"])
            # timm's places for a norm of what is narrowed
            block.attn.norm = scaler(variant)
            block.mlp.norm = scaler(variant)

    def forward(self, x: Tensor) -> Output:  # type: ignore[override]  # what all models here return
        return self.exits.run(self._embed(x), self._blocks(), self._head)

    def steps(self) -> dict[str, Callable[[Tensor], Tensor | Output]]:
        """The forward pass as named steps, which relatives share; none with early heads."""
        if self.exits:
            return {}
        return {"embed": self._embed, **self._blocks(), "head": self._head}

    def _embed(self, x: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def _blocks(self) -> dict[str, nn.Module]:
        return {f"blocks.{b}": block for b, block in enumerate(self.blocks)}

    def _head(self, x: Tensor) -> Output:
        features = self.projection(self.forward_head(self.norm(x), pre_logits=True))
        return Output(self.head(features), features)


class ViTFamily:
    """A global ViT and its relatives with fewer blocks.

    `shape`: [C, S, S] of an image; `num_classes`. Raises ConfigError where `patch` does not divide
    `image_size` or `heads` does not divide `dim`, and where weights are asked for that are not
    published.
    """

    recipe = "vit"
    after = ("norm", "projection", "head")
    min_batch = 1

    @checked("model")
    def __init__(
        self,
        depth: Annotated[int, COUNT, "blocks of the global model"],
        dim: Annotated[int, COUNT, "channels of a token; a multiple of heads"],
        heads: Annotated[int, COUNT, "attention heads of a block"],
        patch: Annotated[int, COUNT, "side of a patch, pixels; it divides image_size"],
        image_size: Annotated[int, COUNT, "side in pixels that images are resized to"],
        mlp_ratio: Annotated[float, above(0), "features inside a block's MLP, in dim"] = 4.0,
        pretrained: Annotated[
            bool | str,
            WEIGHTS,
            "true: timm's weights (the paper's); false: fresh ones; or the path of a .safetensors"
            " or .pt file",
        ] = False,
        timm_name: Annotated[
            str | None, "timm's name of the weights that pretrained=true fetches"
        ] = None,
        projection_head: ProjectionHead = "none",
        *,
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        if image_size % patch:
            raise ConfigError(
                f"model.image_size={image_size} with model.patch={patch}: a ViT cuts the image into"
                f" whole patches; use model.image_size={max(image_size // patch, 1) * patch} or a"
                f" patch that divides {image_size}"
            )
        if dim % heads:
            raise ConfigError(
                f"model.dim={dim} with model.heads={heads}: each head takes dim/heads channels; use"
                " a divisor of dim"
            )
        published = timm_name is not None
        base.check_weights(pretrained, published, "ViT", "false or a path to a file")
        self.blocks = {"blocks": depth}
        self.dim = dim
        self.heads = heads
        self.patch = patch
        self.image_size = image_size
        self.mlp_ratio = mlp_ratio
        self.pretrained = pretrained
        self.timm_name = timm_name
        self.channels = shape[0]
        self.num_classes = num_classes
        self.projection_head = projection_head
        self.name = self.level_name([depth])

    def build(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> nn.Module:
        (depth,) = base.check_keep(self.name, self.blocks, keep)
        return ViT(self, depth, variant)

    def groups(self, variant: Variant = PLAIN) -> dict[str, Group]:
        """Each block's attention heads, which stay whole, and the inside of its MLP.

        The residual stream is never cut.
        """
        out = {}
        for b in range(self.blocks["blocks"]):
            heads = f"blocks.{b}.heads"
            out[heads] = Group(self.dim, unit=self.dim // self.heads)
            out[f"blocks.{b}.qkv"] = Group(3 * self.dim, of=heads)
            out[f"blocks.{b}.mlp"] = Group(int(self.dim * self.mlp_ratio))
        return out

    def level_name(self, keep: Sequence[int]) -> str:
        return f"vit{keep[0]}"

    def depth_levels(self) -> list[list[int]]:
        """The first 8, 9, 10, 11 and 12 of 12 blocks (Appendix H.4)."""
        if self.blocks["blocks"] != 12:
            raise ConfigError(
                "split.levels=null: the paper gives sizes for 12 blocks,"
                f" model.depth={self.blocks['blocks']}; list them"
            )
        return [[depth] for depth in range(8, 13)]

    def axes(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> dict[str, Axes]:
        """Name channel groups: `embed` is the residual stream; a block has `qkv` (3 x heads x head
        size), `heads` and `mlp`.
        """
        (depth,) = base.check_keep(self.name, self.blocks, keep)
        out: dict[str, Axes] = {
            "cls_token": (None, None, "embed"),
            "pos_embed": (None, None, "embed"),
            "patch_embed.proj.weight": ("embed", "image", None, None),
            "patch_embed.proj.bias": ("embed",),
        }
        for b in range(depth):
            block = f"blocks.{b}"
            out |= _norm_axes(f"{block}.norm1")
            out |= linear_axes(f"{block}.attn.qkv", f"{block}.qkv", "embed")
            out |= linear_axes(f"{block}.attn.proj", "embed", f"{block}.heads")
            out |= _norm_axes(f"{block}.norm2")
            out |= linear_axes(f"{block}.mlp.fc1", f"{block}.mlp", "embed")
            out |= linear_axes(f"{block}.mlp.fc2", "embed", f"{block}.mlp")
        exits, ends = variant.heads(depth, self.blocks["blocks"])
        for j in range(len(exits)):
            out |= _norm_axes(f"exits.{j}.norm") | head_axes(f"exits.{j}.fc", "embed", "none")
        if ends:
            return out
        return out | _norm_axes("norm") | head_axes("head", "embed", self.projection_head)

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap per block: its output, [m, tokens, dim]."""
        (depth,) = base.check_keep(self.name, self.blocks, keep)
        return {f"blocks.{b}": f"blocks.{b}" for b in range(depth)}

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Official: norm2 from norm1 of the same block.

        Paper: every block's tensor from the first block's of the same name.
        """
        depth = self.blocks["blocks"]
        if style == "official":
            return tuple(
                Pair(f"blocks.{b}.norm2.weight", f"blocks.{b}.norm1.weight") for b in range(depth)
            )
        names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        return tuple(
            Pair(f"blocks.{b}.{n}.weight", f"blocks.0.{n}.weight")
            for b in range(1, depth)
            for n in names
        )

    def load_pretrained(self, model: nn.Module) -> None:
        if self.pretrained is True:
            base.copy_matching(model, _published(str(self.timm_name)), "true", head="head.")
        elif self.pretrained:
            path = str(self.pretrained)
            base.copy_matching(model, base.read_weights(path), path, head="head.")


def _published(name: str) -> dict[str, Tensor]:
    """Return timm's pretrained weights: from its cache, or from the hub where it answers."""
    import timm
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    try:
        # its own retries would take a minute
        constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm raises whatever its download library raises
        raise DataError(
            f"model.pretrained=true: timm has no copy of {name} here and cannot fetch it from"
            f" {constants.ENDPOINT}; fetch it where there is a network and give"
            " model.pretrained=PATH to its .safetensors, or train from scratch with"
            " model.pretrained=false"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers(endpoint: str) -> bool:
    where = urlsplit(endpoint)
    try:
        socket.create_connection((where.hostname or "", where.port or 443), timeout=5.0).close()
    except OSError:
        return False
    return True


def _norm_axes(name: str) -> dict[str, Axes]:
    return {f"{name}.weight": ("embed",), f"{name}.bias": ("embed",)}
