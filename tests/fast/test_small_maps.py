"""3x3 convolutions on small maps, as products of taps, against torch's own convolution in
float64.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inco.fast.small_maps import Conv3x3, _ByTaps


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 1), (4, 4), (5, 3)])
def test_output_and_gradients_are_the_convolutions(size: tuple[int, int], stride: int) -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, generator=stream, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 4, 3, 3, generator=stream, dtype=torch.float64, requires_grad=True)
    ours, theirs = _ByTaps.apply(x, w, stride), F.conv2d(x, w, None, stride, 1)
    torch.testing.assert_close(ours, theirs)
    dy = torch.randn(theirs.shape, generator=stream, dtype=torch.float64)
    for mine, own in zip(
        torch.autograd.grad(ours, (x, w), dy), torch.autograd.grad(theirs, (x, w), dy), strict=True
    ):
        torch.testing.assert_close(mine, own)
    assert torch.autograd.gradcheck(lambda x, w: _ByTaps.apply(x, w, stride), (x, w))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_module_takes_it_where_it_pays_and_nowhere_else(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, ...]] = []
    apply = _ByTaps.apply
    monkeypatch.setattr(
        _ByTaps, "apply", lambda x, w, s: (taken.append(tuple(x.shape)), apply(x, w, s))[1]
    )
    for into, out, side, wanted in (
        (256, 256, 2, True),
        (256, 512, 1, True),
        (128, 256, 2, False),
        (256, 256, 4, False),
    ):
        taken.clear()
        conv, x = Conv3x3(into, out), torch.randn(2, into, side, side)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = conv(x)
            plain = F.conv2d(x, conv.weight, None, 1, 1)
        assert bool(taken) == wanted and y.dtype == plain.dtype
        torch.testing.assert_close(
            y,
            plain,
            rtol=2e-2 if precision == "bf16" else 1e-4,
            atol=2e-2 if precision == "bf16" else 1e-4,
        )
        y.float().sum().backward()
        assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


def test_weights_that_live_channels_last_get_their_gradient_in_place() -> None:
    conv = Conv3x3(256, 256)
    flat, grad = torch.zeros(2, conv.weight.numel())
    view = flat.view(256, 3, 3, 256).permute(0, 3, 1, 2)
    view.copy_(conv.weight.data)
    conv.weight.data, conv.weight.grad = view, grad.view(256, 3, 3, 256).permute(0, 3, 1, 2)
    conv(torch.randn(2, 256, 1, 1)).sum().backward()
    assert conv.weight.grad.data_ptr() == grad.data_ptr() and grad.any()
    centre = conv.weight.grad[:, :, 1, 1]
    assert centre.any() and torch.equal(conv.weight.grad.sum((2, 3)), centre), (
        "one tap meets the pixel"
    )
