"""The report of a run and the comparison of runs, from folders made by hand, against numbers worked
out by hand.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import edges, histogram, large_run, page_data, similarity, sweep, write_folder
from support import ROOT

from inco.errors import ConfigError, DataError
from inco.records.arrays import ArrayStore, write_npz
from inco.records.groups import spread
from inco.records.names import natural
from inco.records.record import RunRecord
from inco.records.runs import Run, find
from inco.report import groups, maps, write_comparison, write_run
from inco.report.curves import BUDGET, MOST, by_layer, grouped, kept, over_rounds, picked
from inco.report.filters import kept as filtered
from inco.report.groups import note, sign_flip_p
from inco.report.markup import Html, html, tag
from inco.report.tables import LATEX, Table
from inco.report.text import MISSING, amount, clock, setting, sig4

# Numbers


def test_means_and_deviations_by_hand() -> None:
    assert spread([90.0, 92.0, 94.0]) == (92.0, 2.0, 3)
    assert spread([1.0, 3.0, None]) == (2.0, pytest.approx(2**0.5), 2)
    assert spread([7.0]) == (7.0, None, 1), "one value has no standard deviation"
    assert spread([]) == (None, None, 0)


def test_p_values_by_hand() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0]) == 0.25, "2 of the 8 flips reach 6"
    assert sign_flip_p([1.0, -2.0, 3.0]) == 0.75, (
        "sums 6, 4, 2, 0 and their negatives: 6 of 8 reach 2"
    )
    assert sign_flip_p([1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 6) == 2 / 64, "equal gains, whatever their rounding"
    assert sign_flip_p([]) is None and sign_flip_p([1.0] * 21) is None


def test_what_few_pairs_cannot_show_is_said() -> None:
    assert note(3) == "n = 3: the smallest possible p is 0.25; this cannot show significance"
    assert note(5) == "n = 5: the smallest possible p is 0.0625; this cannot show significance"
    assert note(6) == "n = 6: the smallest possible p is 0.031"
    assert note(1).startswith("n = 1: the smallest possible p is 1;")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (11_170_000, "11.2M"),
        (999.0, "999"),
        (999_900, "1.00M"),
        (89e6, "89.0M"),
        (309_000, "309k"),
        (5e12, "5.00T"),
        (None, MISSING),
    ],
)
def test_amounts(value: float | None, text: str) -> None:
    assert amount(value) == text


def test_other_numbers_as_text() -> None:
    assert amount(4.3e6, "B") == "4.30 MB" and amount(12, "B") == "12 B"
    assert [clock(s) for s in (7.26, 59, 725, 11045, 187200)] == [
        "7.3 s",
        "59 s",
        "12:05 min",
        "3:04 h",
        "2 d 4 h",
    ]
    assert [sig4(v) for v in (0.123456, 92.16, 3.0, float("nan"), 123456.0)] == [
        0.1235,
        92.16,
        3,
        None,
        123500,
    ]
    assert [setting(v) for v in (None, True, 0.5, [1, 2], "a")] == [
        "none",
        "true",
        "0.5",
        "[1,2]",
        "a",
    ]
    assert sorted(["layer10", "layer2.1", "conv1"], key=natural) == ["conv1", "layer2.1", "layer10"]


# Curves


def test_long_curves_are_thinned_and_keep_first_last_and_best() -> None:
    rows = [{"round": k, "a": float(k % 7)} for k in range(1, 5001)]
    rows[1234]["a"] = 99.0
    chosen = picked(rows, ["a"], best="a")
    assert (
        len(chosen) <= MOST
        and [chosen[0]["round"], chosen[-1]["round"]] == [1, 5000]
        and rows[1234] in chosen
    )
    gaps = np.diff([row["round"] for row in chosen])
    assert gaps.max() <= 12, "evenly spaced"
    assert len(kept(5000, 60)) * 60 <= BUDGET


def test_rounds_without_scores_are_no_points() -> None:
    rows = [
        {"round": k, "test/acc": 50.0 + k if k % 5 == 0 else None, "train/loss": 1.0}
        for k in range(1, 21)
    ]
    chart = over_rounds(
        "acc", "Accuracy", rows, {"test/acc": "mean", "test/acc/x": "x"}, bold="test/acc"
    )
    assert (
        chart is not None
        and list(chart.x) == [5, 10, 15, 20]
        and [c.name for c in chart.curves] == ["mean"]
    )
    assert over_rounds("cka", "CKA", rows, {"cka/layer1": "layer1"}) is None


def test_layers_are_grouped_and_groups_averaged() -> None:
    layers = [
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer1.1.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.1.conv1",
        "layer3.0.conv1",
    ]
    assert list(grouped(layers)) == ["layer1", "layer2", "layer3"]
    assert grouped(["blocks.0.qkv", "blocks.1.qkv", "blocks.0.proj"]) == {
        "qkv": ["blocks.0.qkv", "blocks.1.qkv"],
        "proj": ["blocks.0.proj"],
    }
    rows = [
        {"round": r, **{f"inco/theta/{name}": float(k + r) for k, name in enumerate(layers)}}
        for r in (1, 2)
    ]
    del rows[1]["inco/theta/layer1.0.conv1"]
    chart = by_layer("theta", "Theta", rows, ("inco/theta/", "gradients/theta/"))
    assert chart is not None and chart.views == ["means of groups", "layer1", "layer2", "layer3"]
    first = chart.curves[0]
    assert first.name == "layer1 (mean of 3)" and first.y == [
        2.0,
        3.5,
    ], "(1+2+3)/3, and (3+4)/2 where one layer is missing"
    assert (
        by_layer(
            "theta",
            "Theta",
            [{"round": 1, "gradients/theta/a": 1.0}],
            ("inco/theta/", "gradients/theta/"),
        )
        is not None
    )


# The page of a run


def test_a_page_says_what_the_folder_says(tmp_path: Path) -> None:
    path = write_run(write_folder(tmp_path / "run", [[50, 60], [80, 90], [70, 88]]))
    text = path.read_text()
    assert path == tmp_path / "run/report.html"
    assert "79.00%" in text and "85.00%" in text and ">round 2<" in text, (
        "last 79, best 85 in round 2"
    )
    assert "1.00k" in text and "2.00M" in text and "12.0 kB" in text, (
        "parameters, and 3 rounds of 4 kB"
    )
    assert "<h2" in text and 'id="budget-chart"' in text and "finished" in text
    data = page_data(path)
    assert data["charts"]["acc"]["series"][0] == {
        "name": "mean",
        "y": [55, 85, 79],
        "style": -1,
        "bold": True,
    }
    assert data["charts"]["budget"]["x"] == [4000, 8000, 12000] and data["charts"]["traffic"][
        "series"
    ][0]["y"] == [4000, 8000, 12000]
    assert [s["name"] for s in data["charts"]["time"]["series"]] == ["training", "scoring", "other"]
    assert data["charts"]["time"]["series"][2]["y"] == [0.5, 0.5, 0.5], "3.0 - 2.0 - 0.5"


def test_what_there_is_no_data_for_is_left_out(tmp_path: Path) -> None:
    text = write_run(write_folder(tmp_path / "run", [[50, 60]])).read_text()
    assert all(f'id="{name}"' not in text for name in ("cka", "clients", "mixing"))
    assert all(
        f'id="{name}"' in text
        for name in ("accuracy", "capacities", "costs", "settings", "origin", "gradients")
    )


def test_nothing_but_a_start(tmp_path: Path) -> None:
    RunRecord(tmp_path).write_about({"name": "fresh", "rounds": 9, "settings": {}})
    text = write_run(tmp_path, live=True).read_text()
    assert "running" in text and "first round" in text and 'id="accuracy"' not in text
    assert page_data(tmp_path / "report.html") == {"charts": {}, "maps": {}, "live": True}


def test_a_folder_from_before_about_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old", [[50, 60], [70, 80]], about=False)
    text = write_run(folder).read_text()
    assert (
        "<h1>old" in text
        and "75.00%" in text
        and "small" in text
        and "large" in text
        and "num_clients" in text
    )


def test_status_says_what_is_known(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]] * 4, status=None)
    about = json.loads((folder / "about.json").read_text()) | {"rounds": 10}
    (folder / "about.json").write_text(json.dumps(about))
    assert "no end recorded" in write_run(folder).read_text(), (
        "it may be running, or may have been killed"
    )
    live = write_run(folder, live=True).read_text()
    assert "no end recorded" not in live and "40% of the rounds, about 18 s left" in live, (
        "6 rounds of 3 s"
    )
    failed = {
        "status": "failed",
        "error": "a loss is not finite",
        "exit_code": 4,
        "warnings": ["W&B: gone"],
    }
    RunRecord(folder).write_summary(failed)
    text = write_run(folder).read_text()
    assert "failed: a loss is not finite (exit code 4)" in text and "warning: W&amp;B: gone" in text
    assert "not finite" not in write_run(folder, live=True).read_text(), (
        "a former sitting's error is not this one's"
    )


def test_damage_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]])
    (folder / "cka").mkdir()
    (folder / "cka/round_00001.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"round_00001\.npz: not an array file"):
        write_run(folder)


# Maps


def test_cka_is_kept_by_capacity_in_thousandths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]])
    matrix = np.array([[1.0, 0.25, np.nan], [0.25, 1.0, -0.012], [np.nan, -0.012, 1.0]])
    named = {
        "cka/layer1": matrix,
        "client": np.array([7, 3, 5]),
        "level": np.array([1, 0, 1]),
        "name": np.array(["L", "S", "L"]),
    }
    ArrayStore(folder).keep(1, {"cka": named})
    found = maps.cka(Run(folder))
    assert found is not None and found["taps"] == ["layer1"]
    (entry,) = found["rounds"]
    assert entry["names"] == ["S", "L", "L"] and entry["clients"] == [3, 7, 5]
    assert entry["cka"]["layer1"] == [
        1000,
        250,
        -12,
        1000,
        None,
        1000,
    ], "S-S, S-L7, S-L5, L7-L7, L7-L5, L5-L5"


def test_histograms_are_joined_and_cut_by_hand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]])
    values = np.concatenate(
        [np.full(30, 1.01e-3), np.full(10, 1.15e-3), np.full(40, -1.01e-2), np.zeros(20)]
    )
    ArrayStore(folder).keep(
        1,
        {
            "gradients": {
                "edges": edges(),
                "clients/a.b": histogram(values),
                "update/a.b": histogram(-values),
            }
        },
    )
    found = maps.histograms(Run(folder))
    assert found is not None and found["layers"] == ["a.b"]
    (entry,) = found["rounds"]
    bins = 2 * (len(found["edges"]) - 1) + 1
    clients, update = entry["clients"][0], entry["update"][0]
    assert len(clients) == bins and sum(clients) == 10_000 and update == clients[::-1]
    assert found["edges"][0] == pytest.approx(1e-3, rel=1e-3), (
        "the smallest bin that holds any; less goes to the middle"
    )
    middle = bins // 2
    assert clients[middle] == 2000 and clients[middle + 1] == 4000, (
        "two bins of 20 a decade are one of 10"
    )
    assert clients[0] == 4000 and found["edges"][-1] == pytest.approx(10**-1.9, rel=1e-3)


def test_a_layer_that_nobody_sent_has_no_histogram(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]] * 2)
    some = histogram(np.array([0.1, -0.1]))
    ArrayStore(folder).keep(
        1, {"gradients": {"edges": edges(), "clients/a": some, "update/a": some, "clients/b": some}}
    )
    ArrayStore(folder).keep(
        2,
        {"gradients": {"edges": edges(), "clients/a": some, "update/a": np.zeros(441, dtype=int)}},
    )
    found = maps.histograms(Run(folder))
    assert found is not None and found["layers"] == ["a", "b"]
    assert found["rounds"][1]["clients"][1] is None and found["rounds"][0]["update"][1] is None
    assert found["rounds"][1]["update"][0] is None, "nothing in it"
    assert write_run(folder).exists()


def test_a_large_population_is_cut_and_the_page_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]])
    counts = np.arange(150 * 3, dtype="int32").reshape(150, 3)
    levels = np.array([1, 0] * 75, dtype="int32")
    write_npz(
        folder / "partition.npz", {"counts": counts, "levels": levels, "clients": np.array(4000)}
    )
    found = maps.partition(Run(folder))
    assert (
        found is not None
        and found["clients"][:3] == [1, 3, 5]
        and found["counts"][0] == [3, 4, 5]
        and found["totals"][0] == 12
    )
    assert found["capacities"] == ["small"] * 50 + ["large"] * 50 and found["classes"] == [
        "a",
        "b",
        "c",
    ]
    assert "The first 100 of 4,000 clients" in write_run(folder).read_text()


def test_some_keeps_the_first_and_the_last() -> None:
    for count in range(1, 200):
        chosen = maps.some(range(count), 10)
        assert (
            chosen[0] == 0
            and chosen[-1] == count - 1
            and len(chosen) <= 10
            and len(set(chosen)) == len(chosen)
        )


@pytest.mark.full
def test_a_page_stays_small_and_is_quick(tmp_path: Path) -> None:
    folder = large_run(tmp_path / "large")
    path = write_run(folder, live=True)
    assert path.stat().st_size < 700_000
    took = []
    for _ in range(3):
        began = time.perf_counter()
        write_run(folder, live=True)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.6, "measured: 0.12 s on an idle machine"
    charts = page_data(path)["charts"]
    assert all(len(chart["x"]) <= MOST for chart in charts.values())
    assert len(page_data(path)["maps"]["cka"]["rounds"]) == 50, "every measured round fits"


@pytest.mark.full
def test_many_models_taps_and_layers_stay_small_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", [[50, 60]])
    store, layers = (
        ArrayStore(folder),
        [
            f"blocks.{k}.{part}"
            for k in range(24)
            for part in ("qkv", "proj", "fc1", "fc2", "norm1")
        ],
    )
    names = {
        "client": np.arange(60),
        "level": np.arange(60) // 12,
        "name": np.array(["vit24"] * 60),
    }
    counts = histogram(np.random.default_rng(0).normal(0, 0.01, 3000))
    for number in range(1, 31):
        cka = {f"cka/block{k}": similarity(60, k) for k in range(24)}
        gradients = {
            "edges": edges(),
            **{f"{kind}/{layer}": counts for layer in layers for kind in ("clients", "update")},
        }
        store.keep(number, {"cka": cka | names, "gradients": gradients})
    path = write_run(folder)
    assert path.stat().st_size < 700_000
    text = path.read_text()
    assert (
        "20 of 60 models are shown" in text
        and "of 30 measured rounds are shown" in text
        and "24 of 120 layers are shown" in text
    )


def test_no_torch_and_no_matplotlib(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", [[50, 60]])
    code = (
        "import sys; from inco.report import write_run;"
        f" write_run(__import__('pathlib').Path({str(tmp_path / 'run')!r}))\n"
    )
    code += (
        "print(*[m for m in ('torch', 'matplotlib', 'hydra', 'wandb', 'scipy', 'rich') if m in"
        " sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


# Safety

EVIL = "<script>alert(1)</script>"


def test_text_is_escaped_unless_it_is_html() -> None:
    assert (
        html("<b>", tag("i", "a&b", title='"x"')) == '&lt;b&gt;<i title="&quot;x&quot;">a&amp;b</i>'
    )
    assert html(Html("<b>"), None, ["<", 1]) == "<b>&lt;1"
    assert tag("input", disabled=True, value=None, checked=False) == "<input disabled>"


def test_nothing_of_a_run_becomes_html(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "run",
        [[50, 60]],
        settings={"evil": EVIL, "nested": {EVIL: EVIL}},
        more={f"cka/{EVIL}": 0.5},
    )
    about = json.loads((folder / "about.json").read_text())
    about |= {
        "machine": {"cpu": EVIL, "limits": {EVIL: EVIL}, "gpu": [EVIL]},
        "git": {"commit": EVIL},
    }
    about |= {key: EVIL for key in ("name", "command", "digest")} | {
        "classes": [EVIL] * 3,
        "capacities": [EVIL, "large"],
    }
    about |= {
        "difference": [[EVIL, EVIL, EVIL]],
        "versions": {EVIL: EVIL},
        "choices": {"dataset": EVIL, "transform": EVIL},
    }
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "summary.json").write_text(
        json.dumps({"status": EVIL, "error": EVIL, "warnings": [EVIL]})
    )
    write_npz(
        folder / "partition.npz",
        {"counts": np.ones((2, 3), "int32"), "levels": np.array([0, 1]), "clients": np.array(2)},
    )
    pages = [write_run(folder), *write_comparison([Run(folder)], tmp_path / "out", EVIL)]
    for path in pages[:2]:
        text = path.read_text()
        assert "&lt;script&gt;alert(1)" in text
        assert EVIL not in text and text.count("<script") == 2 and text.count("</script>") == 2
    assert EVIL not in (tmp_path / "out/comparison.md").read_text()


def test_the_policy_allows_the_pages_own_code_alone(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = write_run(write_folder(tmp_path / "run", [[50, 60]])).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    code = re.findall(r"<script>(.*?)</script>", text, re.S)
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert len(code) == len(style) == 1
    for part in (*code, *style):
        assert base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() in policy[1]
    assert (
        "Copyright (c) 2022 Leon Sorokin" in text
        and " style=" not in text
        and " onclick" not in text
    )
    assert not re.search(r'(src|href)="(?!#|data:,")', text), "it asks for nothing"


# Groups and gains


def test_groups_gains_and_tables_by_hand(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", inco=[91.0, 93.0, 95.0], none=[90.0, 90.0, 96.0])
    found = groups.group(runs)
    assert [(one.label, len(one.runs)) for one in found] == [("inco", 3), ("none", 3)]
    assert groups.varying(found) == ["transform"], (
        "its class differs with the option, and says no more"
    )
    assert found[0].spread("test/acc") == (93.0, 2.0, 3) and found[1].spread("test/acc") == (
        92.0,
        pytest.approx(12**0.5),
        3,
    )
    last, best = groups.gains(found)
    assert (last.measure, best.measure) == ("last", "best") and last.by_seed == {
        0: 1.0,
        1: 3.0,
        2: -1.0,
    }
    assert last.spread == (1.0, 2.0, 3) and last.p == 0.75, (
        "sums 5, 3, 1 and their negatives, 3 twice: 6 of 8 reach 3"
    )
    paths = write_comparison(runs, tmp_path / "out", "My sweep")
    assert [p.name for p in paths] == [
        "comparison.html",
        "comparison.csv",
        "comparison_runs.csv",
        "comparison.md",
        "comparison.tex",
    ]
    markdown = (tmp_path / "out/comparison.md").read_text()
    assert markdown.startswith(
        "# My sweep\n\n| transform | n | last, % | best, % | small, % | large, % | parameters |"
        " FLOPs | wall time |\n"
    )
    assert (
        "| inco | 3 | **93.00 ± 2.00** | **93.00 ± 2.00** | **92.00 ± 2.00** | **94.00 ± 2.00** |"
        " 1.00M | 5.00M | 1:01 min |" in markdown
    )
    assert "| none | 3 | 92.00 ± 3.46 |" in markdown
    assert (
        "| inco | none | last | +1.00 (seed 0), +3.00 (seed 1), -1.00 (seed 2) | +1.00 ± 2.00 |"
        " 0.75 | n = 3: the smallest" in markdown
    )
    latex = (tmp_path / "out/comparison.tex").read_text()
    assert latex.startswith(
        "% needs \\usepackage{booktabs}\n\\begin{tabular}{lrrrrrrrr}\n\\toprule\ntransform & n &"
        " last, \\% & "
    )
    assert (
        r"none & 3 & $92.0 \pm 3.5$ &" in latex and r"inco & 3 & $\mathbf{93.0 \pm 2.0}$ &" in latex
    )


def test_csv_has_all_digits(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", inco=[91.0, 92.0], none=[90.0, 91.7])
    write_comparison(runs, tmp_path, "x")
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert (
        [row["transform"] for row in rows] == ["inco", "none"]
        and rows[0]["seeds"] == "0 1"
        and rows[0]["n"] == "2"
    )
    assert float(rows[0]["test/acc sd"]) == 0.5**0.5 and float(rows[1]["test/acc mean"]) == 90.85
    assert (
        float(rows[0]["gain last mean"]) == pytest.approx(0.65)
        and float(rows[0]["gain last p"]) == 0.5
        and rows[1]["gain last n"] == ""
    )
    each = list(csv.DictReader((tmp_path / "comparison_runs.csv").open()))
    assert [(row["run"], row["seed"], row["test/acc"], row["counted"]) for row in each][2:] == [
        ("none-s0", "0", "90.0", "True"),
        ("none-s1", "1", "91.7", "True"),
    ]


def test_one_run_a_group_has_no_deviation(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", inco=[91.0], none=[90.0])
    paths = write_comparison(runs, tmp_path, "x")
    text = {path.name: path.read_text() for path in paths}
    assert (
        "| inco | 1 | **91.00** |" in text["comparison.md"]
        and r"$\mathbf{91.0}$" in text["comparison.tex"]
    )
    assert "nan" not in text["comparison.csv"].lower() and "±" not in re.sub(
        r"mean ± standard", "", text["comparison.md"]
    )
    row = next(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert row["test/acc sd"] == "" and row["gain last sd"] == "" and row["gain last p"] == "1.0"
    assert all(
        "spread" not in series
        for series in page_data(tmp_path / "comparison.html")["charts"]["acc"]["series"]
    )


def test_unfinished_and_repeated_runs_are_shown_and_not_counted(tmp_path: Path) -> None:
    sweep(tmp_path / "runs", inco=[91.0, 93.0])
    write_folder(tmp_path / "runs/inco-s2", [[10, 12], [20, 22]], seed=2, status="interrupted")
    write_folder(tmp_path / "runs/inco-s3", [[10, 12], [20, 22]], seed=3, status=None)
    write_folder(tmp_path / "runs/inco-s1-again", [[10, 12], [20, 22]], seed=1)
    (one,) = groups.group(find([tmp_path / "runs"]))
    assert one.spread("test/acc") == (92.0, pytest.approx(2**0.5), 2)
    assert one.left_out == ["seed 1 repeated", "seed 2 interrupted", "seed 3 no end recorded"]
    write_comparison(one.runs, tmp_path, "x")
    text = (tmp_path / "comparison.html").read_text()
    assert (
        "Not in the means: 3 runs (g: seed 1 repeated, seed 2 interrupted, seed 3 no end recorded)"
        in text
    )
    assert page_data(tmp_path / "comparison.html")["charts"]["acc"]["series"][0]["y"] == [
        82,
        92,
    ], "of the counted runs alone"


def test_runs_of_other_length_are_another_group(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [[50, 50]] * 2, seed=0)
    write_folder(tmp_path / "b", [[50, 50]] * 3, seed=1)
    found = groups.group(find([tmp_path]))
    assert [one.label for one in found] == ["rounds=2", "rounds=3"]


def test_only_what_differs_is_a_column(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        for transform in ("inco", "none"):
            for rule in ("official", "theorem") if transform == "inco" else ("",):
                part = {"rule": rule} if rule else {}
                more = {"local": {"lr": lr, "betas": [0.9, 0.999]}, "transform": part}
                write_folder(
                    tmp_path / f"{transform}{rule}{lr}",
                    [[50, 50]],
                    transform=transform,
                    settings=more,
                )
    found = groups.group(find([tmp_path]))
    assert groups.varying(found) == ["transform", "local.lr", "transform.rule"]
    assert {one.label for one in found} == {
        "inco, lr=0.1, rule=official", "inco, lr=0.1, rule=theorem", "inco, lr=0.2, rule=official", "inco, lr=0.2, rule=theorem",
        "none, lr=0.1", "none, lr=0.2",
    }  # fmt: skip
    same = groups.common(found)
    assert (
        same["dataset"] == "digits"
        and same["local.betas"] == [0.9, 0.999]
        and "tracker" not in same
        and "local.lr" not in same
    )
    pairs = {(gain.group.label, gain.base.label) for gain in groups.gains(found)}
    assert len(pairs) == 4 and all(a.split(", ")[1] == b.split(", ")[1] for a, b in pairs), (
        "each against the base of its learning rate"
    )


def test_seeds_of_one_side_alone_are_no_pairs(tmp_path: Path) -> None:
    runs = sweep(tmp_path, inco=[91.0, 93.0, 95.0], none=[90.0])
    last, _ = groups.gains(groups.group(runs))
    assert last.by_seed == {0: 1.0} and last.spread.sd is None


def test_folders_without_about_json_are_grouped_by_their_settings(tmp_path: Path) -> None:
    for seed in (0, 1):
        for transform in ("inco", "none"):
            write_folder(
                tmp_path / f"{transform}{seed}",
                [[50, 50]],
                seed=seed,
                transform=transform,
                about=False,
            )
    found = groups.group(find([tmp_path]))
    assert [(one.label, len(one.runs)) for one in found] == [("inco", 2), ("none", 2)]
    assert groups.gains(found)[0].base.label == "none"
    (tmp_path / "bare1").mkdir()
    (tmp_path / "bare2").mkdir()
    for name in ("bare1", "bare2"):
        (tmp_path / name / "metrics.jsonl").write_text('{"round": 1, "test/acc": 5.0}\n')
    assert len(groups.group(find([tmp_path]))) == 4, (
        "runs that say nothing of themselves are not taken for one another's like"
    )


def test_curves_are_means_of_the_rounds_that_all_seeds_have(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", inco=[91.0, 93.0, 95.0])
    write_comparison(runs, tmp_path, "x")
    (series,) = page_data(tmp_path / "comparison.html")["charts"]["acc"]["series"]
    assert series["y"] == [83, 93] and series["spread"] == [2, 2] and series["name"] == "g"


def test_links_lead_to_the_reports(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", **{"inco": [91.0], "none": [90.0]})
    odd = write_folder(tmp_path / "runs/javascript:a b", [[50, 50]], seed=5)
    write_run(odd)
    write_run(runs[0].folder)
    write_comparison(find([tmp_path / "runs"]), tmp_path / "deep/out", "x")
    text = (tmp_path / "deep/out/comparison.html").read_text()
    assert (
        'href="../../runs/inco-s0/report.html"' in text
        and 'href="../../runs/javascript%3Aa%20b/report.html"' in text
    )
    assert "none-s0/report.html" not in text, "there is none"


def test_signs_of_a_format_are_written_out() -> None:
    assert (
        "a_b & 50% {x} $1 #2 ~^\\ <".translate(LATEX)
        == r"a\_b \& 50\% \{x\} \$1 \#2 \textasciitilde{}\textasciicircum{}\textbackslash{}"
        r" \textless{}"
    )
    head, _, row = Table("", ["a|b*c_d`<\n"], [["a|b*c_d`<\n"]]).markdown().splitlines()
    assert head == row == "| a\\|b\\*c\\_d\\`&lt;  |"


def test_no_runs_are_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runs to compare"):
        write_comparison([], tmp_path, "x")


# Filters


def test_filters(tmp_path: Path) -> None:
    runs = sweep(tmp_path, inco=[91.0, 92.0], none=[90.0])

    def names(*filters: str) -> list[str]:
        return [run.name for run in filtered(runs, filters)]

    assert names() == ["inco-s0", "inco-s1", "none-s0"]
    assert names("transform=inco", "seed=1") == ["inco-s1"] and names("seed=0", "seed=1") == [
        "inco-s0",
        "inco-s1",
        "none-s0",
    ]
    assert (
        names("local.lr=0.10")
        == names("local.betas=[0.9, 0.999]")
        == names("status=finished")
        == names()
    )
    with pytest.raises(ConfigError) as error:
        names("transform=fedprox")
    assert (
        str(error.value)
        == "--filter transform=fedprox: no run is left of 3; there are inco (2 runs), none (1 run)"
    )
    with pytest.raises(
        ConfigError, match="no run has a choice or setting transfrom; did you mean transform"
    ):
        names("transfrom=inco")
    with pytest.raises(ConfigError, match="--filter outputs: no =; write KEY=VALUE"):
        names("outputs")


# The command line


def report(cwd: Path, *arguments: str, browser: str = "") -> Any:
    """Type `python -m inco.report`, as a user would."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | ({"BROWSER": browser} if browser else {})
    command = [sys.executable, "-m", "inco.report", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env=env)


