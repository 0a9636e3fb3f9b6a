// Dots with 95 % intervals: all runs on the list, and by condition.

const NARROW = 560; // below this width a name stands above its line, not beside it

function dotWithEnds(row, value, ends, scale, y, radius) {
  const parts = known(ends?.[0]) ? whisker(ends, scale, y) : [];
  return [...parts, marker(row, scale(value), y, radius)];
}

function intervalsChart() {
  const chosen = metricChoice("errors");

  function draw(width) {
    const metric = METRICS.get(chosen.value);
    const entry = (row) => content.rows[row].metrics[metric.key];
    const sign = metric.better === "lower" ? 1 : -1;
    const rows = drawn()
      .filter((row) => known(entry(row)?.value))
      .sort((a, b) => sign * (entry(a).value - entry(b).value));
    const values = within(
      rows.flatMap((row) => [entry(row).value, ...(entry(row).of_seeds ?? []).filter(known)]),
      rows.flatMap((row) => entry(row).ci95 ?? []),
    );
    const narrow = width < NARROW;
    const names = narrow ? 0 : Math.min(Math.max(40, ...rows.map((row) => textWidth(name(row)))), width * 0.28);
    const told = narrow ? 0 : Math.max(0, ...rows.map((row) => textWidth(verdict(row, metric))));
    const each = narrow ? 44 : rows.length > 20 ? 22 : 28;
    const box = { left: names + 16, right: width - told - 24, top: 8, bottom: 8 + Math.max(rows.length, 1) * each };
    const scale = scaleFor(values, [box.left, box.right], isSkewed(values));
    const drawing = canvas(width, box.bottom + 46);
    const reference = tested(metric) && rows.includes(content.reference) ? entry(content.reference).ci95 : null;
    if (reference) {
      const [least, most] = scale.domain;
      const [low, high] = reference.map((end) => scale(Math.min(Math.max(end, least), most)));
      drawing.append(
        svg("rect", {
          x: low,
          y: box.top,
          width: Math.max(high - low, 1),
          height: box.bottom - box.top,
          class: "band",
        }),
      );
    }
    drawing.append(
      axisBelow(box, scale, `${withUnit(metric)}, ${metric.better} is better`, {
        times: metric.scale,
      }),
    );
    const points = rows.map((row, place) => {
      const { value, ci95, of_seeds: seeds } = entry(row);
      const y = box.top + (place + (narrow ? 0.7 : 0.5)) * each;
      const said = `${figure(value, metric, false)}${inBrackets(ci95, metric)}`;
      const label = narrow
        ? text(0, y - 13, fitted(name(row), width - textWidth(said) - 20))
        : text(names, y + 4, fitted(name(row), names), "end");
      const group = ofRow(row, label);
      if (narrow) group.append(text(width, y - 13, said, "end", "tick"));
      else group.append(text(box.right + 16, y + 4, verdict(row, metric), "start", "tick"));
      if (seeds?.length > 1)
        group.append(...seeds.filter(known).map((one) => rule(scale(one), y - 7, scale(one), y + 7, "seed")));
      group.append(...dotWithEnds(row, value, ci95, scale, y, 5));
      drawing.append(group);
      return { row, x: scale(value), y, lines: () => lines(row, metric) };
    });
    return { svg: drawing, points, label: `${metric.name} of ${rows.length} runs with 95 % intervals` };
  }

  const tested = (metric) => ranked().some((row) => content.rows[row].metrics[metric.key]?.difference);

  // 0.97 (0.67–1.24) and, after that, whether it differs from the reference.
  function verdict(row, metric) {
    const { value, ci95, difference } = content.rows[row].metrics[metric.key];
    let mark = "";
    if (row === content.reference && tested(metric)) mark = " reference";
    else if (difference) mark = difference.significant ? " †" : " n.s.";
    return `${figure(value, metric, false)}${inBrackets(ci95, metric)}${mark}`;
  }

  function table() {
    const columns = [
      "run",
      "metric",
      "value",
      "low",
      "high",
      "difference",
      "difference_low",
      "difference_high",
      "p",
      "p_holm",
    ];
    const rows = ranked().flatMap((row) =>
      content.metrics
        .filter(({ key }) => content.rows[row].metrics[key])
        .map(({ key }) => {
          const { value, ci95, difference } = content.rows[row].metrics[key];
          return [
            name(row),
            key,
            value,
            ci95?.[0],
            ci95?.[1],
            difference?.value,
            difference?.ci95?.[0],
            difference?.ci95?.[1],
            difference?.p,
            difference?.p_holm,
          ];
        }),
    );
    return { columns, rows };
  }
  charts.set("errors", { draw, table });
}

