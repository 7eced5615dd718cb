"""Flat vectors: a layout and its views are one memory, a slice moves what its index says on both of
its paths, and a bound model with one flat optimizer takes the steps that torch takes tensor by
tensor (plain SGD: bit for bit).
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inco.clients.local import SGD, Adam, Local, reset
from inco.fast.bound import BoundModel
from inco.flat import _MOST_RUNS, Entry, Layout, Slice, layouts_of

SHAPES = {"a.weight": (3, 2), "conv": (4, 3, 2, 5), "scalar": (), "bias": (7,), "tokens": (1, 4, 3)}


def tensors() -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=stream) for name, shape in SHAPES.items()}


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(100 + step)
    return torch.randn(6, 2, 4, 4, generator=stream), torch.randint(3, (6,), generator=stream)


def bind(net: nn.Module) -> BoundModel:
    return BoundModel(net, *layouts_of(net))


def whole(layout: Layout) -> Slice:
    return Slice(layout, torch.arange(layout.numel))


def test_pack_and_views_are_inverse_and_share_memory() -> None:
    given = tensors()
    layout = Layout.of(given)
    flat = layout.pack(given)
    assert flat.dtype == torch.float32 and flat.shape == (layout.numel,) == (
        sum(t.numel() for t in given.values()),
    )
    for name, view in layout.views(flat).items():
        assert view.shape == given[name].shape and torch.equal(view, given[name])
        before = flat.clone()
        view.add_(1)
        entry = layout.entries[name]
        touched = (flat != before).nonzero().flatten().tolist()
        assert touched == list(range(entry.offset, entry.offset + entry.numel)), (
            "a tensor's elements are one contiguous piece"
        )
    other = torch.full((layout.numel,), float("nan"))
    assert layout.pack(given, other) is other and not other.isnan().any()


def test_convolutions_are_stored_channels_last() -> None:
    given = tensors()
    layout = Layout.of(given)
    flat = layout.pack(given)
    view = layout.view(flat, "conv")
    _, into, height, width = SHAPES["conv"]
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert view.stride() == (into * height * width, 1, width * into, into)
    start = layout.entries["conv"].offset
    assert flat[start + ((2 * height + 1) * width + 3) * into + 1] == given["conv"][2, 1, 1, 3]
    assert layout.view(flat, "a.weight").is_contiguous()


def test_axes_and_counters_are_recorded() -> None:
    layout = Layout.of({"w": torch.zeros(2, 3), "n": torch.tensor(4)}, {"w": ("out", "in")})
    assert layout.entries["w"] == Entry("w", (2, 3), 0, ("out", "in")) and layout.entries[
        "n"
    ] == Entry("n", (), 6, (), True)
    with pytest.raises(ValueError, match=r"axes of w .*\(2, 3\).*one group a dimension"):
        Layout.of({"w": torch.zeros(2, 3)}, {"w": ("out",)})
    flat = torch.tensor([1.5, -1.5, 0.5, 0, 0, 0, 6.999])
    layout.truncate_counters(flat)
    assert flat.tolist() == [1.5, -1.5, 0.5, 0, 0, 0, 6.0]


def test_concat_puts_whole_layouts_one_after_the_other() -> None:
    a, b = Layout.of(tensors()), Layout.of({"n": torch.tensor(3), "bias": torch.zeros(5)})
    both = Layout.concat({"0-small": a, "1-large": b})
    flat = torch.arange(both.numel, dtype=torch.float32)
    assert list(both.entries) == [f"0-small/{n}" for n in a.entries] + ["1-large/n", "1-large/bias"]
    for prefix, part, start in (("0-small", a, 0), ("1-large", b, a.numel)):
        for name in part.entries:
            assert torch.equal(
                both.view(flat, f"{prefix}/{name}"),
                part.view(flat[start : start + part.numel], name),
            )
    assert both.entries["1-large/n"].integer and not both.entries["1-large/bias"].integer


def scattered(size: int) -> Tensor:
    """Half of the coordinates in no order: almost every one is a run of its own."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(2))[: size // 2]


INDICES: dict[str, Tensor] = {
    "all": torch.arange(300),
    "pieces": torch.cat(
        [torch.arange(50, 90), torch.arange(0, 10), torch.tensor([299, 17]), torch.arange(91, 200)]
    ),
    "every other": torch.arange(0, 300, 2),
    "one": torch.tensor([123]),
    "none": torch.empty(0, dtype=torch.int64),
    "scattered": scattered(4 * _MOST_RUNS["cpu"]),
}


