// What the settings do: for each, the mean of the metric over the runs that share a value, and those runs.

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
const lastPart = (key) => key.slice(key.lastIndexOf(".") + 1);

function effectsChart() {
  const metric = METRICS.get(content.metric);
  const valueOf = (row) => content.rows[row].metrics[metric.key]?.value;
  const runsOf = (row) => {
    const runs = (content.rows[row].metrics[metric.key].of_seeds ?? []).filter(known);
    return runs.length ? runs : [valueOf(row)];
  };
  // Many numbers are put together in ranges, which have names of their own: `0.001–0.004`.
  const nameOf = (level) => (level.range ? level.name : shown(level.value));
  const isOf = (value, level) =>
    level.range ? value >= level.range[0] && value <= level.range[1] : same(value, level.value);
  const told = (key, level) => [
    `${key} = ${nameOf(level)}`,
    `mean ${metric.name} ${figure(level.mean, metric)}${inBrackets([level.low, level.high], metric)}`,
    `of ${level.runs} run${level.runs === 1 ? "" : "s"}`,
  ];

  function draw(width) {
    const keys = Object.keys(content.effects);
    const rows = ranked()
      .filter((row) => known(valueOf(row)))
      .sort((a, b) => state.drawn.has(a) - state.drawn.has(b));
    // The interval of few runs may be far wider than all that was measured; it is then cut off at the edge.
    const levels = keys.flatMap((key) => content.effects[key].levels);
    const measured = [...levels.map((level) => level.mean), ...rows.flatMap(runsOf)];
    const [least, most] = spread(measured, { margin: 0.5 });
    const values = [
      ...measured,
      ...levels.flatMap(({ low, high }) => [low, high]).filter((end) => known(end) && end >= least && end <= most),
    ];
    const across = Math.max(1, Math.min(keys.length, Math.floor((width + 28) / 330)));
    const each = (width - 28 * (across - 1)) / across;
    const drawing = canvas(width, 0);
    const points = [];
    const tops = Array(across).fill(0); // each panel goes below the shortest column
    keys.forEach((key) => {
      const column = tops.indexOf(Math.min(...tops));
      const left = column * (each + 28);
      const { levels } = content.effects[key];
      const { panel, height } = dots({ key, levels, rows, values, left, top: tops[column], width: each, points });
      drawing.append(panel);
      tops[column] += height;
    });
    const height = Math.max(...tops);
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    return { svg: drawing, points, label: `Mean ${metric.name} by the values of ${keys.join(", ")}` };
  }

  function dots({ key, levels, rows, values, left, top, width, points }) {
    const names = Math.min(Math.max(24, ...levels.map((level) => textWidth(nameOf(level)))), width * 0.38);
    const box = {
      left: left + names + 12,
      right: left + width - 10,
      top: top + 30,
      bottom: top + 30 + levels.length * 30,
    };
    const scale = scaleFor(values, [box.left, box.right], isSkewed(values));
    const panel = svg(
      "g",
      {},
      text(left, top + 18, fitted(key, width), "start", "panel"),
      axisBelow(box, scale, withUnit(metric), { times: metric.scale }),
    );
    levels.forEach((level, place) => {
      const y = box.top + (place + 0.5) * 30;
      panel.append(text(left + names, y + 4, fitted(nameOf(level), names), "end"));
      for (const row of rows.filter((row) => isOf(content.rows[row].config[key], level))) {
        const marks = runsOf(row).map((value) => marker(row, scale(value), y + 8, 2.8));
        const faint = { class: "faint", "data-row": row };
        panel.append(state.drawn.has(row) ? ofRow(row, ...marks) : svg("g", faint, ...marks));
        for (const value of runsOf(row)) {
          const run = `${name(row)}, a run: ${metric.name} ${figure(value, metric)}`;
          points.push({ row, x: scale(value), y: y + 8, lines: () => [run, ...told(key, level)] });
        }
      }
      if (known(level.low)) panel.append(...whisker([level.low, level.high], scale, y - 3, { kind: "effect" }));
      panel.append(svg("circle", { cx: scale(level.mean), cy: y - 3, r: 4.5, class: "effect" }));
      points.push({ row: null, x: scale(level.mean), y: y - 3, lines: () => told(key, level) });
    });
    return { panel, height: box.bottom + 62 - top };
  }

  function table() {
    const rows = Object.entries(content.effects).flatMap(([key, { levels }]) =>
      levels.map((level) => [key, plain(level.value), level.runs, level.mean, level.low, level.high]),
    );
    return { columns: ["setting", "value", "runs", "mean", "low", "high"], rows };
  }
  charts.set("effects", { draw, table });
}
