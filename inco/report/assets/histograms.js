"use strict";
// Histograms of updates, one a layer: clients' deltas as an area, the server's update as a line. Bins come equally wide in log |x|, on both sides of
// one around zero; they are drawn as a density over x, or as they are.

const HIGH = 84; // of a drawing, in pixels, and what is below it
const FOOT = 18;
const TAIL = 0.005; // share of entries that may lie beyond the ends of the density's axis
const SEEN = 25; // a bin narrower than this part of the axis is joined to its neighbours: few entries, and much noise

function setUpHistograms(box) {
  const map = DATA.maps.histograms;
  const frames = [...box.querySelectorAll("figure")];
  const scale = document.getElementById("histograms-scale");
  const views = { density: map.layers.map((_, n) => density(map, n)), "log |x|": map.layers.map((_, n) => logarithmic(map, n)) };
  let at = map.rounds.length - 1;
  const draw = (k) => {
    at = k;
    frames.forEach((figure, n) => drawHistogram(figure, views[scale.value][n], map, k, n));
  };
  remember(scale, () => draw(at));
  setUpSlider("histograms", map.rounds, draw);
  onWidth(frames[0], () => draw(at));
}

/** Every histogram of a layer, over rounds and of both kinds. */
function ofLayer(map, n) {
  return map.rounds.flatMap((entry) => [entry.clients[n], entry.update[n]]).filter((shares) => shares);
}

/** How a layer is drawn with bins as they are: their places from 0 to 1, heights, ticks and words. */
function logarithmic(map, n) {
  const bins = 2 * (map.edges.length - 1) + 1;
  const top = Math.max(1, ...ofLayer(map, n).flat());
  return {
    places: Array.from({ length: bins + 1 }, (_, k) => k / bins),
    heights: (shares) => shares.map((v) => v / top),
    ticks: (svg, width) => drawTicks(svg, map.edges, width / bins, HIGH),
    rest: `largest bin ${told(top / 100)}%`,
    words: (k, shares) => `${binWords(map.edges, k)}: ${shares.map(([who, s]) => `${who} ${s ? (s[k] / 100).toFixed(2) + "%" : "none"}`).join(", ")}`,
  };
}

/** How a layer is drawn as a density over x: bins of a width that can be seen, heights in shares by width. */
function density(map, n) {
  const side = map.edges.length - 1;
  const all = ofLayer(map, n);
  const beyond = (shares, k) => shares.slice(0, side - k).concat(shares.slice(side + 1 + k)).reduce((a, b) => a + b, 0);
  let reach = 1;
  while (reach < side && all.some((shares) => beyond(shares, reach) > TAIL * 10_000)) reach++;
  const limit = map.edges[reach];
  const cuts = [0]; // of edges on the positive side, the first bin reaching over zero
  while (cuts[0] < reach - 1 && map.edges[cuts[0]] < limit / (2 * SEEN)) cuts[0]++;
  for (let k = cuts[0] + 1; k <= reach; k++) if (map.edges[k] - map.edges[cuts[cuts.length - 1]] >= limit / SEEN || k === reach) cuts.push(k);
  const edges = [...cuts.map((k) => -map.edges[k]).reverse(), ...cuts.map((k) => map.edges[k])];
  const starts = [...cuts.map((k) => side - k).reverse(), ...cuts.map((k) => side + 1 + k)];
  const sum = (shares, k) => shares.slice(starts[k], starts[k + 1]).reduce((a, b) => a + b, 0);
  const heights = (shares) => edges.slice(1).map((edge, k) => sum(shares, k) / (edge - edges[k]));
  const top = Math.max(1e-12, ...all.flatMap(heights));
  return {
    places: edges.map((edge) => (edge + limit) / (2 * limit)),
    heights: (shares) => heights(shares).map((v) => v / top),
    ticks: (svg, width) => drawEvenTicks(svg, limit, width),
    rest: `${100 * (1 - TAIL)}% lie within ±${told(limit)}`,
    words: (k, shares) => `${told(edges[k])} to ${told(edges[k + 1])}: ${shares.map(([who, s]) => `${who} ${s ? (sum(s, k) / 100).toFixed(2) + "%" : "none"}`).join(", ")}`,
  };
}