def test_command_for_one_run(tmp_path: Path) -> None:
    write_folder(tmp_path / "outputs/a", [[50, 60]])
    done = report(tmp_path, "outputs/a", "--open", browser="echo opened %s")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        "outputs/a/report.html" in lines
        and f"| large | 2.00M | {MISSING} | {MISSING} | {MISSING} | 60.00% | 60.00% |" in lines
    )
    assert f"opened {(tmp_path / 'outputs/a/report.html').resolve().as_uri()}" in lines
    assert (tmp_path / "outputs/a/report.html").exists()


def test_command_for_several(tmp_path: Path) -> None:
    sweep(tmp_path / "outputs", inco=[91.0, 92.0], none=[90.0])
    done = report(tmp_path, "outputs")
    assert done.returncode == 0, done.stderr
    assert (
        "outputs/comparison.html" in done.stdout.splitlines()
        and "outputs/inco-s0/report.html" in done.stdout.splitlines()
    )
    assert "| inco | 2 | **91.50 ± 0.71** |" in done.stdout
    assert 'href="inco-s0/report.html"' in (tmp_path / "outputs/comparison.html").read_text()
    elsewhere = report(tmp_path, "outputs", "--out", "here", "--filter", "transform=inco")
    assert (
        elsewhere.returncode == 0
        and (tmp_path / "here/comparison.tex").exists()
        and "none" not in elsewhere.stdout.split("Gain")[0]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "nowhere: no such folder"),
        (
            ["outputs", "--filter", "transform=x"],
            2,
            "no run is left of 3; there are inco (2 runs), none (1 run)",
        ),
        (["outputs/none-s0", "--out", "x"], 2, "leave --out out"),
        (["outputs", "--out", "file"], 74, "file"),
    ],
)
def test_command_with_mistakes(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    sweep(tmp_path / "outputs", inco=[91.0, 92.0], none=[90.0])
    (tmp_path / "file").write_text("in the way")
    done = report(tmp_path, *arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


def test_help_has_examples(tmp_path: Path) -> None:
    done = report(tmp_path, "--help")
    assert (
        done.returncode == 0
        and "--filter algorithm=fedprox partition.alpha=0.5" in done.stdout
        and "--open" in done.stdout
    )
