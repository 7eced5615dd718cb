"""The pages in a real browser: nothing is asked of the network, nothing overflows, every control
does what it says.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import CAPACITIES, edges, histogram, similarity, sweep, write_folder
from support import TINY

from inco.records.arrays import ArrayStore, write_npz
from inco.records.record import RunRecord
from inco.records.runs import find
from inco.report import write_comparison, write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="needs Chromium: chromium, chromium-browser or google-chrome on the PATH",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong on it: console errors, exceptions, dialogs, and requests for
    anything but its file.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1280, **context: Any) -> None:
        self.troubles: list[str] = []
        self.url = path.resolve().as_uri()
        self.page = browser.new_context(
            viewport={"width": width, "height": 800}, **context
        ).new_page()
        self.page.on(
            "console",
            lambda message: (
                self.troubles.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on(
            "dialog",
            lambda dialog: (self.troubles.append(f"dialog {dialog.message}"), dialog.dismiss()),
        )
        self.page.goto(self.url)

    def _asked(self, url: str) -> None:
        if url != self.url and not url.startswith("data:"):
            self.troubles.append(f"request for {url}")


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Open pages; at the end none of them may have had a trouble."""
    watched: list[Watched] = []

    def open_page(path: Path, **context: Any) -> Any:
        watched.append(Watched(browser, path, **context))
        return watched[-1].page

    yield open_page
    for one in watched:
        one.page.context.close()
        assert one.troubles == []


