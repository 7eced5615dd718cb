"""The paper's experiments: what their sweeps hold, the two scales, and that the words of a command
line win.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support import ROOT, settings_of

from inco.errors import ConfigError
from inco.run.front import check

CONF, SCRIPTS = ROOT / "conf", ROOT / "multirun_scripts"


def points(*words: str) -> list[tuple[str, ...]]:
    """The overrides of each job of `python run.py -m WORDS`."""
    found = check(CONF, ["-m", *words])
    assert found is not None
    return [point.overrides for point in found[0]]


@pytest.mark.full
def test_an_experiment_brings_its_own_sweep() -> None:
    jobs = points("experiment=figure8", "scale=mini", "seed=4")
    assert len(jobs) == 5 and all(
        "seed=4" in job and "dataset=fashion_mnist" in job for job in jobs
    )
    assert [word for job in jobs for word in job if word.startswith("transform=")] == [
        f"transform={option}"
        for option in ("none", "inco", "no_normalization", "no_optimization", "neither")
    ]


@pytest.mark.full
def test_the_last_word_on_a_setting_holds() -> None:
    assert (
        len(points("experiment=table2_resnet", "scale=mini", "algorithm=fedavg", "seed=0,1")) == 4
    )
    assert points("seed=0,1", "seed=2") == [("seed=2",)]


@pytest.mark.parametrize(
    "words",
    [("experiment=table2_resnet,table2_resnet_moon",), ("experiment=figure8", "scale=paper,mini")],
)
def test_one_experiment_at_one_scale_at_a_time(words: tuple[str, ...]) -> None:
    """Each would need a sweep of its own: nothing is left out in silence."""
    with pytest.raises(
        ConfigError, match="brings a sweep of its own; start them one after the other"
    ):
        check(CONF, ["-m", *words])


def test_without_m_it_is_one_cell(type_command) -> None:
    done = type_command("experiment=table2_resnet", "scale=mini", "--cfg", "job", "--resolve")
    assert done.returncode == 0 and re.search(r"^rounds: 30$", done.stdout, re.M), done.stderr


@pytest.mark.parametrize("words", [("scale=mini",), ("experiment=quickstart", "scale=paper")])
def test_a_scale_needs_an_experiment_of_the_paper(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="only experiments of the paper have scales"):
        check(CONF, list(words))


def test_the_published_settings() -> None:
    """Section 5.1 and Appendix H.3, as the paper states them, from the experiment files."""
    resnet, vit = (
        settings_of("experiment=table2_resnet", "scale=paper"),
        settings_of("experiment=table2_vit"),
    )
    for settings, rounds in ((resnet, 500), (vit, 200)):
        assert (settings["rounds"], settings["num_clients"], settings["sample_ratio"]) == (
            rounds,
            100,
            0.1,
        )
        assert (settings["local"]["epochs"], settings["local"]["batch_size"]) == (5, 64)
    assert resnet["local"]["_target_"].endswith("Adam") and (
        resnet["local"]["lr"],
        resnet["local"]["betas"],
    ) == (0.001, [0.9, 0.999])
    assert resnet["model"]["widths"] == [64, 128, 256, 512] and resnet["model"]["blocks"] == [
        3,
        3,
        3,
        3,
    ]
    assert (vit["model"]["dim"], vit["model"]["image_size"], vit["model"]["pretrained"]) == (
        384,
        224,
        True,
    )
    for family in ("resnet", "vit"):
        assert settings_of(f"experiment=table2_{family}_moon")["rounds"] == 100
        assert (
            settings_of(f"experiment=table2_{family}", "algorithm=fedprox")["algorithm"]["mu"] / 2
            == 0.05
        )
        assert (
            settings_of(f"experiment=table2_{family}", "algorithm=scaffold")["algorithm"][
                "allow_adam"
            ]
            is True
        )
    for name, split, blocks, rounds in (
        ("iid_homo", "Whole", [2, 2, 2, 2], 100),
        ("noniid_hetero", "Isolated", [3, 3, 3, 3], 100),
    ):
        case = settings_of(f"experiment=table1_resnet_{name}")
        assert (case["num_clients"], case["sample_ratio"], case["rounds"]) == (10, 1.0, rounds)
        assert case["split"]["_target_"].endswith(split) and case["model"]["blocks"] == blocks


@pytest.mark.full
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_each_dataset_has_its_published_index_files(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCO_OFFICIAL_PARTITIONS", str(tmp_path))
    names = {"fashion_mnist": "", "svhn": "SVHN_", "cifar10": "", "cinic10": "cinic10_"}
    for prefix in names.values():
        for alpha in (0.5, 1.0):
            (tmp_path / f"{prefix}hetero-fix-100-{alpha}.npy").touch()
    found = check(
        CONF,
        [
            "-m",
            f"experiment=table2_{family}_official",
            "algorithm=fedavg",
            "transform=inco",
            "seed=0",
        ],
    )
    assert found is not None
    paths = [
        (
            point.settings["dataset"]["_target_"].rpartition(".")[2].lower(),
            point.settings["partition"]["path"],
        )
        for point in found[0]
    ]
    expected = [
        (name.replace("_", ""), f"{tmp_path}/{prefix}hetero-fix-100-{alpha}.npy")
        for name, prefix in names.items()
        for alpha in (0.5, 1.0)
    ]
    assert paths == expected


@pytest.mark.full
def test_systems_without_inco_are_cells_without_it() -> None:
    for name in ("table3_alllarge", "table3_allsmall", "table1_resnet_iid_homo"):
        assert settings_of(f"experiment={name}")["transform"]["_target_"].endswith("Identity")


def test_scales_differ_in_what_costs_time_alone() -> None:
    paper, mini = (
        settings_of("experiment=table3_heterofl", f"scale={scale}") for scale in ("paper", "mini")
    )
    differ = {key for key in paper if paper[key] != mini[key]}
    assert differ == {"rounds", "scale", "model", "local", "split"}
    assert {key for key in paper["local"] if paper["local"][key] != mini["local"][key]} == {
        "epochs",
        "batch_size",
    }


def test_every_experiment_has_a_script_and_a_line_in_the_docs() -> None:
    scripts = "".join(path.read_text() for path in SCRIPTS.glob("*.sh"))
    docs = (ROOT / "docs" / "paper.md").read_text()
    for path in sorted((CONF / "experiment").glob("[tf]*.yaml")):
        assert re.search(rf"\b{path.stem}\b", scripts), path.stem
    for path in sorted(SCRIPTS.glob("[tf]*.sh")):
        assert f"`{path.name}`" in docs or path.name == "two_rounds.sh", path.name


def sh(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *words], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.stem)
def test_scripts_are_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_a_script_says_how_it_is_used() -> None:
    for words, told in (
        ((), "usage: bash"),
        (("scale=huge",), "usage: bash"),
        (("scale=mini", "--cfg"), "--cfg: give settings"),
    ):
        done = sh("table2.sh", *words)
        assert done.returncode == 2 and told in done.stderr, done
