"""A pretended GPU: ordinary CPU tensors that answer, and are checked, as on CUDA.

What lies on the GPU is known by its memory. Each operation, of backward passes too, is looked at:
what CUDA would refuse raises, what costs time there is counted by the line of the package that asks
for it. All is computed on the CPU: this says nothing of CUDA's numbers, cuDNN, streams or NCCL.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from gpu.tape import DeviceError, Tape, allocated, fresh, line, on_gpu, place

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
H2D = "to the GPU"
D2H = "to the host"

# What refuses deterministic mode in torch 2.15, read in the disassembly of its CUDA library.
NONDETERMINISTIC = re.compile(
    r"(_adaptive_avg_pool[23]d|adaptive_max_pool2d|avg_pool3d|fractional_max_pool[23]d|_ctc_loss"
    r"|max_pool3d_with_indices|(reflection|replication)_pad[123]d|grid_sampler_[23]d"
    r"|upsample_(linear1d|trilinear3d)|(upsample_|_upsample_)(bilinear|bicubic)2d(_aa)?)_backward"
    r"|max_unpool[23]d|nll_loss2d_forward|histc|put_?|scatter_reduce|index_reduce_?|median|kthvalue"
)
# Operations whose result the host has to read, and how often.
SYNCS = {"_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "equal": 1}
SYNCS |= {"_unique2": 2, "unique_consecutive": 2, "bincount": 2, "repeat_interleave": 1}
# Kernels of an operation, where it is not one.
KERNELS = {"convolution_backward": 2, "_local_scalar_dense": 0, "empty": 0, "empty_like": 0}
KERNELS |= {"empty_strided": 0, "new_empty": 0, "new_empty_strided": 0}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Beside pointwise operations, these take a number that lies on the host.
TAKES_NUMBERS = {"fill_", "masked_fill", "masked_fill_", "where", "lerp", "_fused_adam_"}

_AUTOCAST = torch.autocast


@dataclass
class Counts:
    """What was asked of the GPU, by line of the package. `syncs`: how often the host waited, by
    line and reason; `transfers`, `bytes`: by line and direction.
    """

    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    transfers: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)


class Generator(torch.Generator):
    """A generator that knows its device. Operations see it without its class: hence the table."""

    homes: ClassVar[dict[int, torch.device]] = {}

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls, device="cpu")
        cls.homes[made._cdata] = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.homes[self._cdata]


class Pretend:
    """`with Pretend() as gpu:` there is one GPU, `CUDA`. `problems`: what it would have refused, by
    line; if `strict` the first one raises. `counts` may be replaced, to count what follows apart.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.problems: Counter[str] = Counter()
        self.counts = Counts()
        self.tape: Tape | None = None
        self.placing: bool | None = None  # what `device=` of the call under way says, if anything
        self._last: Tape | None = None  # the graph that was replayed last
        self._late: list[tuple[Tensor, Tensor]] = []  # copies to the host that nobody waited for
        self._entered = ExitStack()

    def __enter__(self) -> Pretend:
        cuda = dict.fromkeys(("empty_cache", "set_device"), lambda *device: None)
        cuda |= dict.fromkeys(("memory_allocated", "max_memory_allocated"), allocated)
        cuda["is_available"] = lambda: True
        cuda["device_count"] = lambda: 1
        cuda["default_generators"] = (Generator(CUDA),)
        cuda["synchronize"] = lambda device=None: self.sync("synchronize")
        waits = dict.fromkeys(("query", "synchronize"), lambda: self.sync("event") is None)
        cuda["Event"] = lambda **options: mock.Mock(**waits)
        for name, value in cuda.items():
            self._entered.enter_context(mock.patch.object(torch.cuda, name, value))
        self._entered.enter_context(mock.patch("torch.Generator", Generator))
        self._entered.enter_context(mock.patch("torch.autocast", _autocast))
        self._entered.enter_context(_Functions(self))
        self._entered.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def problem(self, what: str) -> None:
        """Note what CUDA would refuse."""
        self.problems[f"{line()}: {what}"] += 1
        if self.strict:
            raise DeviceError(f"{line()}: {what}")

    def sync(self, why: str, times: int = 1) -> None:
        """Let the host wait for the GPU."""
        if self.tape is not None:
            self.problem(f"{why}: the host waits for the GPU while a graph is captured")
        self.counts.syncs[line(), why] += times
        with _disable_current_modes():
            while self._late:
                host, value = self._late.pop()
                host.copy_(value)

    def late(self, host: Tensor) -> Tensor:
        """Let a copy to the host hold nothing before the host has waited for the GPU."""
        with _disable_current_modes():
            self._late.append((host, host.clone()))
            return host.fill_(float("nan") if host.is_floating_point() else 85)

    def transfer(self, t: Tensor, direction: str, blocking: bool = True) -> None:
        """Copy a tensor's bytes between the host and the GPU."""
        if t.numel():
            if blocking or self.tape is not None:
                self.sync(f"copy {direction}")
            self.counts.transfers[line(), direction] += 1
            self.counts.bytes[line(), direction] += t.numel() * t.element_size()

    def _replayed(self, tape: Tape) -> None:
        if self._last is not None and self._last is not tape:
            self._last.spoil()
        self._last = tape
        self.counts.launches[line()] += 1

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work as a CUDA graph, after warming up, and return its replay."""
        for _ in range(3):
            work()
        self.tape = tape = Tape(self._replayed)
        try:
            work()
        finally:
            self.tape = None
        tape.close()
        return tape.replay

    def operate(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Check one operation, do it, and note where its result lies."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(t.is_meta for t in tensors):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        strangers = [t for t in tensors if not on_gpu(t)]
        reads = len(strangers) < len(tensors)
        here = reads if self.placing is None else self.placing
        if reads and self.placing is not False:
            self._check(func, name, args, strangers)
        generator = kwargs.get("generator")
        if generator is not None:
            if (Generator.homes.get(generator._cdata, CPU) != CPU) != here:
                self.problem(f"{name}: draws from a generator of another device")
            if self.tape is not None:
                self.problem(f"{name}: draws from a generator that the graph does not know")
        if self.tape is not None and (reads or here):
            return self.tape.record(func, name, args, kwargs, tensors)
        result = func(*args, **kwargs)
        made = fresh(result, tensors)
        tree_map(place, made if here else [])
        changed = made or tensors[: func._schema.is_mutable]
        crosses = name == "copy_" and strangers  # a transfer is no kernel
        if crosses and reads and not on_gpu(args[0]) and any(args[2:]):
            self.late(args[0])
        if (reads or here) and not crosses and any(t.numel() for t in changed):
            self.counts.launches[line()] += KERNELS.get(name, 1)
        return result

    def _check(self, func: Any, name: str, args: Any, strangers: Sequence[Tensor]) -> None:
        """Hold an operation on the GPU against what CUDA does; `strangers`: its host tensors."""
        weighted = name == "bincount" and len(args) > 1 and args[1] is not None
        if NONDETERMINISTIC.fullmatch(name) or weighted:
            self.problem(f"{name} does not have a deterministic implementation")
        if name in SYNCS:
            self.sync(name, SYNCS[name])
        if name in INDEXED:
            self._check_index(name, *args[:3])
        elif name == "copy_" and strangers:
            self.transfer(args[1], H2D if on_gpu(args[0]) else D2H, not any(args[2:]))
        elif any(t.dim() for t in strangers):
            shapes = [tuple(t.shape) for t in strangers]
            self.problem(f"{name}: expected all tensors on one device; on the host: {shapes}")
        elif strangers and not (torch.Tag.pointwise in func.tags or name in TAKES_NUMBERS):
            self.problem(f"{name}: expected all tensors on one device; a number is on the host")
        elif strangers and self.tape is not None:
            self.problem(f"{name}: the value of a number on the host would stay in the graph")

    def _check_index(self, name: str, indexed: Tensor, index: Any, *values: Any) -> None:
        used = [i for i in index if i is not None]
        if not on_gpu(indexed):
            self.problem(f"{name}: an index on the GPU of a tensor on the host")
        if any(isinstance(v, Tensor) and v.dim() and not on_gpu(v) for v in values):
            self.problem(f"{name}: values on the host for a tensor on the GPU")
        for i in used:
            if not on_gpu(i):
                self.transfer(i, H2D)
        # one number for a whole mask is written without counting the mask
        filled = name == "index_put_" and len(used) == 1 and values[0].numel() == 1
        if any(i.dtype in (torch.bool, torch.uint8) for i in used) and not filled:
            self.sync("nonzero of a mask")


def _autocast(kind: str, *args: Any, **kwargs: Any) -> torch.autocast:
    return _AUTOCAST("cpu" if kind == "cuda" else kind, *args, **kwargs)


class _Operations(TorchDispatchMode):
    """Shows the GPU every operation as it is done."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self.gpu.operate(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Answers what tensors say of their device, and moves them where they are told to go."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        asked = func.__self__ if getattr(func, "__name__", "") == "__get__" else None
        if asked is Tensor.device and on_gpu(args[0]):
            return CUDA
        if asked in (Tensor.is_cuda, Tensor.is_cpu):
            return on_gpu(args[0]) == (asked is Tensor.is_cuda)
        if func in (Tensor.numpy, Tensor.__array__) and on_gpu(args[0]):
            self.gpu.problem("numpy() of a tensor on the GPU; use Tensor.cpu() first")
        if func is Tensor.tolist and args[0].dim() and on_gpu(args[0]):
            self.gpu.transfer(args[0], D2H)
        if func in (Tensor.cpu, Tensor.cuda):
            return self._to(args[0], CPU if func is Tensor.cpu else CUDA, **kwargs)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.pin_memory:
            return args[0].clone()
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            return self._made(func, args, kwargs, torch.device(kwargs.pop("device")))
        return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
        """Make a tensor on a device."""
        if func is torch.as_tensor and isinstance(args[0], Tensor):
            return self._to(args[0], device, kwargs.get("dtype"))
        before = self.gpu.placing
        self.gpu.placing = device.type == "cuda"
        try:
            made = func(*args, device=CPU, **kwargs)
        finally:
            self.gpu.placing = before
        if device.type == "cuda" and func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            self.gpu.transfer(place(made), H2D)  # made of numbers, where no operation is seen
        return made

    def _to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        args = (kwargs.pop("other"), *args) if "other" in kwargs else args
        if args and isinstance(args[0], Tensor):
            args = (CUDA if on_gpu(args[0]) else args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
        rest = {"dtype": dtype or x.dtype, **({"memory_format": form} if form else {})}
        if x.is_meta or (device is not None and device.type == "meta"):
            return x.to(device=device or x.device, copy=copy, **rest)
        to_gpu = on_gpu(x) if device is None else device.type == "cuda"
        if to_gpu == on_gpu(x):
            return x.to(copy=copy, **rest)
        x = x.to(rest["dtype"]) if to_gpu else x  # CUDA converts on the side that is read
        self.gpu.transfer(x, H2D if to_gpu else D2H, not non_blocking)
        with _disable_current_modes():
            moved = x.clone()
        if non_blocking and not to_gpu:
            moved = self.gpu.late(moved)
        return (place(moved) if to_gpu else moved).to(**rest)
