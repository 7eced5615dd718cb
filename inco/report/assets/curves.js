"use strict";
// Curves, by uPlot: bands, labels at the ends of lines, and a legend of buttons.

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';
const LABEL = 130; // the widest label at the end of a line, in pixels

/** Draw a chart of DATA.charts in its figure, and again whenever something it depends on changes. */
function setUpChart(figure) {
  const name = figure.dataset.chart;
  const spec = DATA.charts[name];
  const host = figure.querySelector(".plot");
  const [view, log] = ["view", "log"].map((what) => document.getElementById(`${name}-${what}`));
  const hidden = new Set(chosen[name + "-hidden"] || []);
  let plot = null;
  const draw = () => {
    const width = widthOf(host);
    if (!width) return;
    if (plot) plot.destroy();
    host.style.height = `${heightOf(width)}px`; // uPlot takes its place a moment later: the page must not grow then
    const lines = spec.series.filter((line) => !view || line.view === view.value);
    const below = [...lines].sort((a, b) => Boolean(a.bold) - Boolean(b.bold)); // the bold line is drawn over the others
    const logarithmic = Boolean(log && log.checked);
    plot = new uPlot(options(spec, below, width, logarithmic, hidden, (u) => showValues(figure, u, lines, spec)), columns(spec, below, logarithmic), host);
    drawLegend(figure.querySelector(".legend"), plot, lines, spec, (line, off) => {
      if (off) hidden.add(line.name);
      else hidden.delete(line.name);
      keep(name + "-hidden", [...hidden]);
    });
  };
  for (const control of [view, log]) if (control) remember(control, draw);
  redraws.push(draw);
  draw();
  onWidth(host, draw);
}

function heightOf(width) {
  return width > 420 ? 270 : 220;
}

/** The columns for uPlot: x, and for each line its values, and the upper and lower edge of its band. */
function columns(spec, lines, log) {
  const clean = (values) => (log ? values.map((v) => (v === null || v <= 0 ? null : v)) : values);
  const found = [spec.x];
  for (const line of lines) {
    found.push(clean(line.y));
    if (!line.spread) continue;
    const edge = (sign) => line.y.map((v, k) => (v === null || line.spread[k] === null ? null : v + sign * line.spread[k]));
    found.push(clean(edge(1)), clean(edge(-1)));
  }
  return found;
}

/** What uPlot is told; `lines` in the order in which they are drawn. */
function options(spec, lines, width, log, hidden, onMove) {
  const labelled = lines.length > 1 && lines.length <= 8 && width > 420;
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const { colour, dash } = lineStyle(line.style);
    const show = !hidden.has(line.name);
    line.at = series.length;
    series.push({ show, stroke: colour, dash, width: line.bold ? 2.5 : 1.5, spanGaps: true, points: { show: line.y.length < 2 } });
    if (line.spread) {
      series.push({ show, stroke: "transparent", points: { show: false } }, { show, stroke: "transparent", points: { show: false } });
      bands.push({ series: [line.at + 1, line.at + 2], fill: translucent(colour) });
    }
  }
  const right = labelled ? 24 + Math.min(LABEL, Math.max(...lines.map((line) => textWidth(line.name, line.bold)))) : spec.xUnit === "B" ? 30 : 12;
  return {
    width,
    height: heightOf(width),
    padding: [10, right, 0, 0],
    legend: { show: false },
    cursor: { points: { size: 7 }, y: false },
    scales: { x: { time: false, range: spanned }, y: { distr: log ? 3 : 1 } },
    axes: [axis(spec.xUnit, false, true), axis(spec.unit, log, false)],
    series,
    bands,
    hooks: {
      drawClear: [(u) => spec.reference !== null && drawReference(u, spec.reference)],
      draw: [(u) => labelled && drawEnds(u, lines)],
      setCursor: [onMove],
    },
  };
}

/** The range of x: that of the data, and room around a single point. */
function spanned(u, low, high) {
  return low === high ? [low - 1, high + 1] : [low, high];
}

function axis(unit, log, across) {
  const given = {
    stroke: css("--muted"),
    font: FONT,
    grid: { stroke: css("--line"), width: 1 },
    ticks: { stroke: css("--line"), width: 1, size: 4 },
    values: (u, ticks) => ticks.map((v) => (v === null ? null : unit === "%" ? String(v) : told(v, unit))),
  };
  if (unit === "round") given.incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
  if (across) given.space = unit === "B" ? 70 : 50;
  given.size = across ? 28 : (u, values) => 14 + Math.max(16, ...(values || []).map((v) => textWidth(v || "")));
  if (log) given.filter = (u, ticks) => ticks.map((v) => ([1, 2, 5].includes(Math.round(v / 10 ** Math.floor(Math.log10(v) + 1e-9))) ? v : null));
  return given;
}