@pytest.mark.parametrize("case", INDICES)
def test_slice_is_plain_indexing(case: str) -> None:
    index = INDICES[case]
    size = int(index.max()) + 5 if len(index) else 7
    held = Slice(Layout([Entry("x", (len(index),), 0)]), index)
    assert (held.runs is None) == (case == "scattered"), "both paths are under test"
    vector = torch.randn(size, generator=torch.Generator().manual_seed(3))
    out = torch.full((len(index),), float("nan"))
    assert held.gather(vector, out) is out and torch.equal(out, vector[index])
    sums, expected = vector.double(), vector.double()
    held.add(sums, 2.5)
    expected[index] += 2.5
    assert torch.equal(sums, expected)


def test_a_gpu_copies_few_runs_and_else_by_index() -> None:
    """Each run would be a launch there."""
    few = Slice(Layout([Entry("x", (128,), 0)]), torch.arange(256).view(-1, 4)[:, :2].flatten())
    many = Slice(Layout([Entry("x", (130,), 0)]), torch.arange(260).view(-1, 4)[:, :2].flatten())
    for held, on_gpu in ((few, 64), (many, None)):
        runs = held.runs_on(torch.device("cuda"))
        assert (None if runs is None else len(runs)) == on_gpu
        assert held.runs_on(torch.device("cpu")) == held.runs


