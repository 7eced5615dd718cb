"""InCo on tensors and on dicts of tensors: published numbers, an independent reference, and what
must not happen.
"""

import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import inco
from inco.server.cross_layer import mix, mixing

ROOT = Path(__file__).parents[2]
EXAMPLES = {  # T1 of the reference sheet: g_k, g_0
    "A": ((0.01, 0.02), (0.03, 0.04)),
    "B": ((-0.02, 0.005), (0.03, 0.04)),
    "C": ((0.06, 0.08), (0.003, 0.004)),
}


def golden(name: str, part: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as arrays:
        return {
            k.removeprefix(part + "/"): torch.from_numpy(arrays[k])
            for k in arrays.files
            if k.startswith(part + "/")
        }


def mixed(case: str, **options) -> tuple[list[float], float, float]:
    g_k, g_0 = (torch.tensor(values, dtype=torch.float64) for values in EXAMPLES[case])
    result = mix(g_k, g_0, mixing(**options))
    return result.update.tolist(), result.theta.item(), result.beta_positive.item()


@pytest.mark.parametrize(
    ("name", "changed"), [("inco_resnet_stage_seed7", 16), ("inco_vit_layer_seed7", 12)]
)
def test_published_code(name: str, changed: int) -> None:
    before, expected = golden(name, "mean"), golden(name, "inco")
    kept = {k: v.clone() for k, v in before.items()}
    after = inco.cross_layer_gradients(before)
    assert list(after) == list(before) and set(after) == set(expected)
    for key, value in after.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7)
        assert torch.equal(before[key], kept[key])
    assert sum(after[key] is not before[key] for key in after) == changed


@pytest.mark.parametrize(
    ("case", "theta", "expected"),
    [
        ("A", 0.4399824, (0.02573148, 0.04509548)),
        ("B", 0.1599936, (-0.03086399, 0.01308255)),
        ("C", 5.0, (0.1, 0.1)),
    ],
)
def test_t1_official(case: str, theta: float, expected: tuple[float, float]) -> None:
    update, used, positive = mixed(case)
    assert update == pytest.approx(expected, abs=5e-9)
    assert used == pytest.approx(theta, abs=5e-8)
    assert positive == (0 if case == "B" else 100)


def test_t1_without_eps_and_without_clip() -> None:
    assert mixed("A", eps=0)[0] == pytest.approx((0.02573195, 0.04509616), abs=5e-9)
    assert mixed("C", clip=math.inf)[0] == pytest.approx((0.18899682, 0.25199576), abs=5e-9)
    assert mixed("C", theta_max=math.inf)[1] == pytest.approx(20, rel=0.01)


def test_t1k_kernel() -> None:
    g_0, g_k = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    g_0[0, 0, 1, 1], g_k[0, 0, 0, 0], g_k[0, 0, 1, 1] = 0.02, 0.01, -0.01
    update, theta, positive = mix(g_k, g_0)
    expected = torch.zeros(1, 1, 3, 3)
    expected[0, 0, 0, 0], expected[0, 0, 1, 1] = 0.01207098, -0.00353762
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-8)
    assert theta.item() == pytest.approx(0.49987503, abs=1e-7) and positive == 0
    torch.testing.assert_close(mix(g_k, torch.zeros_like(g_0)).update, g_k / 2, rtol=0, atol=1e-6)
    assert torch.equal(mix(torch.zeros_like(g_k), g_0).update, torch.zeros_like(g_k))


@pytest.mark.parametrize(
    ("case", "rule", "theta", "expected"),
    [
        ("A", "theorem", 0.0, (0.01, 0.02)),
        ("B", "theorem", -0.16, (-0.0152, 0.0114)),
        ("A", "algorithm1", 0.44, (0.00662873, 0.01962520)),
        ("B", "algorithm1", -0.16, (-0.03086402, 0.01308278)),
        ("C", "algorithm1", 20.0, (-0.5985, -0.798)),
    ],
)
def test_t2_paper_rules(case: str, rule: str, theta: float, expected: tuple[float, float]) -> None:
    update, used, _ = mixed(case, rule=rule)
    assert update == pytest.approx(expected, abs=5e-9)
    assert used == pytest.approx(theta, abs=1e-12)


def test_theorem_meets_its_constraint() -> None:
    update = torch.tensor(mixed("B", rule="theorem")[0], dtype=torch.float64)
    assert abs(update @ torch.tensor(EXAMPLES["B"][1], dtype=torch.float64)) < 1e-17