def measured_run(folder: Path, rounds: int = 6) -> Path:
    """Write a run with everything that a page can show, measured in every round."""
    layers = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    more = {
        f"{kind}/{layer}": 0.5 + k
        for k, layer in enumerate(layers)
        for kind in ("inco/theta", "inco/beta_positive", "gradients/norm")
    }
    write_folder(
        folder,
        [[10.0 * k, 12.0 * k] for k in range(1, rounds + 1)],
        more=more | {"cka/layer1": 0.5, "cka/layer2": 0.4},
    )
    for number in range(1, rounds + 1):
        measure(folder, number, layers)
    counts = np.random.default_rng(0).integers(0, 50, (12, 3)).astype("int32")
    write_npz(
        folder / "partition.npz",
        {"counts": counts, "levels": np.arange(12) // 6, "clients": np.array(12)},
    )
    return folder


def measure(folder: Path, number: int, layers: list[str]) -> None:
    """Write a round's arrays."""
    draw = np.random.default_rng(number)
    models = {
        "client": np.arange(6),
        "level": np.arange(6) // 3,
        "name": np.array([CAPACITIES[k // 3] for k in range(6)]),
    }
    counts = {
        f"{kind}/{layer}": histogram(draw.normal(0, 0.001 * number, 500))
        for layer in layers
        for kind in ("clients", "update")
    }
    cka = {"cka/layer1": similarity(6, number), "cka/layer2": similarity(6, number + 50)}
    ArrayStore(folder).keep(
        number, {"cka": cka | models, "gradients": {"edges": edges(), **counts}}
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A run's page and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    run = write_run(measured_run(root / "run"))
    runs = sweep(root / "sweep", inco=[91.0, 93.0, 95.0], none=[90.0, 90.0, 96.0])
    for one in runs:
        write_run(one.folder)
    return {"run": run, "comparison": write_comparison(runs, root / "sweep", "A sweep")[0]}


def overflow(page: Any) -> int:
    """Return by how many pixels the page is wider than the window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_are_quiet(opened, pages, kind: str, width: int, scheme: str) -> None:
    page = opened(pages[kind], width=width, color_scheme=scheme)
    page.wait_for_selector("canvas")
    assert overflow(page) <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    empty = page.evaluate(
        "[...document.querySelectorAll('.plot, .drawing')].filter(p => !p.querySelector('canvas,"
        " svg')).length"
    )
    assert empty == 0, "every figure is drawn"


def test_a_real_run_has_a_page(opened, type_command, tmp_path: Path) -> None:
    measured = (
        "diagnostics=cka",
        "diagnostics.every=1",
        "diagnostics.images=32",
        "diagnostics.batch=32",
    )
    done = type_command(
        *TINY,
        "transform=inco",
        "rounds=2",
        "engine.workers=1",
        "tracker=none",
        *measured,
        "hydra.run.dir=run",
    )
    assert done.returncode == 0, done.stderr
    page = opened(write_run(tmp_path / "run"))
    assert page.locator("h1 .badge").inner_text() == "✓ finished"
    ids = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert ids == [
        "accuracy",
        "capacities",
        "clients",
        "cka",
        "mixing",
        "gradients",
        "costs",
        "settings",
        "origin",
    ]
    assert (
        page.locator("#cka .maps svg").count() >= 1
        and page.locator("#settings").get_by_text("dataset.num_train").count() >= 1
    )


def test_the_slider_moves_the_maps_by_keyboard(opened, pages) -> None:
    page = opened(pages["run"])
    maps = page.locator("#cka .maps")
    before, told = maps.inner_html(), page.locator("#cka-told")
    assert told.inner_text() == "round 6 (6 of 6 shown)"
    page.locator("#cka-play").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "cka-round"
    page.keyboard.press("ArrowLeft")
    assert told.inner_text() == "round 5 (5 of 6 shown)" and maps.inner_html() != before
    assert page.locator("#cka-round").get_attribute("aria-valuetext") == "round 5"
    page.keyboard.press("ArrowRight")
    assert maps.inner_html() == before
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "who types sees where"


def test_play_goes_through_the_rounds(opened, pages) -> None:
    page = opened(pages["run"])
    before = page.locator("#gradients .maps").inner_html()
    page.click("#histograms-play")
    assert page.locator("#histograms-told").inner_text() == "round 1 (1 of 6 shown)", (
        "from the start, as it stood at the end"
    )
    assert page.locator("#histograms-play").get_attribute("aria-pressed") == "true"
    api.expect(page.locator("#histograms-told")).to_have_text(
        "round 3 (3 of 6 shown)", timeout=10_000
    )
    assert page.locator("#gradients .maps").inner_html() != before
    page.click("#histograms-play")
    assert page.locator("#histograms-play").inner_text() == "Play"


SHAPE = """([n, kind]) => {
  const map = DATA.maps.histograms;
  const shares = map.rounds[map.rounds.length - 1][kind][n], view = density(map, n), heights = view.heights(shares);
  const peak = heights.indexOf(Math.max(...heights));
  return {peak: (view.places[peak] + view.places[peak + 1]) / 2, tallest: Math.max(...heights),
    ordered: view.places.every((p, k, all) => !k || p > all[k - 1])};
}"""


def test_histograms_are_drawn_as_densities_or_by_the_logarithm(opened, pages) -> None:
    page = opened(pages["run"])
    drawing, readout = (
        page.locator("#gradients .maps"),
        page.locator("#gradients figure .readout").first,
    )
    before = drawing.inner_html()
    assert "99.5% lie within" in readout.inner_text()
    found = page.evaluate(SHAPE, [0, "clients"])
    assert found["ordered"] and 0.35 < found["peak"] < 0.65 and 0.1 < found["tallest"] <= 1, (
        "a bell around zero, of which the top is seen"
    )
    page.select_option("#histograms-scale", "log |x|")
    assert drawing.inner_html() != before and readout.inner_text().startswith("largest bin ")
    page.reload()
    assert page.locator("#histograms-scale").input_value() == "log |x|", "it is remembered"
    page.select_option("#histograms-scale", "density")
    assert drawing.inner_html() == before


def test_maps_say_what_is_under_the_pointer(opened, pages) -> None:
    page = opened(pages["run"])
    readout = page.locator("#cka figure .readout").first
    assert readout.inner_text().startswith("mean of pairs 0.")
    box = page.locator("#cka figure svg").first.bounding_box()
    page.locator("#cka figure svg").first.hover(position={"x": box["width"] * 0.45, "y": 8})
    assert readout.inner_text().startswith("small (client 0) and small (client")
    page.locator("#gradients .maps svg").first.hover(position={"x": 60, "y": 40})
    assert "clients" in page.locator("#gradients .maps .readout").first.inner_text()


def test_curves_can_be_hidden_chosen_and_scaled(opened, pages) -> None:
    page = opened(pages["run"])
    button = page.locator("#acc-chart .legend button").nth(1)
    assert button.inner_text().startswith("small")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    names = page.locator("#theta-chart .legend button span")
    assert names.first.inner_text() == "layer1 (mean of 3)"
    page.select_option("#theta-view", "layer2")
    assert names.all_inner_texts() == ["layer2.0.conv1", "layer2.1.conv1", "layer2.2.conv1"]
    picture = "document.querySelector('#loss-chart canvas').toDataURL()"
    before = page.evaluate(picture)
    page.check("#loss-log")
    assert page.evaluate(picture) != before
    page.reload()
    assert page.locator("#loss-log").is_checked() and names.first.inner_text() == "layer2.0.conv1"
    assert page.locator("#acc-chart .legend button").nth(1).get_attribute("aria-pressed") == "false"


def test_curves_tell_their_values(opened, pages) -> None:
    page = opened(pages["run"])
    legend = page.locator("#acc-chart .legend")
    assert (
        legend.locator(".where").inner_text() == "round 6"
        and legend.locator(".value").first.inner_text() == "66.00%"
    )
    box = page.locator("#acc-chart .u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert (
        legend.locator(".where").inner_text() == "round 1"
        and legend.locator(".value").first.inner_text() == "11.00%"
    )


def test_a_legend_has_the_last_value_that_there_is(opened, tmp_path: Path) -> None:
    folder = measured_run(tmp_path / "run")
    RunRecord(folder).append({"round": 7, "train/loss": 0.125})
    values = opened(write_run(folder)).locator("#loss-chart .legend .value")
    assert values.all_inner_texts() == ["0.125", "0.3333"], "training in round 7, test in round 6"


def test_figures_follow_the_colour_scheme(opened, pages) -> None:
    page = opened(pages["run"], color_scheme="light")
    line = page.locator("#acc-chart .legend line").nth(1)
    assert line.get_attribute("stroke") == "#0072b2"
    page.emulate_media(color_scheme="dark")
    api.expect(line).to_have_attribute("stroke", "#56b4e9")


def test_on_paper_all_is_open_and_light(opened, pages) -> None:
    page = opened(pages["run"], color_scheme="dark")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print", color_scheme="dark")
    api.expect(page.locator("details:not([open])")).to_have_count(0)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#cka-play").is_visible() and not page.locator("nav").is_visible()
    assert page.locator("#acc-chart .legend line").nth(1).get_attribute("stroke") == "#0072b2"
    page.emulate_media(media="screen")
    api.expect(page.locator("details[open]")).to_have_count(0)
    assert page.pdf(format="A4").startswith(b"%PDF")


def column(page: Any, table: str, k: int) -> list[str]:
    """Return the texts of a table's column, of the rows that are shown."""
    return page.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr:not([hidden])')].map(r =>"
        f" r.cells[{k}].innerText)"
    )


def test_tables_sort(opened, pages) -> None:
    page = opened(pages["comparison"])
    heads = page.locator("#runs-table thead th")
    last = heads.nth(5)
    assert last.get_attribute("aria-sort") == "none"
    last.locator("button").click()
    assert last.get_attribute("aria-sort") == "descending", "numbers: the largest first"
    assert column(page, "runs-table", 5) == [
        "96.00%",
        "95.00%",
        "93.00%",
        "91.00%",
        "90.00%",
        "90.00%",
    ]
    last.locator("button").press("Enter")
    assert (
        last.get_attribute("aria-sort") == "ascending"
        and column(page, "runs-table", 5)[0] == "90.00%"
    )
    heads.first.locator("button").press("Space")
    assert column(page, "runs-table", 0) == [
        f"{name}-s{seed}" for name in ("inco", "none") for seed in (0, 1, 2)
    ]
    assert (
        last.get_attribute("aria-sort") == "none"
        and heads.first.get_attribute("aria-sort") == "ascending"
    )


def test_tables_filter(opened, pages) -> None:
    page = opened(pages["comparison"])
    page.fill("#filter", "NONE finished")
    assert (
        column(page, "runs-table", 0) == ["none-s0", "none-s1", "none-s2"]
        and column(page, "groups-table", 0) == []
    )
    assert page.locator("#filter-told").inner_text() == "3 of 14 rows"
    page.fill("#filter", "")
    assert (
        len(column(page, "runs-table", 0)) == 6 and page.locator("#filter-told").inner_text() == ""
    )


def test_links_open_a_run(browser, pages) -> None:
    page = browser.new_context().new_page()
    page.goto(pages["comparison"].as_uri())
    page.click("text=inco-s1")
    assert page.locator("h1").inner_text().startswith("inco-s1")
    page.context.close()


def test_a_live_page_reloads_and_keeps_its_place(opened, tmp_path: Path) -> None:
    folder = measured_run(tmp_path / "run")
    page = opened(write_run(folder, live=True))
    assert page.locator("progress").get_attribute("value") == "6"
    page.click("nav a[href='#settings']")
    page.locator("#cka-round").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.select_option("#cka-scale", "the data's range")
    page.locator("#cka-round").focus()
    page.evaluate("scrollTo(0, 700)")
    RunRecord(folder).append({"round": 7, "test/acc": 99.0})
    measure(folder, 7, ["layer1.0.conv1"])
    with page.expect_event("load", timeout=20_000):
        write_run(folder, live=True)
    api.expect(page.locator("#cka-told")).to_have_text("round 2 (2 of 7 shown)")
    assert page.locator("#histograms-told").inner_text() == "round 7 (7 of 7 shown)", (
        "who looks at the last sees the new last"
    )
    assert (
        page.evaluate("scrollY") == 700
        and page.evaluate("document.activeElement.id") == "cka-round"
    )
    assert (
        page.locator("#cka-scale").input_value() == "the data's range"
        and "99.00%" in page.locator(".tiles").inner_text()
    )
    with page.expect_event("load", timeout=20_000):
        write_run(folder)
    assert page.locator("progress").count() == 0
    page.evaluate("window.mine = true")
    page.wait_for_timeout(6_000)
    assert page.evaluate("window.mine") is True, "a finished run's page stays"


def test_without_javascript_the_numbers_are_there(opened, pages) -> None:
    page = opened(pages["run"], java_script_enabled=False)
    assert (
        page.locator(".tiles").get_by_text("66.00%").first.is_visible()
        and page.locator("#capacities tfoot").is_visible()
    )


EVIL = "<script>alert(1)</script>"


def test_a_runs_name_is_no_program(opened, tmp_path: Path) -> None:
    folder = measured_run(tmp_path / "run")
    record = RunRecord(folder)
    about = {
        "name": EVIL,
        "command": EVIL,
        "classes": ["<img src=x onerror=alert(1)>"] * 3,
        "capacities": CAPACITIES,
    }
    record.write_about(
        about
        | {
            "difference": [[EVIL, EVIL, None]],
            "choices": {"transform": EVIL},
            "settings": {EVIL: EVIL},
        }
    )
    page = opened(write_run(folder))
    assert page.locator("h1").inner_text().startswith(EVIL)
    page.locator("#clients svg").hover(position={"x": 300, "y": 60})
    assert "<img src=x" in page.locator("#clients .readout").inner_text(), "shown, not run"
    page = opened(write_comparison(find([folder]), tmp_path / "out", EVIL)[0])
    assert page.locator("h1").inner_text() == EVIL


def test_the_policy_stops_what_slips_through(browser, pages, tmp_path: Path) -> None:
    """Were an escape missing, the browser would still not run it, nor ask for anything."""
    path = tmp_path / "spoilt.html"
    slipped = (
        "<main><script>document.title = 'taken'</script><img src=x onerror=\"document.title ="
        " 'taken'\"><img src='https://example.org/x.png'>"
    )
    path.write_text(pages["run"].read_text().replace("<main>", slipped, 1))
    one = Watched(browser, path)
    answered: list[str] = []
    one.page.on("requestfinished", lambda request: answered.append(request.url))
    one.page.reload()
    one.page.wait_for_timeout(300)
    assert one.page.title() != "taken" and one.page.locator("canvas").count() > 3
    assert [url for url in answered if not url.startswith("data:")] == [one.url], (
        "the others are blocked"
    )
    assert any("Content Security Policy" in trouble for trouble in one.troubles)
    one.page.context.close()
