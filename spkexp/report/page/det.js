// Detection error trade-off: misses against false alarms on normal-deviate axes (Martin et al. 1997).

// The inverse of the normal distribution function: rational approximations by P. J. Acklam, relative error < 1.2e-9.
function probit(p) {
  const a = [
    -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239,
  ];
  const b = [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1];
  const c = [
    -0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
    2.938163982698783,
  ];
  const d = [0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1];
  const polynomial = (coefficients, x) => coefficients.reduce((sum, coefficient) => sum * x + coefficient, 0);
  if (p > 0.5) return -probit(1 - p);
  if (p < 0.02425) {
    const q = Math.sqrt(-2 * Math.log(p));
    return polynomial(c, q) / polynomial(d, q);
  }
  const q = p - 0.5;
  return (polynomial(a, q * q) * q) / polynomial(b, q * q);
}

// Where the line through the points [false alarms, misses] crosses the diagonal; NaN where it does not.
function equalRate(points) {
  for (let index = 1; index < points.length; index++) {
    const [before, after] = [points[index - 1], points[index]].map(([falseAlarm, miss]) => falseAlarm - miss);
    if (Math.sign(before) === Math.sign(after) && after !== 0) continue;
    const part = before === after ? 0 : before / (before - after);
    return points[index - 1][0] + part * (points[index][0] - points[index - 1][0]);
  }
  return NaN;
}

function detChart() {
  const TICKS = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9];
  const pairs = ({ false_alarm: falseAlarm, miss }) => falseAlarm.map((rate, index) => [rate, miss[index]]);
  const percent = (rate) => `${Number((100 * rate).toPrecision(3))} %`;

  function draw(width) {
    const rows = drawn().filter((row) => content.rows[row].det);
    // From the least rates at which a curve still has both kinds of error, to 50 %, or more for what nearly guesses.
    const all = rows.flatMap((row) => pairs(content.rows[row].det));
    const highest = rows.some((row) => equalRate(pairs(content.rows[row].det)) > 0.2) ? 0.9 : 0.5;
    const inside = all.filter(([x, y]) => x > 0 && y > 0 && x < highest && y < highest);
    const least = inside.reduce((low, [x, y]) => Math.min(low, x, y), 0.02);
    const domain = [Math.max(least, 0.0001), highest].map(probit);
    const side = Math.min(width - 66, 560);
    const box = { left: 48, right: 48 + side, top: 26, bottom: 26 + side };
    const across = linear(domain, [box.left, box.right]);
    const up = linear(domain, [box.bottom, box.top]);
    const rates = TICKS.filter((rate) => probit(rate) >= domain[0] && probit(rate) <= domain[1]);
    const grid = { ticks: rates.map(probit), labels: rates.map((rate) => String(Number((100 * rate).toPrecision(2)))) };
    const below = legend(rows, width, box.bottom + 52);
    const clip = svg(
      "clipPath",
      { id: "det-clip" },
      svg("rect", { x: box.left, y: box.top, width: side, height: side }),
    );
    const lines = svg(
      "g",
      { "clip-path": "url(#det-clip)" },
      rule(box.left, box.bottom, box.right, box.top, "diagonal"),
    );
    const points = [];
    for (const row of rows) {
      // Beyond the axes by a little, so that a curve leaves the picture instead of ending in it.
      const limit = (rate) => Math.min(Math.max(rate, 1e-6), 1 - 1e-6);
      const places = pairs(content.rows[row].det).map(([x, y]) => [
        across(probit(limit(x))),
        up(probit(limit(y))),
        x,
        y,
      ]);
      const group = ofRow(row, path(row, places));
      const rate = equalRate(pairs(content.rows[row].det));
      if (rate > 0 && rate < highest) {
        const [x, y] = [across(probit(rate)), up(probit(rate))];
        group.append(marker(row, x, y));
        points.push({ row, x, y, lines: () => [name(row), `equal errors at ${percent(rate)}`] });
      }
      for (const [x, y, falseAlarm, miss] of places) {
        if (x < box.left - 1 || x > box.right + 1 || y < box.top - 1 || y > box.bottom + 1) continue;
        points.push({
          row,
          x,
          y,
          lines: () => [name(row), `false alarms ${percent(falseAlarm)}, misses ${percent(miss)}`],
        });
      }
      lines.append(group);
    }
    points.sort((a, b) => a.row - b.row || a.x - b.x);
    const drawing = canvas(
      width,
      box.bottom + 52 + below.height,
      clip,
      axisBelow(box, across, "false alarms (%)", grid),
      axisLeft(box, up, "misses (%)", grid),
      lines,
      below.group,
    );
    return { svg: drawing, points, label: `DET curves of ${rows.length} runs: misses against false alarms` };
  }

  function table() {
    const rows = ranked()
      .filter((row) => content.rows[row].det)
      .flatMap((row) => pairs(content.rows[row].det).map(([x, y]) => [name(row), x, y]));
    return { columns: ["run", "false_alarm", "miss"], rows };
  }
  charts.set("det", { draw, table });
}
