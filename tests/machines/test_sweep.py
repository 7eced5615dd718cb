"""The short form of the sweep over instruction sets, which bites on every machine, and whether it
can find what it looks for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from inco.doctor.products import FARTHEST, Beside
from machines.sweep import Case, checked, distance, levels, look, resnet, usable

# torch says so of any use of its switch for oneDNN
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
AVX2 = pytest.mark.skipif("AVX2" not in usable(), reason="the processor has no AVX2")


@AVX2
@pytest.mark.full
def test_models_are_right_without_avx512() -> None:
    found = look("AVX2", short=True)
    assert found.tried > 100
    assert not found.died
    assert found.fine(), found.farthest


@AVX2
def test_the_heap_checker_sees_the_fault_that_is_known() -> None:
    """If this fails, oneDNN has been mended: raise torch's lower bound, and let
    inco/clients/faults.py and models/pointwise.py go.
    """
    code = (
        "import torch, torch.nn.functional as F; torch.set_num_threads(1)\n"
        "x = torch.randn(32, 4, 32, 32).contiguous(memory_format=torch.channels_last)\n"
        "w = torch.randn(8, 4, 1, 1, requires_grad=True)\n"
        "F.conv2d(x, w, None, {stride}).sum().backward()"
    )
    ended = {
        s: subprocess.run(
            [sys.executable, "-c", code.format(stride=s)], env=checked("AVX2"), capture_output=True
        )
        for s in (1, 2)
    }
    assert ended[1].returncode == 0
    assert ended[2].returncode < 0


def test_a_wrong_product_is_seen() -> None:
    a = torch.randn(16, 16)
    with Beside() as rounded:
        a.bfloat16() @ a.bfloat16()
    with Beside() as exact:
        a @ a
    assert exact.farthest < FARTHEST["fp32"] < rounded.farthest < FARTHEST["bf16"]


@pytest.mark.parametrize("split", ["width", "stage"])
def test_products_on_this_machine(split: str) -> None:
    case = Case(resnet("[2,4,4,8]"), split, (1, 8, 8), 8, "fp32")
    for sub in levels(case):
        assert distance(sub, case) < FARTHEST["fp32"]