const measure = document.createElement("canvas").getContext("2d");
/** A text cut to the room that there is for a label. */
function shortened(text, bold) {
  if (textWidth(text, bold) <= LABEL) return text;
  let end = text.length;
  while (end > 1 && textWidth(text.slice(0, end) + "…", bold) > LABEL) end--;
  return text.slice(0, end) + "…";
}

function textWidth(text, bold = false) {
  measure.font = (bold ? "600 " : "") + FONT;
  return Math.ceil(measure.measureText(text).width);
}

function translucent(colour) {
  if (!colour.startsWith("#")) return "rgba(128,128,128,0.18)";
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
  return `rgba(${r},${g},${b},0.18)`;
}

/** A dashed level across the plot, where it is in sight. */
function drawReference(u, level) {
  const y = u.valToPos(level, "y", true);
  if (!(y >= u.bbox.top && y <= u.bbox.top + u.bbox.height)) return;
  stroke(u.ctx, [[u.bbox.left, y], [u.bbox.left + u.bbox.width, y]], css("--muted"), [3, 3], 1);
}

/** Write each line's name at its end; names that would overlap are moved apart, and joined to their line. */
function drawEnds(u, lines) {
  const ratio = devicePixelRatio;
  const ends = [];
  for (const line of lines) {
    let k = line.y.length - 1;
    while (k >= 0 && line.y[k] === null) k--;
    if (k >= 0 && u.series[line.at].show) ends.push({ line, x: u.valToPos(u.data[0][k], "x", true), y: u.valToPos(line.y[k], "y", true) });
  }
  ends.sort((a, b) => a.y - b.y);
  const gap = 14 * ratio;
  const floor = u.bbox.top + u.bbox.height;
  ends.forEach((end, k) => (end.at = Math.max(end.y, k ? ends[k - 1].at + gap : u.bbox.top)));
  for (let k = ends.length - 1; k >= 0; k--) {
    const most = k === ends.length - 1 ? floor : ends[k + 1].at - gap;
    ends[k].at = Math.min(ends[k].at, most);
  }
  const edge = u.bbox.left + u.bbox.width;
  for (const { line, x, y, at } of ends) {
    const { colour, dash } = lineStyle(line.style);
    stroke(u.ctx, [[x + 3 * ratio, y], [edge + 3 * ratio, y], [edge + 14 * ratio, at]], colour, dash.map((d) => (d * ratio) / 2), ratio);
    u.ctx.fillStyle = css("--ink");
    u.ctx.font = (line.bold ? "600 " : "") + FONT.replace("12px", 12 * ratio + "px");
    u.ctx.textAlign = "left";
    u.ctx.textBaseline = "middle";
    u.ctx.fillText(shortened(line.name, line.bold), edge + 17 * ratio, at);
  }
}

function stroke(ctx, points, colour, dash, width) {
  ctx.save();
  ctx.beginPath();
  points.forEach(([x, y], k) => (k ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.setLineDash(dash);
  ctx.stroke();
  ctx.restore();
}

/** A button a line, that shows and hides it; in it the line's value under the cursor, or else the last. */
function drawLegend(host, plot, lines, spec, onToggle) {
  host.replaceChildren(make("span", { class: "where" }));
  for (const line of lines) {
    const { colour, dash } = lineStyle(line.style);
    const mark = make("svg:svg", { width: 22, height: 8, "aria-hidden": "true" },
      make("svg:line", { x1: 0, y1: 4, x2: 22, y2: 4, stroke: colour, "stroke-width": line.bold ? 3 : 2, "stroke-dasharray": dash.join(" ") }));
    const button = make("button", { type: "button", "aria-pressed": String(plot.series[line.at].show) },
      mark, make("span", {}, line.name), make("b", { class: "value" }));
    button.addEventListener("click", () => {
      const show = !plot.series[line.at].show;
      for (let k = 0; k < (line.spread ? 3 : 1); k++) plot.setSeries(line.at + k, { show });
      button.setAttribute("aria-pressed", String(show));
      onToggle(line, !show);
    });
    host.append(button);
  }
  showValues(host.closest("figure"), plot, lines, spec);
}

function showValues(figure, plot, lines, spec) {
  const legend = figure.querySelector(".legend");
  const under = plot.cursor.idx;
  const hovering = under !== null && under !== undefined && plot.cursor.left >= 0;
  const k = hovering ? under : spec.x.length - 1;
  const where = legend.querySelector(".where");
  if (!where) return;
  where.textContent = spec.xUnit === "round" ? `round ${told(spec.x[k], "round")}` : told(spec.x[k], spec.xUnit);
  legend.querySelectorAll(".value").forEach((value, n) => {
    if (!lines[n]) return;
    let at = k;
    while (!hovering && at > 0 && lines[n].y[at] === null) at--; // not every number is there in the last round
    const spread = lines[n].spread && lines[n].spread[at] ? ` ± ${told(lines[n].spread[at], spec.unit)}` : "";
    value.textContent = told(lines[n].y[at], spec.unit) + spread;
  });
}
