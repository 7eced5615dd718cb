"use strict";
// What all parts of a page share: its data, its colours, what a reader has chosen, and small helpers.

const DATA = JSON.parse(document.getElementById("data").textContent);

// Okabe and Ito's colours, but for the one that is too faint on the background; lines differ in their dashes as well.
const ON_WHITE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const ON_BLACK = ["#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#f0e442"];
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
const CIVIDIS = ["#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#61656f", "#6f7073", "#7d7c78",
  "#8c8878", "#9b9476", "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846", "#fee838"];

/** The value of a CSS variable, as it is in the present colour scheme. */
function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Colour and dashes of the k-th line; -1 is the bold one, in the colour of text. */
function lineStyle(k) {
  if (k < 0) return { colour: css("--ink"), dash: [] };
  const colours = css("--dark") ? ON_BLACK : ON_WHITE;
  return { colour: colours[k % colours.length], dash: DASHES[(k + Math.floor(k / colours.length)) % DASHES.length] };
}

/** A colour of the cividis map for t from 0 to 1, in 64 steps, so that equal cells can be drawn as one path. */
function cividis(t) {
  const at = (Math.round(Math.min(1, Math.max(0, t)) * 63) / 63) * (CIVIDIS.length - 1);
  const low = Math.min(CIVIDIS.length - 2, Math.floor(at));
  const mix = (k) => {
    const [a, b] = [CIVIDIS[low], CIVIDIS[low + 1]].map((hex) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16));
    return Math.round(a + (b - a) * (at - low));
  };
  return `rgb(${mix(0)},${mix(1)},${mix(2)})`;
}

/** A number as people write it: 4 digits, and large ones short. */
function told(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return value.toFixed(2) + "%";
  if (unit === "round") return value.toLocaleString("en-US");
  const [size, letter] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => Math.abs(value) >= s) || [1, ""];
  if (unit === "B") return `${Number((value / size).toPrecision(3))} ${letter}B`;
  const text = Math.abs(value) >= 1e5 ? Number((value / size).toPrecision(4)) + letter
    : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return unit ? `${text} ${unit}` : text;
}

/** Make an element; of SVG where the name starts with "svg:". Text is set as text, never as HTML. */
function make(name, attributes = {}, ...children) {
  const svg = name.startsWith("svg:");
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// What a reader has chosen survives a reload: sliders, scales, views, open sections, the scroll position and the focus.
const KEPT = "inco:" + location.pathname;
let chosen = {};
try {
  chosen = JSON.parse(sessionStorage.getItem(KEPT)) || {};
} catch {
  chosen = {}; // storage may be forbidden, or hold what another program has left there
}

function keep(key, value) {
  chosen[key] = value;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(chosen));
  } catch {
    // a page that cannot remember works all the same
  }
}

/** Give a control its kept value, and keep what it is changed to. */
function remember(control, onChange) {
  const field = control.type === "checkbox" ? "checked" : "value";
  const before = chosen[control.id];
  const known = control.tagName !== "SELECT" || [...control.options].some((option) => option.value === before);
  if (before !== undefined && known) control[field] = before;
  control.addEventListener("input", () => {
    keep(control.id, control[field]);
    onChange();
  });
}

let printing = false;

/** The width to draw at. While the page is printed it still has the screen's layout: then that of figures.css on A4 or Letter. */
function widthOf(host) {
  if (!printing) return host.clientWidth;
  if (host.closest(".maps")) return 200;
  return host.closest(".figures > :not(:only-child)") ? 320 : 640;
}

/** Call back when an element has another width: its height follows from what is drawn in it. */
function onWidth(element, callback) {
  let width = element.clientWidth;
  new ResizeObserver(() => {
    if (printing || element.clientWidth === width) return;
    width = element.clientWidth;
    callback();
  }).observe(element);
}

const redraws = []; // called where colours or sizes change
function redrawAll() {
  for (const redraw of redraws) redraw();
}
