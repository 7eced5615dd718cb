"""The published numbers: against what the paper prints twice, against conf/, and beside groups made
by hand.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from report_folders import write_folder
from support import ROOT

from inco.records.groups import Group
from inco.records.names import flat
from inco.records.runs import find
from inco.report import write_comparison
from inco.report.paper import Entry, candidates, entries, gain, known, of_experiment, published
from inco.report.text import MISSING

CONF = ROOT / "conf"
CELLS = [
    (name, alpha)
    for name in ("fashion_mnist", "svhn", "cifar10", "cinic10")
    for alpha in ("0.5", "1.0")
]

# The arrows of Tables 2 and 3, typed from the paper: gains over the method without InCo, dataset by
# dataset, alpha 0.5 before 1.0.
ARROWS = {
    ("resnet26", "Avg"): "2.4 2.4 2.5 2.1 3.0 4.0 4.4 1.0",
    ("resnet26", "Prox"): "2.0 2.5 1.2 0.9 2.0 3.7 2.7 1.6",
    ("resnet26", "Scaffold"): "3.1 3.7 4.8 1.5 1.8 4.1 2.7 3.9",
    ("resnet26", "Nova"): "1.7 0.7 2.0 0.4 2.7 2.7 1.9 2.0",
    ("resnet26", "MOON"): "1.2 1.2 2.6 2.8 3.1 3.4 4.2 2.9",
    ("vit_small", "Avg"): "0.8 1.1 1.3 1.2 1.0 0.9 1.7 1.5",
    ("vit_small", "Prox"): "1.7 0.8 2.7 2.0 2.0 2.2 1.1 1.2",
    ("vit_small", "Scaffold"): "1.0 0.9 1.5 1.1 0.8 0.7 1.9 1.2",
    ("vit_small", "Nova"): "1.0 1.2 2.4 1.5 1.2 1.2 0.9 1.2",
    ("vit_small", "MOON"): "0.8 0.7 2.0 1.1 0.7 0.5 1.3 1.2",
    ("resnet26", "HeteroFL"): "1.1 0.7 1.6 1.3 3.0 2.8",
    ("resnet26", "InclusiveFL"): "1.0 0.7 2.0 0.9 3.4 3.9",
    ("resnet26", "FedRolex"): "2.2 1.1 1.9 1.8 3.2 3.3",
    ("resnet26", "ScaleFL"): "0.6 0.7 0.8 0.7 2.7 2.4",
}
# Where an arrow is not the difference of the two numbers beside it: what the difference is.
MISPRINTS = {
    ("resnet26", "Nova", "cifar10", "1.0"): 1.7,
    ("vit_small", "Nova", "cinic10", "1.0"): 1.5,
    ("resnet26", "ScaleFL", "cifar10", "1.0"): 1.4,
}

STAGE = {
    "model": "resnet26",
    "split": "stage",
    "capacity": "five_levels",
    "partition": "dirichlet",
    "uplink": "clean",
    "server": "average",
}


def accuracy(where: str, method: str, dataset: str, alpha: str, model: str = "resnet26") -> Entry:
    wanted = {"model": model, "dataset": dataset, "partition.alpha": alpha}.items()
    (entry,) = [
        e
        for e in entries()
        if (e.where, e.method, e.measure) == (where, method, "test/acc")
        and wanted <= e.selectors.items()
    ]
    return entry


def group_of(experiment: str | None, **facts: Any) -> Group:
    """A group with the facts of a ResNet split by stage on CIFAR-10 with alpha 0.5, but for those
    given (`a__b` is a.b).
    """
    every = {
        **STAGE,
        "dataset": "cifar10",
        "partition.alpha": 0.5,
        "algorithm": "fedavg",
        "transform": "none",
        "local.batch_size": 64,
    }
    every |= {key.replace("__", "."): value for key, value in facts.items()}
    return Group(
        {key: value for key, value in every.items() if value is not None},
        [SimpleNamespace(about={"experiment": experiment})],
    )  # type: ignore[list-item]


def shown(group: Group) -> list[tuple[str, str, float]]:
    return [
        (entry.where, entry.method, entry.mean)
        for entry in published(group)
        if entry.key == "test/acc"
    ]


# The data


def test_all_tables_and_figures_are_there() -> None:
    counts: dict[str, int] = {}
    for entry in entries():
        counts[entry.source] = counts.get(entry.source, 0) + 1
    accuracies = {
        "Table 1": 6,
        "Table 2": 160,
        "Table 3": 80,
        "Table 5": 80,
        "Figure 8": 40,
        "Figure 21": 40,
        "Figure 22": 40,
    }
    accuracies |= {
        "Figure 23": 40,
        "Figure 7": 36,
        "Figure 24": 18,
        "Figure 25": 18,
        "Figure 10": 10,
        "Figure 20": 6,
    }
    assert counts == accuracies | {
        "Table 4": 4,
        "Table 7": 10,
        "Table 8": 10,
        "Table 9": 10,
    }, "10 methods x 2 models x 8 cells, ..."


def test_gains_are_those_that_the_paper_prints_beside_them() -> None:
    checked = 0
    for (model, word), arrows in ARROWS.items():
        own = word in ("Avg", "Prox", "Scaffold", "Nova", "MOON")
        where, base, more = (
            ("Table 2", f"Hetero{word}", f"InCo{word}")
            if own
            else ("Table 3", word, f"{word} + InCo")
        )
        printed = arrows.split()
        assert len(printed) == (8 if own else 6)
        for (dataset, alpha), arrow in zip(CELLS, printed, strict=False):
            with_inco, without = (
                accuracy(where, name, dataset, alpha, model) for name in (more, base)
            )
            expected = MISPRINTS.get((model, word, dataset, alpha), float(arrow))
            assert round(with_inco.mean - without.mean, 1) == expected, (
                model,
                word,
                dataset,
                alpha,
            )
            assert with_inco.deviation is not None and without.deviation is not None
            assert (f"is printed as {arrow}, and is {expected}" in with_inco.note) == (
                expected != float(arrow)
            )
            checked += 1
    assert checked == 80 + 24


def test_table_1_falls_as_its_arrows_say() -> None:
    for model, falls in (("resnet26", [18.7, 28.7]), ("vit_small", [26.2, 30.9])):
        iid, *rest = [
            entry.mean
            for entry in entries()
            if entry.where == "Table 1" and entry.selectors["model"] == model
        ]
        assert [round(iid - mean, 1) for mean in rest] == falls


def test_charts_agree_with_the_table_that_prints_the_same_cells() -> None:
    printed = {
        tuple(sorted(entry.selectors.items())): entry
        for entry in entries()
        if entry.where == "Table 2"
    }
    compared, wrong = 0, []
    for entry in entries():
        same = printed.get(
            tuple(
                sorted(
                    (k, v)
                    for k, v in entry.selectors.items()
                    if (k, v) != ("local.batch_size", "64")
                )
            )
        )
        if same and not entry.printed:
            compared += 1
            wrong += [(entry, same)] if abs(entry.mean - same.mean) > 1 else []
    assert compared == 4 * 16 + 8, (
        "two of the five bars of four figures; a batch of 64 in Figures 7a, 7b, 24a and 25a"
    )
    assert all(
        f"Table 2 prints {same.text.split()[0]}: the picture is read wrongly" == entry.note
        for entry, same in wrong
    )
    assert {(entry.where, entry.method) for entry, _ in wrong} == {("Figure 23d", "HeteroScaffold")}


def test_sizes_fit_each_other() -> None:
    def values(where: str, measure: str) -> list[Entry]:
        return [entry for entry in entries() if (entry.where, entry.measure) == (where, measure)]

    for where in ("Table 7", "Table 8", "Table 9"):
        sizes = values(where, "params")
        off = [
            r.part
            for p, r in zip(sizes, values(where, "ratio"), strict=True)
            if abs(p.mean / sizes[-1].mean - r.mean) > 0.004
        ]
        assert off == (["vit11"] if where == "Table 8" else [])
    assert "0.912 in Table 8 is a typo" in next(
        e.note for e in values("Table 8", "ratio") if e.part == "vit11"
    )
    comm = {entry.method: entry.mean for entry in values("Table 3", "comm")}
    for method, where in (
        ("InclusiveFL", "Table 7"),
        ("HeteroFL", "Table 9"),
        ("FedRolex", "Table 9"),
    ):
        assert sum(e.mean for e in values(where, "params")) / 5 == pytest.approx(
            comm[method], abs=0.1
        )
    flops = {entry.method: entry.mean for entry in values("Table 3", "flops")}
    assert all(
        round(flops[f"{name} + InCo"] - flops[name], 1) == 0.4
        for name in ("HeteroFL", "InclusiveFL", "FedRolex", "ScaleFL")
    )


def test_selectors_are_options_and_settings_of_conf() -> None:
    for key, value in {pair for entry in entries() for pair in entry.selectors.items()}:
        group, dot, name = key.partition(".")
        if dot:
            files = sorted((CONF / group).glob("*.yaml"))
            assert any(re.search(rf"^{name}:", file.read_text(), re.M) for file in files), key
            assert float(value) > 0
        else:
            assert (CONF / group / f"{value}.yaml").exists(), f"{key}={value}"
    assert {entry.measure for entry in entries()} == {
        "test/acc",
        "params",
        "ratio",
        "comm",
        "flops",
        "beta_positive",
    }


def test_it_is_read_from_the_package() -> None:
    code = "import inco.report.paper as p; print(len(p.entries()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == str(len(entries())), done.stderr


# Which stand beside what


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("table2_resnet", "Table 2"),
        ("figure10", "Figure 10"),
        ("figure7_noise", "Figure 7"),
        ("quickstart", ""),
        (None, ""),
        ("tables", ""),
    ],
)
def test_experiments_name_their_table(name: str | None, source: str) -> None:
    assert of_experiment(name) == source


def test_the_experiments_own_table_comes_first_then_printed_ones() -> None:
    assert shown(group_of("table2_resnet")) == [("Table 2", "HeteroAvg", 64.8)]
    assert shown(group_of("figure8")) == [("Figure 8c", "HeteroAvg", 64.0)]
    assert shown(group_of("figure10")) == [("Table 2", "HeteroAvg", 64.8)], (
        "a printed one before a chart"
    )
    assert shown(group_of("table2_resnet", transform="neither")) == [
        ("Figure 8c", "InCoAvg w/o N&O", 64.0)
    ], "a chart before nothing"
    assert shown(group_of("table2_resnet", partition__alpha=1)) == [("Table 2", "HeteroAvg", 66.7)]
    assert shown(group_of("table5_resnet", split="isolated")) == [("Table 5", "FedAvg", 52.3)]
    assert shown(group_of("table3_alllarge", split="none")) == [("Table 3", "AllLarge", 79.6)]
    assert shown(group_of("table3_allsmall", split="width", capacity="all_small")) == [
        ("Table 3", "AllSmall", 39.2)
    ]
    assert shown(group_of("table2_vit", model="vit_small", split="layer", transform="inco")) == [
        ("Table 2", "InCoAvg", 94.6)
    ]
    assert shown(group_of("figure20", transform="add_noise")) == [
        ("Figure 20c", "Add noises", 62.5)
    ]


def test_runs_of_no_experiment_and_other_settings_have_nothing_beside_them() -> None:
    assert not published(group_of(None)) and not published(group_of("quickstart"))
    for other in (
        {"dataset": "digits"},
        {"partition__alpha": 0.1},
        {"algorithm": "feddyn"},
        {"server": "adam"},
        {"uplink": "noise"},
    ):
        assert not shown(group_of("table2_resnet", **other)), other
    assert not shown(group_of("table2_resnet", partition="iid", partition__alpha=None))


def test_settings_of_their_own_stand_alone() -> None:
    batch = group_of("figure7_batch", local__batch_size=128)
    assert shown(batch) == [("Figure 7a", "HeteroAvg", 62.0)]
    noise = group_of("figure7_noise", uplink="noise", uplink__scale=3.0, dataset="cinic10")
    assert shown(noise) == [("Figure 7d", "HeteroAvg", 42.5)]
    assert not shown(group_of("figure7_batch", local__batch_size=16)) and not shown(
        group_of("figure7_batch", dataset="fashion_mnist")
    )
    assert shown(group_of("table2_resnet", local__batch_size=128)) == [
        ("Table 2", "HeteroAvg", 64.8)
    ], "mini has other batches"
    case = {"split": "none", "partition": "iid", "partition__alpha": None}
    assert shown(group_of("table1_resnet_iid_homo", **case)) == [("Table 1", "IID with homo", 81.0)]
    assert shown(group_of("table1_resnet_noniid_homo", split="none")) == [
        ("Table 1", "Non-IID with homo", 62.3)
    ]
    assert not shown(group_of("table1_resnet_noniid_homo", split="none", dataset="svhn")), (
        "AllLarge is no case study"
    )
    assert not shown(group_of("table3_alllarge", **case)), "and the reverse"


@pytest.mark.parametrize(
    ("path", "alpha"),
    [("a/SVHN_hetero-fix-100-1.0.npy", 1.0), ("hetero-fix-100-0.5.npy", 0.5), ("mine.npy", None)],
)
def test_alpha_of_a_published_partition_is_in_its_name(path: str, alpha: float | None) -> None:
    fixed = group_of(
        "table2_resnet", partition="fixed", partition__alpha=None, partition__path=path
    )
    assert known(fixed).get("partition.alpha") == alpha
    assert shown(fixed) == (
        [("Table 2", "HeteroAvg", {0.5: 64.8, 1.0: 66.7}[alpha])] if alpha else []
    )


def test_by_capacity_and_sizes() -> None:
    beside = {
        entry.key: (entry.where, entry.mean)
        for entry in published(group_of("figure10", transform="inco"))
    }
    assert beside["test/acc/resnet18"] == ("Figure 10e", 75.3) and beside["params/resnet14"] == (
        "Table 7",
        10.81,
    )
    wide = {
        entry.key: (entry.where, entry.mean)
        for entry in published(group_of("table3_heterofl", split="width"))
    }
    assert (
        wide["params/w1/16"] == ("Table 9", 0.07)
        and wide["comm"] == ("Table 3", 4.6)
        and wide["flops"] == ("Table 3", 33.4)
    )


def test_gains_are_of_the_same_figure_where_it_has_both() -> None:
    base = group_of("table2_resnet")
    (own,) = [e for e in published(group_of("figure8", transform="inco")) if e.key == "test/acc"]
    assert gain(own, base, "Figure 8") == 4.0, (
        "68 - 64; the base's run belongs to Table 2, its own number would give 3.2"
    )
    (table,) = [
        e for e in published(group_of("table2_resnet", transform="inco")) if e.key == "test/acc"
    ]
    assert gain(table, base, "Table 2") == 3.0
    (noise,) = [
        e for e in published(group_of("figure20", transform="add_noise")) if e.key == "test/acc"
    ]
    assert gain(noise, base, "Figure 20") == -2.3, "62.5 - 64.8 of Table 2"
    assert gain(noise, group_of("figure20", dataset="digits"), "Figure 20") is None
    assert candidates(base)[0].where == "Table 2"


PAPERS = sorted(
    path.stem for path in (CONF / "experiment").glob("*.yaml") if of_experiment(path.stem)
)


@pytest.mark.full
@pytest.mark.parametrize("name", PAPERS)
def test_every_experiment_of_the_paper_stands_beside_a_number(name: str) -> None:
    """As its overlay composes, with the first value of what it sweeps over."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        swept = (
            compose("config", [f"experiment={name}"], return_hydra_config=True).hydra.sweeper.get(
                "params"
            )
            or {}
        )
        first = [
            f"{key}={str(value).partition(',')[0]}" for key, value in swept.items() if key != "seed"
        ]
        cfg = compose("config", [f"experiment={name}", *first], return_hydra_config=True)
        OmegaConf.resolve(cfg.partition)  # a published file says its alpha in its name
        choices = {key: value for key, value in cfg.hydra.runtime.choices.items() if "/" not in key}
        settings = {
            key: value
            for key, value in OmegaConf.to_container(cfg).items()
            if key not in ("hydra", "name")
        }  # type: ignore[union-attr]
    run = SimpleNamespace(about={"experiment": name})
    assert shown(Group({**flat(settings), **choices}, [run])), first  # type: ignore[list-item]