// What a tip says of a run's value.
function lines(row, metric) {
  const { value, ci95, of_seeds: seeds, difference } = content.rows[row].metrics[metric.key];
  const found = [
    name(row),
    `${metric.name} ${figure(value, metric)}${ci95 ? `, 95 % interval ${between(ci95, metric)}` : ""}`,
  ];
  if (seeds?.length > 1) found.push(`seeds: ${seeds.map((one) => figure(one, metric, false)).join(", ")}`);
  if (difference) {
    const p = difference.p_holm < 0.001 ? "p < 0.001" : `p = ${Number(difference.p_holm.toPrecision(2))}`;
    found.push(
      `${difference.value > 0 ? "+" : ""}${figure(difference.value, metric, false)}` +
        `${inBrackets(difference.ci95, metric)} to ${name(content.reference)}, ${p}`,
    );
  }
  return found;
}

function conditionsChart() {
  const all = [...new Set(ranked().flatMap((row) => Object.keys(content.rows[row].conditions)))];
  const chosen = choice(
    "conditions",
    "By",
    all.map((column) => [column, column]),
  );
  const metric = METRICS.get("eer") ?? { name: "EER", scale: 100, digits: 2, unit: "%", better: "lower" };

  function draw(width) {
    const column = chosen.value;
    const rows = drawn().filter((row) => content.rows[row].conditions[column]);
    const of = (row) => content.rows[row].conditions[column];
    const conditions = [...new Set(rows.flatMap((row) => Object.keys(of(row))))];
    const every = rows.flatMap((row) => Object.values(of(row))).filter((one) => known(one.eer));
    const measured = within(
      every.map((one) => one.eer),
      every.flatMap((one) => one.eer_ci95 ?? []),
    );
    const narrow = width < NARROW;
    const names = narrow ? 0 : Math.min(Math.max(30, ...conditions.map((one) => textWidth(one))), width * 0.25);
    const each = Math.max(34, rows.length * 9 + 14) + (narrow ? 18 : 0);
    const box = { left: names + 16, right: width - 16, top: 8, bottom: 8 + Math.max(conditions.length, 1) * each };
    const scale = scaleFor(measured, [box.left, box.right], isSkewed(measured));
    const below = legend(rows, width, box.bottom + 52);
    const drawing = canvas(
      width,
      box.bottom + 52 + below.height,
      axisBelow(box, scale, withUnit(metric), { times: metric.scale }),
      below.group,
    );
    const points = [];
    conditions.forEach((condition, place) => {
      const top = box.top + place * each;
      if (place) drawing.append(rule(0, top, width, top, "grid"));
      const middle = top + each / 2;
      drawing.append(
        narrow
          ? text(box.left, top + 16, fitted(condition, width - 30))
          : text(names, middle + 4, fitted(condition, names), "end"),
      );
      rows.forEach((row, order) => {
        const one = of(row)[condition];
        if (!known(one?.eer)) return;
        const y = middle + (narrow ? 8 : 0) + (order - (rows.length - 1) / 2) * 9;
        const x = scale(one.eer);
        drawing.append(ofRow(row, ...dotWithEnds(row, one.eer, one.eer_ci95, scale, y, 3.8)));
        const ends = one.eer_ci95 ? `, 95 % interval ${between(one.eer_ci95, metric)}` : "";
        points.push({
          row,
          x,
          y,
          lines: () => [
            name(row),
            `${column} ${condition}: ${metric.name} ${figure(one.eer, metric)}${ends}`,
            `${one.num_trials?.toLocaleString("en") ?? "?"} trials`,
          ],
        });
      });
    });
    points.sort((a, b) => a.row - b.row || a.y - b.y);
    return { svg: drawing, points, label: `${metric.name} of ${rows.length} runs by ${column}` };
  }

  function table() {
    const columns = ["run", "column", "value", "num_trials", "eer", "low", "high"];
    const rows = ranked().flatMap((row) =>
      Object.entries(content.rows[row].conditions).flatMap(([column, values]) =>
        Object.entries(values).map(([value, one]) => [
          name(row),
          column,
          value,
          one.num_trials,
          one.eer,
          one.eer_ci95?.[0],
          one.eer_ci95?.[1],
        ]),
      ),
    );
    return { columns, rows };
  }
  charts.set("conditions", { draw, table });
}