@pytest.mark.parametrize(
    ("case", "normalize", "optimize", "expected"),
    [
        ("A", False, True, (0.0232, 0.0376)),
        ("A", True, False, (0.03788854, 0.06130495)),
        ("A", False, False, (0.04, 0.06)),
        ("B", False, True, (-0.0152, 0.0114)),
        ("B", True, False, (-0.0130689, 0.0368096)),
        ("B", False, False, (0.01, 0.045)),
    ],
)
def test_t2a_ablations(
    case: str, normalize: bool, optimize: bool, expected: tuple[float, float]
) -> None:
    official, theta, _ = mixed(case, normalize=normalize, optimize=optimize, eps=0)
    assert official == pytest.approx(expected, abs=5e-8 if normalize and case == "B" else 5e-9)
    paper = mixed(case, rule="algorithm1", normalize=normalize, optimize=optimize)[0]
    if not optimize:
        # theta = 1 adds, under either rule
        assert theta == 1 and paper == pytest.approx(official, abs=1e-15)
    elif case == "B":
        assert paper == pytest.approx(official, abs=1e-15)  # beta < 0: the two rules agree
    else:
        assert paper == pytest.approx((0.01 - 0.44 * 0.03, 0.02 - 0.44 * 0.04), abs=1e-15)


def by_hand(
    g_k: list[float], g_0: list[float], rule: str, normalize: bool, optimize: bool
) -> list[float]:
    """The formulas of the sheet on one kernel, in plain Python."""
    n_k, n_0 = math.hypot(*g_k), math.hypot(*g_0)
    alpha, beta = n_0**2, sum(a * b for a, b in zip(g_k, g_0, strict=True))
    eps = 1e-7 if rule == "official" else 0.0
    if rule == "theorem":
        return [a if beta >= 0 else a - beta / alpha * b for a, b in zip(g_k, g_0, strict=True)]
    theta = (
        min(abs(beta) / (alpha + eps), 5) if rule == "official" else -beta / alpha if alpha else 0.0
    )
    theta = theta if optimize else 1.0
    if normalize:
        g_k, g_0 = ([x / (n + eps) if n else 0.0 for x in g] for g, n in ((g_k, n_k), (g_0, n_0)))
    half = (n_k + n_0) / 2 if normalize else 1.0
    result = [(a + theta * b) * half for a, b in zip(g_k, g_0, strict=True)]
    return [min(max(x, -0.1), 0.1) for x in result] if rule == "official" else result