# In a comparison


def runs_of(
    root: Path, finals: dict[str, list[float]], told: dict[str, Any] | None = None, **chosen: Any
) -> Path:
    for transform, values in finals.items():
        for seed, value in enumerate(values):
            more = {"experiment": "table2_resnet", "scale": None} | (told or {})
            options = {**STAGE, "dataset": "cifar10", **chosen}
            settings = {"partition": {"alpha": 0.5}}
            folder = root / f"{transform}-s{seed}-{len(list(root.glob('*')))}"
            write_folder(
                folder,
                [[value - 1, value + 1]] * 2,
                seed=seed,
                transform=transform,
                chosen=options,
                settings=settings,
                told=more,
            )
    return root


def rows_of(markdown: str, start: str) -> list[list[str]]:
    lines = markdown[markdown.index(start) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def test_ours_beside_theirs_by_hand(tmp_path: Path) -> None:
    root = runs_of(
        tmp_path / "runs", {"inco": [68.0, 70.0], "none": [63.0, 64.0], "neither": [60.0]}
    )
    write_comparison(find([root]), tmp_path, "x")
    markdown = (tmp_path / "comparison.md").read_text()
    heads, _, *rows = rows_of(markdown, "| where | method |")
    assert heads[5:] == [
        "rounds",
        "n",
        "ours, %",
        "theirs, %",
        "difference",
        "within theirs",
        "our gain",
        "their gain",
    ]
    place = ["cifar10", "0.5", "paper", "2 of 500"]
    assert rows == [
        [
            "Table 2",
            "HeteroAvg",
            *place,
            "2",
            "63.50 ± 0.71",
            "64.8 ± 2.9",
            "-1.30",
            "yes",
            MISSING,
            MISSING,
        ],
        [
            "Table 2",
            "InCoAvg",
            *place,
            "2",
            "69.00 ± 1.41",
            "67.8 ± 3.2",
            "+1.20",
            "yes",
            "+5.50 ± 0.71",
            "+3.0",
        ],
        [
            "Figure 8c (chart)",
            "InCoAvg w/o N&O",
            *place,
            "1",
            "60.00",
            "64",
            "-4.00",
            "",
            "-3.00",
            "+0.0",
        ],
    ]
    assert (
        "Beside the paper. Theirs: Chan et al., ICLR 2024" in markdown
        and "Some runs have another number of rounds" in markdown
    )
    assert "read off pictures" in markdown and "scale mini" not in markdown
    table = {row["transform"]: row for row in csv.DictReader((tmp_path / "comparison.csv").open())}
    assert (
        table["inco"]["paper where"] == "Table 2"
        and table["inco"]["paper mean"] == "67.8"
        and table["inco"]["paper sd"] == "3.2"
    )
    assert (
        float(table["inco"]["paper difference"]) == pytest.approx(1.2)
        and table["inco"]["paper gain"] == "3.0"
    )
    assert [table[t]["paper within"] for t in ("inco", "none", "neither")] == ["yes", "yes", ""]
    assert table["neither"]["paper printed"] == "chart" and table["none"]["paper gain"] == ""
    latex = (tmp_path / "comparison.tex").read_text()
    assert (
        r"Figure 8c (chart) & InCoAvg w/o N\&O & cifar10 & 0.5 & paper & 2 of 500 & 1 & $60.0$ & 64"
        r" & -4.00 &" in latex
    )
    assert (
        r"67.8 $\pm$ 3.2" in latex
        and "\N{PLUS-MINUS SIGN}" not in latex
        and "\n% Beside the paper. Theirs" in latex
    )


def test_the_page_has_the_table_and_its_filter_knows_it(tmp_path: Path) -> None:
    root = runs_of(
        tmp_path / "runs",
        {"inco": [68.0], "neither": [60.0]},
        {"params/resnet10": 4_910_922, "capacities": ["resnet10"]},
    )
    page = write_comparison(find([root]), tmp_path, "x")[0].read_text()
    controlled = re.search(r'aria-controls="([^"]*)"', page)
    assert controlled and {"paper-table", "sizes-table"} <= set(controlled[1].split())
    assert all(page.count(f'id="{name}"') == 1 for name in controlled[1].split())
    table = page[page.index('id="paper-table"') :]
    table = table[: table.index("</table>")]
    heads = re.findall(r'<button type="button">(.*?)</button>', table)
    assert heads[:2] == ["where", "method"] and heads[-3:] == ["our gain", "their gain", "remark"]
    assert (
        "InCoAvg w/o N&amp;O" in table
        and "N&O" not in table
        and '<a href="#paper">Beside the paper</a>' in page
    )
    rows = table[table.index("<tbody>") :].split("<tr>")[1:]
    assert len(rows) == 3 and all(len(re.findall("<t[hd]", row)) == len(heads) for row in rows)
    assert "InCoAvg, resnet10" in rows[2] and "Figure 10a has 0.5" in rows[2], (
        "by capacity, with its remark"
    )


def test_nothing_appears_where_nothing_matches(tmp_path: Path) -> None:
    root = runs_of(tmp_path / "runs", {"inco": [68.0], "none": [63.0]}, {"experiment": None})
    for path in write_comparison(find([root]), tmp_path, "x"):
        text = path.read_text()
        assert (
            "Beside the paper" not in text
            and "paper-table" not in text
            and "paper where" not in text
            and "theirs" not in text
        )


def test_mini_says_what_can_be_compared_and_shows_no_sizes(tmp_path: Path) -> None:
    told = {"scale": "mini", "params/resnet10": 78_178, "capacities": ["resnet10"]}
    root = runs_of(tmp_path / "runs", {"inco": [48.0], "none": [43.0]}, told)
    write_comparison(find([root]), tmp_path, "x")
    text = (tmp_path / "comparison.md").read_text()
    assert (
        "only signs and orders can be compared" in text
        and "| mini | 2 of 500 |" in text
        and "as printed" not in text
    )
    assert "another number of rounds" not in text and "read off pictures" not in text
    assert "paper params" not in (tmp_path / "comparison.csv").read_text()


def test_sizes_by_hand(tmp_path: Path) -> None:
    params = {"resnet10": 4_910_922, "resnet14": 10_812_234, "resnet26": 17_452_362}
    told: dict[str, Any] = {f"params/{name}": count for name, count in params.items()} | {
        "capacities": list(params)
    }
    runs_of(tmp_path / "runs", {"inco": [68.0], "none": [63.0]}, told)
    fewer = told | {f"params/{name}": count - 6272 for name, count in params.items()}
    runs_of(tmp_path / "runs", {"none": [63.0]}, fewer, dataset="fashion_mnist")
    wide = told | {
        "experiment": "table3_heterofl",
        "mean_params": 4_652_812.4,
        "mean_flops": 30_363_929.6,
        "capacities": ["w1/16"],
    }
    runs_of(
        tmp_path / "runs",
        {"none": [63.0]},
        wide | {"params/w1/16": 69_822, "params/w1": 17_452_362},
        split="width",
    )
    write_comparison(find([tmp_path / "runs"]), tmp_path, "x")
    heads, _, *rows = rows_of((tmp_path / "comparison.md").read_text(), "| where | method | what")
    assert heads == ["where", "method", "what", "ours", "theirs", "as printed", "remark"]
    cells = {(row[0], row[2], row[3]): row[4:] for row in rows}
    assert len(cells) == len(rows), "a size that several groups have is there once"
    assert cells["Table 7", "parameters, resnet10", "4.91M"] == ["4.91M", "yes", ""]
    assert cells["Table 7", "parameters, resnet10", "4.90M"][:2] == ["4.91M", "no"]
    assert "one channel" in cells["Table 7", "parameters, resnet10", "4.90M"][2]
    ratio = cells["Table 7", "parameters, relative to the largest, resnet14", "0.620"]
    assert ratio == ["0.619", "no", "0.6195: cut, not rounded"]
    assert cells["Table 3", "communication: parameters per client, one way", "4.7M"][:2] == [
        "4.6M",
        "no",
    ]
    flops = cells["Table 3", "FLOPs of one image's forward pass", "30.4M"]
    assert flops[:2] == ["33.4M", "no"] and "cannot be reproduced" in flops[2]
    assert cells["Table 9", "parameters, w1/16", "0.07M"] == ["0.07M", "yes", ""]
    table = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert {row["paper params/resnet10"] for row in table} == {"4910000.0", ""} and {
        row["paper comm"] for row in table
    } == {
        "4600000.0",
        "",
    }


def test_two_groups_beside_one_number_are_told_apart(tmp_path: Path) -> None:
    for rule in ("official", "theorem"):
        options = {**STAGE, "dataset": "cifar10"}
        settings = {"partition": {"alpha": 0.5}, "transform": {"rule": rule}}
        write_folder(
            tmp_path / "runs" / rule,
            [[68, 70]],
            chosen=options,
            settings=settings,
            told={"experiment": "table2_resnet"},
        )
    write_comparison(find([tmp_path / "runs"]), tmp_path, "x")
    heads, _, *rows = rows_of((tmp_path / "comparison.md").read_text(), "| where | method |")
    assert heads[2] == "group" and {row[2] for row in rows} == {"rule=official", "rule=theorem"}


def test_a_run_that_did_not_finish_has_no_difference(tmp_path: Path) -> None:
    options, settings = {**STAGE, "dataset": "cifar10"}, {"partition": {"alpha": 0.5}}
    told = {"experiment": "table2_resnet", "scale": 3}
    write_folder(
        tmp_path / "runs/a", [[68, 70]], status=None, chosen=options, settings=settings, told=told
    )
    write_folder(
        tmp_path / "runs/b",
        [[68, 70]],
        status=None,
        transform="none",
        chosen=options,
        settings=settings,
        told=told,
    )
    write_comparison(find([tmp_path / "runs"]), tmp_path, "x")
    rows = rows_of((tmp_path / "comparison.md").read_text(), "| where | method |")[2:]
    none, inco = ([*row[6:8], *row[9:]] for row in rows)  # all but theirs
    assert none == ["0", MISSING, MISSING, "", MISSING, MISSING] and inco == [*none[:5], "+3.0"]


def test_a_large_comparison_is_quick() -> None:
    """200 groups: more than a table at the paper's scale has."""
    found = [
        group_of("table2_resnet", transform=t, local__lr=k)
        for t in ("none", "inco")
        for k in range(100)
    ]
    began = time.perf_counter()
    assert all(published(one) for one in found)
    assert time.perf_counter() - began < 2.0, "measured: 0.3 s"
