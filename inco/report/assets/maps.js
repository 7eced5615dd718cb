"use strict";
// Maps of cells and histograms, as SVG in the size of their place; a slider goes through the measured rounds.

/** Draw cells [rows][columns] at (x, y); colour(i, j) is null for an empty one. Cells of one colour are one path. */
function cells(svg, x, y, width, height, rows, columns, colour) {
  const paths = new Map();
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const fill = colour(i, j);
      if (fill === null) continue;
      const path = `M${round2(x + j * width)} ${round2(y + i * height)}h${round2(width)}v${round2(height)}h${round2(-width)}z`;
      paths.set(fill, (paths.get(fill) || "") + path);
    }
  }
  for (const [fill, d] of paths) svg.append(make("svg:path", { d, fill, "shape-rendering": "crispEdges" }));
}

function round2(value) {
  return Math.round(value * 100) / 100;
}

/** An empty SVG of a size in place of what was drawn before. */
function canvas(host, width, height) {
  const svg = make("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  host.replaceChildren(svg);
  return svg;
}

function text(svg, x, y, words, anchor = "start", more = {}) {
  svg.append(make("svg:text", { x: round2(x), y: round2(y), "text-anchor": anchor, ...more }, words));
}

/** Neighbours with one name, as [name, first, count]. */
function runsOf(names) {
  const found = [];
  names.forEach((name, k) => {
    if (found.length && found[found.length - 1][0] === name) found[found.length - 1][2]++;
    else found.push([name, k, 1]);
  });
  return found;
}

/** Call back with the cell under the pointer, or null when it leaves. */
function watchCells(svg, x, y, width, height, rows, columns, onCell) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const [j, i] = [Math.floor((event.clientX - box.left - x) / width), Math.floor((event.clientY - box.top - y) / height)];
    onCell(i >= 0 && i < rows && j >= 0 && j < columns ? [i, j] : null);
  });
  svg.addEventListener("pointerleave", () => onCell(null));
}

/** Set up a slider over rounds; draw(k, whole) draws the k-th of them, and all that does not depend on it where `whole`. */
function setUpSlider(name, rounds, draw) {
  const slider = document.getElementById(`${name}-round`);
  const output = document.getElementById(`${name}-told`);
  const play = document.getElementById(`${name}-play`);
  const before = chosen[slider.id];
  const at = before === undefined || before === "last" ? -1 : rounds.findIndex((entry) => entry.round === before);
  if (at >= 0) slider.value = at;
  const show = (whole = false) => {
    const k = Number(slider.value);
    const words = `round ${rounds[k].round.toLocaleString("en-US")}`;
    output.textContent = `${words} (${k + 1} of ${rounds.length} shown)`;
    slider.setAttribute("aria-valuetext", words);
    draw(k, whole);
  };
  slider.addEventListener("input", () => {
    const k = Number(slider.value);
    keep(slider.id, k === rounds.length - 1 ? "last" : rounds[k].round); // the last stays the last while a run goes on
    show();
  });
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    playing.delete(name);
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  const step = () => {
    if (Number(slider.value) >= rounds.length - 1) return stop();
    slider.value = Number(slider.value) + 1;
    slider.dispatchEvent(new Event("input"));
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) >= rounds.length - 1) slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    playing.add(name);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(step, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1600 : 500);
  });
  redraws.push(() => show(true));
  show(true);
}
const playing = new Set();

/** Clients across and classes down; above them a bar for each client's total. */
function setUpPartition(figure) {
  const map = DATA.maps.partition;
  const host = figure.querySelector(".drawing");
  const readout = figure.querySelector(".readout");
  const most = Math.max(1, ...map.counts.flat());
  const rest = `Colours by the square root of the number: the brightest is ${most.toLocaleString("en-US")}; grey: none.`;
  const draw = () => {
    const [clients, classes] = [map.clients.length, map.classes.length];
    const width = widthOf(host);
    if (!width) return;
    const left = Math.min(110, 8 + Math.max(...map.classes.map((name) => textWidth(name.slice(0, 14)))));
    const [w, h] = [Math.min(64, (width - left) / clients), Math.max(4, Math.min(20, 420 / classes))];
    const [bars, gap, foot] = [44, 4, 20];
    const top = bars + gap;
    const svg = canvas(host, width, top + classes * h + foot);
    const largest = Math.max(1, ...map.totals);
    map.totals.forEach((total, j) => {
      const tall = (bars * total) / largest;
      svg.append(make("svg:rect", { x: round2(left + j * w + w * 0.1), y: round2(bars - tall), width: round2(w * 0.8), height: round2(tall), class: "bar" }));
    });
    svg.append(make("svg:rect", { x: left, y: top, width: round2(clients * w), height: classes * h, class: "empty" }));
    cells(svg, left, top, w, h, classes, clients, (i, j) => (map.counts[j][i] ? cividis(Math.sqrt(map.counts[j][i] / most)) : null));
    const every = Math.ceil(13 / h);
    map.classes.forEach((name, i) => i % every === 0 && text(svg, left - 5, top + (i + 0.5) * h + 4, name.slice(0, 14), "end"));
    let free = 0;
    for (const [name, first, count] of runsOf(map.capacities)) {
      const [from, to] = [left + first * w, left + (first + count) * w];
      if (first) svg.append(make("svg:line", { x1: from, x2: from, y1: 0, y2: top + classes * h, class: "cut" }));
      if (from >= free && textWidth(name) < to - from - 2 || (from >= free && from + textWidth(name) < width)) {
        text(svg, from + 2, top + classes * h + 14, name);
        free = from + textWidth(name) + 8;
      }
    }
    watchCells(svg, left, top, w, h, classes, clients, (cell) => {
      const [i, j] = cell || [];
      readout.textContent = !cell ? rest : `client ${map.clients[j]} (${map.capacities[j]}), class ${map.classes[i]}: `
        + `${map.counts[j][i].toLocaleString("en-US")} of its ${map.totals[j].toLocaleString("en-US")} examples`;
    });
    readout.textContent = rest;
  };
  redraws.push(draw);
  draw();
  onWidth(host, draw);
}

