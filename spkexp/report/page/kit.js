// What all charts are made of: elements, scales, axes, marks, legends. No chart is drawn here.

const content = JSON.parse(document.getElementById("content").textContent);
const METRICS = new Map(content.metrics.map((metric) => [metric.key, metric]));
const state = { drawn: new Set() }; // numbers of the rows that are ticked
const charts = new Map(); // name -> {draw(width) -> {svg, points, label}, table() -> {columns, rows}}

// The six colours are those of Okabe and Ito (c0 to c5 in page.css); marks tell them apart without colour, and dashes
// tell the seventh row from the first.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2", "1 2"];
// A cross of five squares with sides of s.
const cross = (s) => `M${-s / 2} ${-1.5 * s}h${s}v${s}h${s}v${s}h${-s}v${s}h${-s}v${-s}h${-s}v${-s}h${s}z`;
const SHAPES = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  (r) => `M${-r * 0.9} ${-r * 0.9}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  (r) => `M0 ${-r * 1.2}L${r * 1.15} ${r * 0.85}H${-r * 1.15}z`,
  (r) => `M0 ${-r * 1.3}L${r * 1.3} 0L0 ${r * 1.3}L${-r * 1.3} 0z`,
  (r) => `M0 ${r * 1.2}L${r * 1.15} ${-r * 0.85}H${-r * 1.15}z`,
  (r) => cross(r * 0.8),
];
const FONT = 12.5;

const dash = (row) => DASHES[Math.floor(row / 6) % DASHES.length];
const known = (value) => value !== null && value !== undefined;
const ranked = () => content.rows.map((row, index) => index).filter((index) => content.rows[index].missing === null);
const drawn = () => ranked().filter((index) => state.drawn.has(index));
const name = (row) => content.rows[row].name;

// An element, of HTML or (svg) of SVG. Texts become text nodes, never markup, whatever a run is called.
function make(namespace, tag, attributes, children) {
  const element = document.createElementNS(namespace, tag);
  for (const [key, value] of Object.entries(attributes ?? {})) if (known(value)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const html = (tag, attributes, ...children) => make("http://www.w3.org/1999/xhtml", tag, attributes, children);
const svg = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);

function marker(row, x, y, radius = 4.5) {
  const shape = SHAPES[(row + Math.floor(row / 6)) % SHAPES.length];
  return svg("path", { d: shape(radius), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, class: "mark" });
}

// A group of what belongs to a row: it has the row's colour and lights up with it.
const ofRow = (row, ...children) => svg("g", { class: `c${row % 6}`, "data-row": row }, ...children);

// Points joined by a line, interrupted where y is unknown.
function path(row, points, kind = "line") {
  let d = "";
  let open = false;
  for (const [x, y] of points) {
    const there = Number.isFinite(x) && Number.isFinite(y);
    if (there) d += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    open = there;
  }
  return svg("path", { d, class: kind, "stroke-dasharray": dash(row) || null });
}

function linear([low, high], [from, to]) {
  const scale = (value) => (high > low ? from + ((value - low) / (high - low)) * (to - from) : (from + to) / 2);
  return Object.assign(scale, {
    domain: [low, high],
    range: [from, to],
    ticks: (count) => evenTicks(low, high, count),
  });
}

function logarithmic([low, high], [from, to]) {
  const inner = linear([Math.log10(low), Math.log10(high)], [from, to]);
  const scale = (value) => inner(Math.log10(value));
  return Object.assign(scale, { domain: [low, high], range: [from, to], ticks: (count) => logTicks(low, high, count) });
}

function evenTicks(low, high, count) {
  const rough = (high - low || 1) / Math.max(count, 2);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const every = decades > count ? [1] : decades > count / 2.5 ? [1, 3] : decades > 0.6 ? [1, 2, 5] : null;
  if (every === null) return evenTicks(low, high, count);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of every) {
      const value = Number((factor * 10 ** power).toPrecision(12));
      if (value >= low * 0.9999 && value <= high * 1.0001) found.push(value);
    }
  }
  return found;
}

// [lowest, highest] with a margin; logarithmic where asked, or where `skewed` and the values differ eightfold.
function spread(values, { margin = 0.06, log = false } = {}) {
  const finite = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  if (!finite.length) return log ? [1, 10] : [0, 1];
  const low = finite.reduce((a, b) => Math.min(a, b));
  const high = finite.reduce((a, b) => Math.max(a, b));
  if (log) {
    const factor = high > low ? (high / low) ** margin : 2;
    return [low / factor, high * factor];
  }
  const add = high > low ? (high - low) * margin : Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - add < 0 ? 0 : low - add, high + add];
}

const isSkewed = (values, times = 8) => {
  const finite = values.filter(Number.isFinite);
  return finite.length > 1 && finite.every((value) => value > 0) && Math.max(...finite) / Math.min(...finite) > times;
};
// Values and the ends of their intervals, as far as an axis has room for: one that is as good as endless, such as a
// minDCF between 0 and 1, must not squeeze all else into a corner. `whisker` then ends in an arrow.
const WITHIN = 3;
function within(values, ends) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const cut = (end) => (low > 0 ? Math.min(Math.max(end, low / WITHIN), high * WITHIN) : end);
  return [...values, ...ends.filter(known).map(cut)];
}
const scaleFor = (values, range, skewed) =>
  skewed ? logarithmic(spread(values, { log: true }), range) : linear(spread(values), range);

// 14,700,000 as 14.7M; small numbers without needless digits.
function short(value, digits = 3) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  for (const [power, unit] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (size >= power) return `${Number((value / power).toPrecision(digits))}${unit}`;
  }
  return size && size < 1e-3
    ? value.toExponential().replace("e-", "e−")
    : String(Number(value.toPrecision(digits))).replace("-", "−");
}

// The texts of ticks, with as many digits as tell them apart.
function written(values, digits = 3) {
  const texts = values.map((value) => short(value, digits));
  return new Set(texts).size === texts.length || digits > 9 ? texts : written(values, digits + 1);
}

// A value of a metric as the table prints it, with its unit; of learning curves' other quantities, three digits.
function figure(value, metric, unit = true) {
  if (!known(value)) return "–";
  const text = (value * metric.scale).toFixed(metric.digits).replace("-", "−");
  return unit && metric.unit ? `${text} ${metric.unit}` : text;
}
const between = (ends, metric) =>
  ends ? ends.map((end) => figure(end, metric, false)).join(ends[0] < 0 ? " to " : "–") : "";
const inBrackets = (ends, metric) => (ends && known(ends[0]) ? ` (${between(ends, metric)})` : "");
const withUnit = (metric) => (metric.unit ? `${metric.name} (${metric.unit})` : metric.name);

const pen = document.createElement("canvas").getContext("2d");
pen.font = `${FONT}px ${getComputedStyle(document.body).fontFamily}`;
const textWidth = (text) => pen.measureText(text).width;
function fitted(text, width) {
  if (textWidth(text) <= width) return text;
  const letters = [...text];
  while (letters.length > 1 && textWidth(`${letters.join("")}…`) > width) letters.pop();
  return `${letters.join("").trimEnd()}…`;
}

const text = (x, y, content, anchor = "start", kind = "label") =>
  svg("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor, class: kind }, content);
const rule = (x1, y1, x2, y2, kind = "grid") =>
  svg("line", { x1: x1.toFixed(1), y1: y1.toFixed(1), x2: x2.toFixed(1), y2: y2.toFixed(1), class: kind });

// An interval across `at`, with an arrow where it goes on beyond the axis.
function whisker([low, high], scale, at, { upright = false, kind = "" } = {}) {
  const [least, most] = scale.domain;
  const [from, to] = [scale(Math.max(low, least)), scale(Math.min(high, most))];
  const ends = upright ? [at, from, at, to] : [from, at, to, at];
  const parts = [rule(...ends, `whisker ${kind}`)];
  const arrow = (tip, size) => {
    const d = upright ? `M${at} ${tip}l-4 ${-size}h8z` : `M${tip} ${at}l${-size} -4v8z`;
    return svg("path", { d, class: `arrow ${kind}` });
  };
  if (low < least) parts.push(arrow(from, from < to ? -7 : 7));
  if (high > most) parts.push(arrow(to, from < to ? 7 : -7));
  return parts;
}

// Grid lines and numbers along a side of the box {left, right, top, bottom}.
function axisBelow(box, scale, label, { ticks = scale.ticks((box.right - box.left) / 75), times = 1, labels } = {}) {
  const group = svg("g", { class: "axis" });
  const texts = labels ?? written(ticks.map((tick) => tick * times));
  let free = -Infinity;
  ticks.forEach((tick, index) => {
    const x = scale(tick);
    group.append(rule(x, box.top, x, box.bottom));
    const half = textWidth(texts[index]) / 2;
    if (x - half < free) return; // it would touch its neighbour
    free = x + half + 8;
    group.append(text(x, box.bottom + 17, texts[index], "middle", "tick"));
  });
  group.append(text((box.left + box.right) / 2, box.bottom + 37, label, "middle", "title"));
  return group;
}

function axisLeft(box, scale, label, { ticks = scale.ticks((box.bottom - box.top) / 50), times = 1, labels } = {}) {
  const group = svg("g", { class: "axis" });
  const texts = labels ?? written(ticks.map((tick) => tick * times));
  let free = Infinity;
  ticks.forEach((tick, index) => {
    const y = scale(tick);
    group.append(rule(box.left, y, box.right, y));
    if (Math.abs(free - y) < 13) return;
    free = y;
    group.append(text(box.left - 8, y + 4, texts[index], "end", "tick"));
  });
  group.append(text(0, box.top - 12, label, "start", "title"));
  return group;
}

// Names beside their marks, in as many lines as the width asks for. -> {group, height}
function legend(rows, width, top) {
  const group = svg("g", { class: "legend" });
  const widest = Math.min(width - 40, 230);
  let x = 0;
  let y = top + 10;
  for (const row of rows) {
    const label = fitted(name(row), widest);
    const size = 30 + textWidth(label) + 20;
    if (x > 0 && x + size > width + 20) [x, y] = [0, y + 21];
    const entry = ofRow(
      row,
      path(row, [
        [x, y],
        [x + 22, y],
      ]),
      marker(row, x + 11, y, 4),
      text(x + 29, y + 4, label),
    );
    entry.append(svg("rect", { x, y: y - 10, width: size - 12, height: 20, class: "target" }));
    group.append(entry);
    x += size;
  }
  return { group, height: rows.length ? y + 12 - top : 0 };
}

const canvas = (width, height, ...children) =>
  svg(
    "svg",
    { viewBox: `0 0 ${width.toFixed(0)} ${height.toFixed(0)}`, width: width.toFixed(0), height: height.toFixed(0) },
    ...children,
  );

// A <select> in the controls of a chart; the chart is drawn anew when it changes.
function choice(chart, label, options, chosen) {
  const select = html(
    "select",
    { "aria-describedby": `${chart}-heading` },
    ...options.map(([value, shown]) => html("option", { value }, shown)),
  );
  if (known(chosen)) select.value = chosen;
  select.addEventListener("change", () => redraw(chart));
  if (options.length > 1) document.getElementById(`${chart}-controls`).append(html("label", {}, `${label} `, select));
  return select;
}
const metricChoice = (chart) => {
  const measured = content.metrics.filter(({ key }) =>
    ranked().some((row) => known(content.rows[row].metrics[key]?.value)),
  );
  return choice(
    chart,
    "Metric",
    measured.map((metric) => [metric.key, metric.name]),
    content.metric,
  );
};