function drawHistogram(figure, view, map, round, n) {
  const host = figure.querySelector(".drawing");
  const readout = figure.querySelector(".readout");
  const width = widthOf(host);
  if (!width) return;
  const entry = map.rounds[round];
  const shares = [["clients", entry.clients[n]], ["update", entry.update[n]]];
  const svg = canvas(host, width, HIGH + FOOT);
  const xs = view.places.map((place) => round2(place * width));
  const outline = (of) => view.heights(of).map((v, k) => `${k ? "L" : "M"}${xs[k]} ${round2(HIGH - v * (HIGH - 4))}H${xs[k + 1]}`).join("");
  if (entry.clients[n]) svg.append(make("svg:path", { d: `${outline(entry.clients[n])}V${HIGH}H0z`, class: "clients" }));
  svg.append(make("svg:line", { x1: 0, x2: width, y1: HIGH + 0.5, y2: HIGH + 0.5, class: "axis" }));
  if (entry.update[n]) svg.append(make("svg:path", { d: outline(entry.update[n]), class: "update" }));
  view.ticks(svg, width);
  if (!entry.clients[n] && !entry.update[n]) text(svg, width / 2, HIGH / 2, "nobody sent it", "middle");
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    const k = xs.findIndex((_, i) => x >= xs[i] && x < xs[i + 1]);
    readout.textContent = k < 0 ? view.rest : view.words(k, shares);
  });
  svg.addEventListener("pointerleave", () => (readout.textContent = view.rest));
  host.setAttribute("aria-label", `Histogram of ${map.layers[n]}, round ${entry.round}: ${view.rest}`);
  readout.textContent = view.rest;
}

/** Marks at zero and at one round number on both sides. */
function drawEvenTicks(svg, limit, width) {
  const step = 10 ** Math.floor(Math.log10(limit));
  const mark = step * ([5, 2, 1].find((m) => m * step <= 0.8 * limit) || 0.5);
  for (const value of [-mark, 0, mark]) {
    const x = ((value + limit) / (2 * limit)) * width;
    svg.append(make("svg:line", { x1: x, x2: x, y1: HIGH, y2: HIGH + 4, class: "axis" }));
    text(svg, x, HIGH + 14, value === 0 ? "0" : told(value), "middle");
  }
}

/** The values that a bin stands for, in words. */
function binWords(edges, bin) {
  const side = edges.length - 1;
  if (bin === side) return `below ${edges[0].toExponential(0)} in size`;
  const sign = bin < side ? "−" : "";
  const k = bin < side ? side - 1 - bin : bin - side - 1;
  return `${sign}${edges[k].toExponential(1)} to ${sign}${edges[k + 1].toExponential(1)}`;
}

/** Marks at zero and at powers of ten on both sides, as many as there is room for. */
function drawTicks(svg, edges, w, y) {
  const side = edges.length - 1;
  const powers = edges.map((edge, k) => [k, Math.log10(edge)]).filter(([, p]) => Math.abs(p - Math.round(p)) < 0.01);
  text(svg, (side + 0.5) * w, y + 14, "0", "middle");
  const room = 40;
  let last = (side + 0.5) * w - 8; // the 0 is narrow
  for (const [k, power] of powers) {
    const x = (side + 1 + k) * w;
    for (const at of [x, (side - k) * w]) svg.append(make("svg:line", { x1: at, x2: at, y1: y, y2: y + 4, class: "axis" }));
    if (x - last < room || x + 16 > (2 * side + 1) * w) continue;
    last = x;
    text(svg, x, y + 14, `1e${Math.round(power)}`, "middle");
    text(svg, (side - k) * w, y + 14, `−1e${Math.round(power)}`, "middle");
  }
}
