"""Uploads on their way: noise of each tensor's own size from one stream, clipping to a norm, and
senders' vectors left alone.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY, settings_of, simulate
from torch import Tensor

from inco.clients.trainer import Trainer
from inco.clients.uplink import Clean, Clip, Noise, Uplink
from inco.config.targets import build
from inco.config.validate import validate
from inco.errors import ConfigError, NumericError
from inco.flat import Layout

CONF = Path(__file__).parents[2] / "conf" / "uplink"
LAYOUT = Layout.of(
    {
        "conv.weight": torch.zeros(32, 16, 3, 3),
        "bn.weight": torch.zeros(32),
        "still": torch.zeros(500),
        "flat": torch.zeros(64),
        "scale": torch.zeros(1),
        "fc.weight": torch.zeros(50, 200),
    }
)
SPREAD = {
    "conv.weight": 1e-3,
    "bn.weight": 1.0,
    "still": 0.0,
    "flat": 0.0,
    "scale": 0.0,
    "fc.weight": 20.0,
}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def upload(seed: int = 1) -> Tensor:
    flat = torch.randn(LAYOUT.numel, generator=stream(seed))
    for name, view in LAYOUT.views(flat).items():
        view.mul_(SPREAD[name])
    LAYOUT.view(flat, "fc.weight").add_(100.0)  # a mean is no spread
    LAYOUT.view(flat, "flat").fill_(0.3)
    LAYOUT.view(flat, "scale").fill_(0.7)
    return flat


@pytest.mark.parametrize("scale", [0.5, 1.0, 5.0])
def test_noise_is_each_tensors_own_size(scale: float) -> None:
    delta = upload()
    noise = Noise(scale)({"delta": delta}, LAYOUT, stream())["delta"].double() - delta.double()
    for name in ("conv.weight", "bn.weight", "fc.weight"):
        part, own = LAYOUT.view(noise, name), LAYOUT.view(delta, name).double().std(correction=0)
        sure = 4 / math.sqrt(2 * part.numel())  # four standard errors of a standard deviation
        assert part.std() / (scale * own) == pytest.approx(1, abs=sure)
        assert abs(part.mean() / (scale * own)) < 4 / math.sqrt(part.numel())


def test_noise_is_gaussian() -> None:
    delta = upload()
    noise = LAYOUT.view(
        Noise(1.0)({"delta": delta}, LAYOUT, stream())["delta"] - delta, "fc.weight"
    )
    z = ((noise - noise.mean()) / noise.std()).flatten()
    assert (z.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.02)
    assert (z**4).mean() == pytest.approx(3, abs=0.2)


def test_tensors_without_spread_stay() -> None:
    delta = upload()
    new = Noise(5.0)({"delta": delta}, LAYOUT, stream())["delta"]
    for name in ("still", "scale"):
        assert torch.equal(LAYOUT.view(new, name), LAYOUT.view(delta, name))
    torch.testing.assert_close(
        LAYOUT.view(new, "flat"), LAYOUT.view(delta, "flat"), rtol=1e-5, atol=0
    )
    assert not Noise(5.0)({"delta": torch.zeros(LAYOUT.numel)}, LAYOUT, stream())["delta"].any()


def test_noise_comes_from_the_generator_alone() -> None:
    vectors = {"delta": upload(1), "control": upload(2)}
    torch.manual_seed(1)
    first = Noise(1.0)(vectors, LAYOUT, stream(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = Noise(1.0)(vectors, LAYOUT, stream(7)), Noise(1.0)(vectors, LAYOUT, stream(8))
    assert torch.equal(torch.get_rng_state(), state), "the global stream is not touched"
    for name in vectors:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    noises = [(first[name] - vectors[name]).narrow(0, 0, 4608) for name in vectors]
    assert abs(torch.corrcoef(torch.stack(noises))[0, 1]) < 0.06, (
        "every upload has draws of its own"
    )


def test_draws_follow_the_layout() -> None:
    """What a tensor is given does not depend on the tensors after it."""
    delta, short = upload(), Layout(list(LAYOUT.entries.values())[:3])
    whole = Noise(1.0)({"delta": delta}, LAYOUT, stream(7))["delta"]
    part = Noise(1.0)({"delta": delta[: short.numel].clone()}, short, stream(7))["delta"]
    assert torch.equal(whole[: short.numel], part)


@pytest.mark.parametrize("uplink", [Clean(), Noise(1.0), Clip(0.5)])
def test_senders_keep_what_they_sent(uplink: Uplink) -> None:
    vectors = {"delta": upload(1), "control": upload(2)}
    kept = {name: v.clone() for name, v in vectors.items()}
    new = uplink(vectors, LAYOUT, stream())
    assert list(new) == list(vectors)
    assert all(torch.equal(vectors[name], kept[name]) for name in kept)
    for name in ("delta", "control"):
        assert (
            new[name].shape == kept[name].shape
            and new[name].dtype == torch.float32
            and new[name].is_contiguous()
        )
        assert (new[name].data_ptr() == vectors[name].data_ptr()) == isinstance(uplink, Clean)


def test_no_noise_and_a_wide_norm_are_clean_bitwise() -> None:
    vectors = {"delta": upload(1)}
    for uplink in (Noise(0.0), Clip(1e9)):
        new = uplink(vectors, LAYOUT, stream())
        assert all(torch.equal(new[name], v) for name, v in vectors.items())


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 50.0])
def test_clip(max_norm: float) -> None:
    vectors = {"delta": upload(1), "control": upload(2) * 1e-3, "zero": torch.zeros(LAYOUT.numel)}
    new = Clip(max_norm)(vectors, LAYOUT, stream())
    for name, vector in vectors.items():
        before, after = vector.double().norm().item(), new[name].double().norm().item()
        assert after == pytest.approx(min(before, max_norm), rel=1e-6)
        # the direction stays
        torch.testing.assert_close(new[name] * before, vector * after, rtol=1e-5, atol=0)
    assert torch.equal(new["zero"], vectors["zero"])


def test_a_model_of_one_parameter() -> None:
    layout = Layout.of({"w": torch.zeros(1)})
    assert Clip(1.0)({"delta": torch.tensor([3.0])}, layout, stream())["delta"].tolist() == [1.0]


def test_clip_of_a_diverged_client() -> None:
    """Squares above float32's range still have a norm; what is not finite stays so, for the server
    to name the client.
    """
    huge = torch.full((LAYOUT.numel,), 1e25)
    assert Clip(2.0)({"delta": huge}, LAYOUT, stream())[
        "delta"
    ].double().norm().item() == pytest.approx(2.0, rel=1e-5)
    for wrong in (math.nan, math.inf):
        broken = upload()
        broken[5] = wrong
        for uplink in (Clip(1.0), Noise(1.0)):
            assert not uplink({"delta": broken}, LAYOUT, stream())["delta"].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Noise, {"scale": v}) for v in (-1, math.nan, math.inf, True, "1")]
    + [(Clip, {"max_norm": v}) for v in (0, -1.0, math.nan, math.inf, "1")],
)
def test_errors(kind: type, settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    rule = "at least 0" if kind is Noise else "above 0"
    with pytest.raises(ConfigError, match=rf"^uplink.{name}={value}: must be {rule}$"):
        kind(**settings)


@pytest.mark.parametrize(("name", "kind"), [("clean", Clean), ("noise", Noise), ("clip", Clip)])
def test_yaml_holds_the_defaults(name: str, kind: type) -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    made = build("uplink", node)
    assert type(made) is kind and vars(made) == vars(kind()) == {
        k: v for k, v in node.items() if k != "_target_"
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_gpu(where: str) -> None:
    """The draws are those of the generator's own device, wherever the vectors are."""
    delta = upload()
    made = [
        Noise(1.0)({"delta": delta.cuda()}, LAYOUT, torch.Generator(where).manual_seed(7))["delta"]
        for _ in range(2)
    ]
    assert torch.equal(*made) and made[0].is_cuda
    if where == "cpu":
        torch.testing.assert_close(
            made[0].cpu(), Noise(1.0)({"delta": delta}, LAYOUT, stream(7))["delta"]
        )
    assert Clip(1.0)({"delta": delta.cuda()}, LAYOUT, stream())[
        "delta"
    ].norm().item() == pytest.approx(1.0, rel=1e-5)


