"""Settings: every YAML composes, validates and says what its class takes; wrong ones are told all
at once.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import ROOT, settings_of

from inco.config import signatures
from inco.config.naming import FREE, digest, identity
from inco.config.targets import build, locate, target_problem
from inco.config.validate import GROUPS, OVERLAYS
from inco.config.validate import ROOT as ROOT_SETTINGS
from inco.errors import ConfigError
from inco.parts import problems as problems_of
from inco.run.front import check

OPTIONS = [(path.parent.name, path.stem) for path in sorted((ROOT / "conf").glob("*/*.yaml"))]
# what other groups give a class
WIRING = {
    "family",
    "shape",
    "num_classes",
    "num_clients",
    "num_levels",
    "seed",
}
A_FILE = ROOT / "run.py"  # validation looks no further than whether it is there
NEEDS = {
    "fixed": [f"partition.path={A_FILE}"],
    **{
        f"table2_{model}_official{moon}": [f"partition.path={A_FILE}"]
        for model in ("resnet", "vit")
        for moon in ("", "_moon")
    },
    "file": [f"capacity.path={Path(__file__).with_name('levels.json')}"],
    "layer": ["model=vit_tiny"],
    "scaffold": ["local=sgd", "local.momentum=0"],
    "fednova": ["local=sgd"],
    "cnn": ["split=none"],
}


def composed(group: str, option: str) -> dict:
    return settings_of(
        f"{group}={option}",
        *NEEDS.get(option, []),
        *(["split=layer"] if option.startswith("vit") else []),
    )


@pytest.mark.parametrize(
    "words", ["model.pretrained", "partition=fixed partition.path", "capacity=file capacity.path"]
)
def test_names_that_no_file_system_takes_are_no_files(words: str) -> None:
    problems = problems_of(settings_of(*f"{words}={'x' * 5000}".split()))
    assert len(problems) == 1 and "no such file" in problems[0]


@pytest.mark.full
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_valid(group: str, option: str) -> None:
    assert group in (*GROUPS, *OVERLAYS), "a folder of conf/ that no group reads"
    assert problems_of(composed(group, option)) == []


@pytest.mark.parametrize("algorithm", ["scaffold", "fednova"])
def test_the_papers_experiments_run_every_method_with_adam(algorithm: str) -> None:
    assert (
        settings_of("experiment=table2_resnet", f"algorithm={algorithm}")["algorithm"]["allow_adam"]
        is True
    )
    assert problems_of(settings_of("experiment=table2_resnet", f"algorithm={algorithm}")) == []
    assert settings_of(f"algorithm={algorithm}")["algorithm"]["allow_adam"] is False
    assert problems_of(settings_of(f"algorithm={algorithm}")) != []


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g in GROUPS])
def test_yaml_schema_and_constructor_agree(group: str, option: str) -> None:
    """Every key is an argument that the class takes, every argument has a key, and the schema
    checks each.
    """
    node = composed(group, option)[group]
    keys = set(node) - {"_target_"}
    assert set(signatures.settings_of(node["_target_"]) or {}) == keys
    if group == "engine":  # settings of the launcher, not of an object
        return
    parameters = inspect.signature(locate(group, node["_target_"])).parameters
    own = {
        name for name, p in parameters.items() if not (p.kind == p.KEYWORD_ONLY and name in WIRING)
    }
    assert own == keys


TARGETS = {
    str(node._target_)
    for group in GROUPS
    for node in map(OmegaConf.load, sorted((ROOT / "conf" / group).glob("*.yaml")))
    if "_target_" in node
}


@pytest.mark.parametrize("target", sorted({*TARGETS, ROOT_SETTINGS}))
def test_every_setting_has_a_meaning_and_a_rule_or_a_type_that_says_it_all(target: str) -> None:
    settings = signatures.settings_of(target)
    assert settings is not None
    for name, setting in settings.items():
        free = setting.type in (str, bool, str | None, list[str])
        assert free or setting.rule, f"{target}.{name} accepts anything"
        assert setting.meaning, f"{target}.{name}: say what it means"


def test_top_level_keys_are_the_contract() -> None:
    names = {
        "seed",
        "rounds",
        "num_clients",
        "sample_ratio",
        "eval_every",
        "checkpoint_every",
        "name",
        "fresh",
        "scale",
    }
    assert set(signatures.settings_of(ROOT_SETTINGS) or {}) == names
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert folders == {*GROUPS, *OVERLAYS}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("local.lr=-1", ["local.lr=-1", "above 0"]),
        ("local.lr=nan", ["local.lr=nan", "above 0"]),
        ("local.lr=fast", ["local.lr=fast", "Float"]),
        ("rounds=0", ["rounds=0", "at least 1"]),
        ("sample_ratio=0", ["sample_ratio=0", "(0, 1]"]),
        ("sample_ratio=1.5", ["sample_ratio=1.5"]),
        ("seed=-1", ["seed=-1", "at least 0"]),
        ("partition.alpha=0", ["partition.alpha=0", "above 0"]),
        ("transform.rule=offical", ["transform.rule=offical", "official, algorithm1, theorem"]),
        ("transform.clip=0", ["transform.clip=0"]),
        ("algorithm.weighting=samples", ["algorithm.weighting=samples", "examples, uniform"]),
        ("local.betas=[0.9]", ["local.betas", "a list of 2"]),
        ("local.betas=[0.9,1.0]", ["local.betas", "[0, 1)"]),
        ("engine.workers=0", ["engine.workers=0", "auto"]),
        ("engine.device=tpu", ["engine.device=tpu", "auto, cpu, cuda"]),
        ("model.pretrained=true", ["model.pretrained=true", "vit_small"]),
        ("model.widths=[8,8]", ["model.widths", "one of each a stage"]),
        ("split.levels=[[1,1,1,1],[4,4,4,4]]", ["split.levels", "[4, 4, 4, 4]", "[3, 3, 3, 3]"]),
        ("split.levels=[8,9]", ["split.levels", "split=stage"]),
        ("num_clients=3", ["num_clients=3", "5 sizes"]),
        ("local.batch_size=1", ["local.batch_size=1", "BatchNorm"]),
        ("algorithm._target_=os.system", ["algorithm._target_=os.system", "INCO_ALLOW_TARGETS"]),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(override: str, words: list[str]) -> None:
    problems = problems_of(settings_of(override))
    assert len(problems) == 1
    assert all(word in problems[0] for word in words), problems


def test_vit_that_cannot_cut_the_image() -> None:
    (problem,) = problems_of(settings_of("model=vit_tiny", "split=layer", "model.image_size=30"))
    assert "model.image_size=30" in problem and "model.image_size=24" in problem


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(
        settings_of("local.lr=-1", "rounds=0", "partition.alpha=-3", "transform.rule=x")
    )
    assert len(problems) == 4


def test_a_typo_inside_a_yaml_is_found() -> None:
    settings = settings_of()
    settings["local"]["learning_rate"] = settings["local"].pop("lr")
    problems = problems_of(settings)
    assert any("local.learning_rate: no such setting" in p for p in problems) and any(
        "local.lr: missing" in p for p in problems
    )


def test_missing_value_is_asked_for() -> None:
    (problem,) = problems_of(settings_of("partition=fixed"))
    assert problem.startswith("partition.path") and "give it a value" in problem


def test_only_allowed_targets_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("os.system", "builtins.eval", "torch.load", "incognito.X", ""):
        assert target_problem("algorithm", target)
        with pytest.raises(ConfigError):
            build("algorithm", {"_target_": target})
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "collections, mine.")
    assert build("algorithm", {"_target_": "collections.Counter", "a": 2}) == {"a": 2}
    assert target_problem("algorithm", "mine.Own") is None


def test_digest_names_what_a_result_depends_on() -> None:
    base = settings_of()
    for free in (
        "rounds=99",
        "checkpoint_every=7",
        "engine.workers=3",
        "tracker=none",
        "fresh=true",
        "seed=4",
        "name=mine",
    ):
        assert digest(settings_of(free)) == digest(base), free
    for bound in (
        "local.lr=0.5",
        "num_clients=40",
        "transform=none",
        "eval_every=2",
        "partition.alpha=0.1",
    ):
        assert digest(settings_of(bound)) != digest(base), bound
    assert "seed" in identity(base) and not set(FREE) & set(identity(base))


def test_settings_survive_json() -> None:
    """Workers get the settings as JSON."""
    settings = settings_of("transform.clip=inf", "transform.theta_max=2")
    assert json.loads(json.dumps(settings)) == settings and settings["transform"]["clip"] == float(
        "inf"
    )


@pytest.mark.full
def test_experiments_run_small() -> None:
    """Every experiment overlay composes to settings that are right, at both scales, and mini is
    smaller.
    """
    for path in Path(ROOT / "conf" / "experiment").glob("*.yaml"):
        if path.stem == "quickstart":
            assert problems_of(settings_of("experiment=quickstart", "debug=tiny")) == []
            continue
        paper, mini = (
            settings_of(f"experiment={path.stem}", f"scale={scale}") for scale in ("paper", "mini")
        )
        # the published partitions are not ours
        problems = [
            text for text in (*problems_of(paper), *problems_of(mini)) if "no such file" not in text
        ]
        assert problems == [], path.stem
        assert mini["rounds"] < paper["rounds"] and mini["model"] != paper["model"], path.stem
        assert (paper["num_clients"], paper["sample_ratio"]) in ((100, 0.1), (10, 1.0)), (
            "Section 5.1, and G.1 for the case study"
        )


def test_a_class_of_this_project_may_move_and_one_of_the_users_is_part_of_a_run() -> None:
    base = settings_of()
    moved = {**base, "algorithm": base["algorithm"] | {"_target_": "inco.elsewhere.FedAvg"}}
    users = {**base, "algorithm": base["algorithm"] | {"_target_": "mine.FedAvg"}}
    assert identity(base)["options"]["algorithm"] == "fedavg"
    assert digest(moved) == digest(base) != digest(users)
    with pytest.raises(
        ConfigError,
        match=r"server\._target_=inco\.server\.optim\.Yogi: choose an option of conf/server/",
    ):
        check(ROOT / "conf", ["server=adam", "server._target_=inco.server.optim.Yogi"])