def pair_of(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    g_k, g_0 = (0.05 * torch.randn(*shape, generator=made, dtype=dtype) for _ in range(2))
    g_k[0], g_0[:, 1], g_k[2, 2], g_0[2, 2] = 0, 0, 0, 0  # zero targets, zero references, both
    g_k[3], g_k[4] = 9 * g_0[3], -3 * g_0[4]
    return g_k, g_0


VARIANTS = [("official", n, o) for n in (True, False) for o in (True, False)]
VARIANTS += [("algorithm1", n, o) for n in (True, False) for o in (True, False)] + [
    ("theorem", True, True)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rule", "normalize", "optimize"), VARIANTS)
def test_every_kernel_by_hand(
    rule: str, normalize: bool, optimize: bool, dtype: torch.dtype
) -> None:
    g_k, g_0 = pair_of(6, 5, 3, 3, dtype=dtype)
    options = mixing(rule, normalize, optimize, granularity="kernel")
    # kernels that cancel keep the rounding of their terms
    tolerance = 5e-7 if dtype == torch.float32 else 1e-14
    update = mix(g_k, g_0, options).update
    assert update.dtype == dtype
    for o in range(6):
        for c in range(5):
            expected = by_hand(
                g_k[o, c].flatten().tolist(),
                g_0[o, c].flatten().tolist(),
                rule,
                normalize,
                optimize,
            )
            assert update[o, c].flatten().tolist() == pytest.approx(
                expected, rel=2e-5, abs=tolerance
            )


@pytest.mark.parametrize(("rule", "normalize", "optimize"), VARIANTS)
@pytest.mark.parametrize("shape", [(7,), (6, 5), (6, 5, 3, 3)])
def test_whole_layer_by_hand(
    rule: str, normalize: bool, optimize: bool, shape: tuple[int, ...]
) -> None:
    g_k, g_0 = (t.flatten()[: math.prod(shape)].reshape(shape) for t in pair_of(6, 5, 3, 3))
    update = mix(g_k, g_0, mixing(rule, normalize, optimize, granularity="layer")).update
    expected = by_hand(g_k.flatten().tolist(), g_0.flatten().tolist(), rule, normalize, optimize)
    assert update.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_granularity_of_the_rules() -> None:
    g_k, g_0 = pair_of(6, 5, 3, 3)
    for rule, own in (("official", "kernel"), ("algorithm1", "layer"), ("theorem", "layer")):
        assert torch.equal(
            mix(g_k, g_0, mixing(rule)).update, mix(g_k, g_0, mixing(rule, granularity=own)).update
        )
    kernels = mix(g_k, g_0, mixing(granularity="kernel"))
    assert not torch.allclose(kernels.update, mix(g_k, g_0, mixing(granularity="layer")).update)
    beta = (g_k * g_0).sum((2, 3))
    theta = (beta.abs() / ((g_0 * g_0).sum((2, 3)) + 1e-7)).clamp(0, 5)
    assert kernels.theta.item() == pytest.approx(theta.mean().item(), rel=1e-12)
    assert kernels.beta_positive.item() == pytest.approx(
        100 * (beta > 0).double().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("granularity", ["kernel", "layer"])
def test_strides_and_blocks_do_not_matter(granularity: str) -> None:
    g_k, g_0 = pair_of(96, 300, 3, 3)  # more than one block of rows
    options = mixing(granularity=granularity, clip=math.inf)
    expected = mix(g_k, g_0, options).update
    a = g_k.contiguous(memory_format=torch.channels_last)
    for b in (g_0.contiguous(memory_format=torch.channels_last), g_0):
        update = mix(a, b, options).update
        assert update.stride() == a.stride()
        torch.testing.assert_close(update, expected, rtol=1e-12, atol=1e-15)
    spaced = torch.zeros(96, 600, 3, 3, dtype=g_k.dtype)[:, ::2]
    spaced.copy_(g_k)
    torch.testing.assert_close(mix(spaced, g_0, options).update, expected, rtol=1e-12, atol=1e-15)
    mix(spaced, g_0, options, out=spaced)
    torch.testing.assert_close(spaced, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("granularity", ["kernel", "layer"])
def test_threads_change_no_bit(granularity: str) -> None:
    g_k, g_0 = (
        t.contiguous(memory_format=torch.channels_last)
        for t in pair_of(128, 200, 3, 3, dtype=torch.float32)
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mix(g_k, g_0, mixing(granularity=granularity)).update)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_half_precision_is_computed_in_float32() -> None:
    g_k, g_0 = (t.to(torch.bfloat16) for t in pair_of(6, 5, 3, 3))
    update = mix(g_k, g_0).update
    assert update.dtype == torch.bfloat16
    assert torch.equal(update, mix(g_k.float(), g_0.float()).update.bfloat16())


def test_not_a_number_is_not_hidden() -> None:
    g_k, g_0 = pair_of(6, 5, 3, 3)
    g_k[5, 4, 0, 0] = math.nan
    assert mix(g_k, g_0).update[5, 4].isnan().all() and not mix(g_k, g_0).update[:5].isnan().any()


def test_tensors_that_are_no_pair() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[3\] differ"):
        mix(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="only floating-point"):
        mix(torch.ones(2, dtype=torch.int64), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "oficial"},
            r"rule=oficial: no such rule; use one of official, algorithm1, theorem",
        ),
        ({"granularity": "row"}, r"granularity=row: .* auto, kernel, layer"),
        ({"theta_max": -1}, r"theta_max=-1: .* inf for no bound"),
        ({"theta_max": math.nan}, r"theta_max=nan"),
        ({"clip": 0}, r"clip=0: .* inf for no clip"),
        ({"eps": -1e-7}, r"eps=-1e-07"),
        ({"rule": "theorem", "normalize": False}, r"normalize=false with rule=theorem"),
        ({"rule": "theorem", "optimize": False}, r"optimize=false with rule=theorem"),
        ({"optimize": False, "theta_max": 2}, r"theta_max=2 with optimize=false"),
        ({"clip": -1, "rule": "x"}, r"(?s)rule=x.*clip=-1"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inco.cross_layer_gradients({}, **options)


def test_the_package_imports_no_torch() -> None:
    code = (
        "import sys, inco; assert 'cross_layer_pairs' in dir(inco); assert 'torch' not in"
        " sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "state_dict_inco.py"), run_name="__main__")
    assert "InCo changed 4 tensors" in capsys.readouterr().out
