"use strict";
// Sets everything up, follows the colour scheme and the printer, and reloads the page of a run that goes on.

const RELOAD_MS = 5000;

for (const details of document.querySelectorAll("details[id]")) {
  if (chosen[details.id + "-open"] !== undefined) details.open = chosen[details.id + "-open"];
  details.addEventListener("toggle", () => printing || keep(details.id + "-open", details.open));
}
for (const table of document.querySelectorAll("table[data-sortable]")) setUpSorting(table);
for (const box of document.querySelectorAll("input[type=search]")) setUpFilter(box);
for (const button of document.querySelectorAll("[data-copy]")) setUpCopy(button);
for (const figure of document.querySelectorAll("[data-chart]")) setUpChart(figure);
const maps = { partition: setUpPartition, cka: setUpCka, histograms: setUpHistograms };
for (const box of document.querySelectorAll("[data-map]")) maps[box.dataset.map](box);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

// On paper: light, everything open, and curves as wide as the paper.
let opened = [];
function print(begins) {
  if (begins === printing) return;
  printing = begins;
  document.documentElement.classList.toggle("print", begins);
  if (begins) {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  } else {
    for (const details of opened) details.open = false;
  }
  redrawAll();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));
matchMedia("print").addEventListener("change", (event) => print(event.matches));

// A reload, by hand or by itself, comes back to the same place.
history.scrollRestoration = "manual";
if (chosen.scroll && !location.hash) scrollTo({ top: chosen.scroll, behavior: "instant" });
if (chosen.focus && document.getElementById(chosen.focus)) document.getElementById(chosen.focus).focus({ preventScroll: true });
addEventListener("scroll", () => keep("scroll", scrollY), { passive: true });
addEventListener("focusin", (event) => keep("focus", event.target.id || null));

if (DATA.live) {
  // a section in the address would win over the place that the reader has scrolled to since
  addEventListener("hashchange", () => location.hash && history.replaceState(null, "", location.pathname + location.search));
  let held = false;
  addEventListener("pointerdown", () => (held = true));
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => (held = false));
  setInterval(() => {
    const selecting = getSelection() && !getSelection().isCollapsed;
    if (!document.hidden && !held && !playing.size && !printing && !selecting) location.reload();
  }, RELOAD_MS);
}