/** Put the upper triangle of a symmetric matrix back into rows. */
function square(upper, size) {
  const rows = Array.from({ length: size }, () => new Array(size).fill(null));
  let k = 0;
  for (let i = 0; i < size; i++) for (let j = i; j < size; j++) rows[i][j] = rows[j][i] = upper[k++];
  return rows;
}

/** One map a layer: how alike every two models are, models in the order of their capacities. */
function setUpCka(box) {
  const map = DATA.maps.cka;
  const frames = [...box.querySelectorAll("figure")];
  const scale = document.getElementById("cka-scale");
  let at = map.rounds.length - 1;
  const range = () => {
    if (scale.value === "0 to 1") return [0, 1000];
    const off = map.rounds.flatMap((entry) => Object.values(entry.cka)).flat().filter((v) => v !== null);
    return [Math.min(...off), Math.max(...off)];
  };
  const draw = (k) => {
    at = k;
    const limits = range();
    frames.forEach((figure, n) => drawSimilarity(figure, map.rounds[k], map.taps[n], limits));
    drawScale(box.querySelector(".scale"), limits);
  };
  remember(scale, () => draw(at));
  setUpSlider("cka", map.rounds, draw);
  onWidth(frames[0], () => draw(at));
}

function drawSimilarity(figure, entry, tap, [low, high]) {
  const host = figure.querySelector(".drawing");
  const readout = figure.querySelector(".readout");
  const size = entry.names.length;
  const upper = entry.cka[tap];
  const width = widthOf(host);
  if (!width) return;
  if (!upper) return host.replaceChildren("not measured in this round");
  const rows = square(upper, size);
  const left = Math.min(96, 8 + Math.max(...entry.names.map((name) => textWidth(name))));
  const side = Math.min((width - left) / size, 32);
  const svg = canvas(host, width, size * side + 2);
  svg.append(make("svg:rect", { x: left, y: 0, width: round2(size * side), height: round2(size * side), class: "empty" }));
  cells(svg, left, 0, side, side, size, size, (i, j) => (rows[i][j] === null ? null : cividis((rows[i][j] - low) / (high - low || 1))));
  for (const [name, first, count] of runsOf(entry.names)) {
    if (first) {
      const [cut, end] = [first * side, size * side];
      svg.append(make("svg:line", { x1: left, x2: left + end, y1: cut, y2: cut, class: "cut" }));
      svg.append(make("svg:line", { x1: left + cut, x2: left + cut, y1: 0, y2: end, class: "cut" }));
    }
    text(svg, left - 5, (first + count / 2) * side + 4, name, "end");
  }
  const who = (k) => `${entry.names[k]}${entry.clients[k] < 0 ? "" : ` (client ${entry.clients[k]})`}`;
  const pairs = rows.flatMap((row, i) => row.filter((v, j) => j > i && v !== null));
  const mean = pairs.length ? pairs.reduce((a, b) => a + b, 0) / pairs.length / 1000 : null;
  const rest = pairs.length ? `mean of pairs ${told(mean)}, lowest ${told(Math.min(...pairs) / 1000)}` : "no pair of models has it";
  watchCells(svg, left, 0, side, side, size, size, (cell) => {
    readout.textContent = cell ? `${who(cell[0])} and ${who(cell[1])}: ${rows[cell[0]][cell[1]] === null ? "none" : rows[cell[0]][cell[1]] / 1000}` : rest;
  });
  host.setAttribute("aria-label", `Map of ${size} by ${size} models at ${tap}, round ${entry.round}: ${rest}`);
  readout.textContent = rest;
}

/** The colours and what they stand for. */
function drawScale(host, [low, high]) {
  const svg = canvas(host, 240, 30);
  cells(svg, 0, 2, 240 / 48, 10, 1, 48, (i, j) => cividis(j / 47));
  text(svg, 0, 26, String(low / 1000));
  text(svg, 120, 26, "CKA", "middle");
  text(svg, 240, 26, String(high / 1000), "end");
}