class Diverging(Clean):
    """An uplink through which the second client of a round arrives broken."""

    def __init__(self, nonfinite: str = "skip") -> None:
        super().__init__(nonfinite)
        self.seen = 0

    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        self.seen += 1
        return {name: v * float("nan") if self.seen % 5 == 2 else v for name, v in vectors.items()}


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "moon", "feddyn", "fednova"])
def test_a_client_that_diverges_is_left_out_and_keeps_its_own_vectors(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *TINY,
        f"algorithm={algorithm}",
        "local=sgd",
        "local.momentum=0",
        "uplink.nonfinite=skip",
        "transform=none",
    ]
    kept: list[Any] = []
    monkeypatch.setattr("inco.clients.uplink.Clean", Diverging)
    monkeypatch.setattr("inco.clients.trainer.Trainer.put_back", _noting(kept))
    state, rows, run = simulate(*words, rounds=3)
    assert [row["client/nonfinite"] for row in rows] == [1, 1, 1] and torch.isfinite(state.w).all()
    assert all(math.isfinite(row["train/loss"]) and row["update/norm"] > 0 for row in rows)
    store = run.trainer.store
    for task, sub, before in kept:
        after = (
            store.load(replace(task, round=task.round + 1), sub)
            if run.simulator.algorithm.stateful
            else before
        )
        for name, value in before.items():
            assert torch.equal(after[name], value) and torch.isfinite(value.float()).all()


def _noting(kept: list[Any]) -> Any:
    put_back = Trainer.put_back

    def noting(self: Trainer, task: Any, sub: Any) -> None:
        kept.append((task, sub, dict(self._before)))
        put_back(self, task, sub)

    return noting


def test_by_default_it_stops_the_run_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inco.clients.uplink.Clean", lambda nonfinite: Diverging(nonfinite))
    with pytest.raises(
        NumericError, match=r"round 1, client \d: its upload 'delta' has .*uplink.nonfinite=skip"
    ):
        simulate(*TINY)


def test_left_out_or_not_is_a_setting_that_is_checked() -> None:
    assert validate(settings_of("uplink.nonfinite=ignore")) == [
        "uplink.nonfinite=ignore: must be one of stop, skip"
    ]
    for option in ("clean", "noise", "clip"):
        assert settings_of(f"uplink={option}")["uplink"]["nonfinite"] == "stop"