def test_runs_and_index_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same coordinates on both paths; the run path is the one a sorted copy of them takes."""
    index = torch.cat([torch.arange(1000), 1001 + 3 * torch.arange(_MOST_RUNS["cpu"] + 1)])
    by_index = Slice(Layout([Entry("x", (len(index),), 0)]), index)
    by_runs = Slice(by_index.layout, index)
    runs = tuple((s, k, 1) for k, s in enumerate(index.tolist()))
    monkeypatch.setitem(_MOST_RUNS, "cpu", len(index))
    by_runs.runs = ((0, 0, 1000), *runs[1000:])
    assert by_runs.runs_on(index.device) is by_runs.runs
    assert by_index.runs is None
    vector = torch.randn(int(index.max()) + 1)
    out = [torch.empty(len(index)) for _ in range(2)]
    assert torch.equal(by_index.gather(vector, out[0]), by_runs.gather(vector, out[1]))
    twice = vector.clone()
    by_index.add(vector, 0.1)
    by_runs.add(twice, 0.1)
    assert torch.equal(vector, twice)


def test_by_name_takes_whole_tensors_in_the_order_of_the_part() -> None:
    full = Layout.of({"x": torch.zeros(2, 2), "y": torch.zeros(3), "z": torch.zeros(1)})
    part = Layout.of({"z": torch.zeros(1), "x": torch.zeros(2, 2)})
    assert Slice.by_name(full, part).index.tolist() == [7, 0, 1, 2, 3]
    assert Slice.by_name(Layout.concat({"p": full, "q": full}), part, "q/").index.tolist() == [
        15,
        8,
        9,
        10,
        11,
    ]
    with pytest.raises(
        ValueError, match=r"sub-model's w has shape \(1,\), the global model's is missing"
    ):
        Slice.by_name(full, Layout.of({"w": torch.zeros(1)}))
    with pytest.raises(
        ValueError, match=r"sub-model's x has shape \(4,\), the global model's is of shape \(2, 2\)"
    ):
        Slice.by_name(full, Layout.of({"x": torch.zeros(4)}))


def test_bound_model_is_views_and_stays_views() -> None:
    reference = small_net()
    bound = bind(small_net())
    for step in range(2):
        for net in (reference, bound.model):
            F.cross_entropy(net(batch(step)[0]), batch(step)[1]).backward()
    for name, p in bound.model.named_parameters():
        assert (
            p.data_ptr() == bound.params.view(bound.w, name).data_ptr()
            and p.stride() == bound.params.view(bound.w, name).stride()
        )
        assert (
            p.grad is not None and p.grad.data_ptr() == bound.params.view(bound.g, name).data_ptr()
        )
        assert torch.allclose(p.grad, reference.get_parameter(name).grad, atol=1e-6), (
            "gradients accumulate in the flat vector"
        )
    for name in ("1.running_mean", "1.running_var"):
        assert (
            bound.model.get_buffer(name).data_ptr() == bound.buffers.view(bound.b, name).data_ptr()
        )
        assert torch.allclose(
            bound.buffers.view(bound.b, name), reference.get_buffer(name), atol=1e-6
        )
    bound.g.zero_()
    assert all(not p.grad.any() for p in bound.model.parameters() if p.grad is not None)


def test_counters_are_loaded_and_read() -> None:
    bound = bind(small_net())
    start = bound.b.clone()
    bound.buffers.view(start, "1.num_batches_tracked").fill_(7)
    bound.load(bound.w.clone(), start, whole(bound.params), whole(bound.buffers))
    counter = bound.model.get_buffer("1.num_batches_tracked")
    assert counter.dtype == torch.int64 and counter.item() == 7
    bound.model(batch(0)[0])
    assert bound.buffers.view(bound.b, "1.num_batches_tracked").item() == 7, (
        "the flat copy is old until it is read"
    )
    assert bound.buffers.view(bound.read_buffers(), "1.num_batches_tracked").item() == 8


def test_load_fills_the_model_from_a_slice() -> None:
    bound = bind(small_net())
    n, total = bound.params.numel, 2 * bound.params.numel + 3
    server, stats = torch.randn(total), torch.rand(bound.buffers.numel + 4)
    params = Slice(bound.params, torch.arange(n) + n // 2)
    buffers = Slice(bound.buffers, torch.arange(bound.buffers.numel) + 4)
    bound.load(server, stats, params, buffers)
    assert torch.equal(bound.w, server[params.index]) and torch.equal(bound.b, stats[4:])
    assert torch.equal(
        bound.model.get_parameter("4.bias"), bound.params.view(server[params.index], "4.bias")
    )


def new_flat(bound: BoundModel, local: Local) -> torch.optim.Optimizer:
    flat = nn.Parameter(bound.w)
    flat.grad = bound.g
    return local.optimizer(flat)


RULES: dict[str, tuple[Local, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "sgd": (SGD(1, 6, 0.1), lambda ps: torch.optim.SGD(ps, lr=0.1, fused=True)),
    "momentum": (
        SGD(1, 6, 0.05, momentum=0.9, weight_decay=1e-2),
        lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    ),
    "adam": (Adam(1, 6, 1e-2), lambda ps: torch.optim.Adam(ps, lr=1e-2, fused=True)),
    "adam, decayed": (
        Adam(1, 6, 1e-2, betas=(0.8, 0.99), weight_decay=1e-2),
        lambda ps: torch.optim.Adam(ps, lr=1e-2, betas=(0.8, 0.99), weight_decay=1e-2, fused=True),
    ),
}


def step_once(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    for p in net.parameters():
        if p.grad is not None:
            p.grad.zero_()
    F.cross_entropy(net(batch(step)[0]), batch(step)[1]).backward()
    optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_flat_steps_equal_torch_tensor_by_tensor(rule: str) -> None:
    """Over 20 steps of a network with BatchNorm, convolutions channels-last on both sides. Plain
    SGD: bitwise. The others: to 5e-7, because torch's fused CPU kernels round the few elements at
    the end of a vector differently, and a flat vector has one end.
    """
    local, make = RULES[rule]
    reference, bound = small_net().to(memory_format=torch.channels_last), bind(small_net())
    theirs, ours = make(list(reference.parameters())), new_flat(bound, local)
    for step in range(20):
        step_once(reference, theirs, step)
        step_once(bound.model, ours, step)
    for name, tensor in reference.state_dict().items():
        ours_now = bound.model.state_dict()[name]

        assert (
            torch.equal(ours_now, tensor)
            if rule == "sgd"
            else torch.allclose(ours_now, tensor, rtol=0, atol=5e-7)
        ), name
    assert not torch.equal(bound.w, bind(small_net()).w)


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_flat_steps_equal_the_textbook(rule: str) -> None:
    """To 1e-12 in float64: the update rules written out, on a quadratic (gradient = w - target)."""
    local = RULES[rule][0]
    target, flat = (
        torch.arange(5, dtype=torch.float64),
        nn.Parameter(torch.zeros(5, dtype=torch.float64)),
    )
    optimizer, w, m, v = (
        local.optimizer(flat),
        torch.zeros(5, dtype=torch.float64),
        torch.zeros(5).double(),
        torch.zeros(5).double(),
    )
    for t in range(1, 21):
        flat.grad = flat.detach() - target
        optimizer.step()
        g = w - target
        if rule == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = w - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        else:
            m = 0.9 * m + g + 1e-2 * w
            w = w - 0.05 * m
    assert torch.allclose(flat.detach(), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_reset_makes_a_used_optimizer_new_bitwise(rule: str) -> None:
    """Even after a client that left infinities and NaN in its moments."""
    local = RULES[rule][0]
    used, fresh = bind(small_net()), bind(small_net())
    old, new = new_flat(used, local), new_flat(fresh, local)
    for step in range(3):
        step_once(used.model, old, step)
    used.g[0], used.g[1] = float("nan"), float("inf")
    old.step()
    used.load(fresh.w.clone(), fresh.b.clone(), whole(used.params), whole(used.buffers))
    reset(old)
    for step in range(5):
        step_once(used.model, old, 10 + step)
        step_once(fresh.model, new, 10 + step)
    assert torch.equal(used.w, fresh.w) and torch.equal(used.read_buffers(), fresh.read_buffers())
