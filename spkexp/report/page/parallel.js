// Parallel coordinates: a line a run, through the values of its settings to its result.

function parallelChart() {
  const chosen = metricChoice("parallel");
  const AXES = 8; // as many as can be told apart; the table has the others
  const settings = content.differing
    .filter((key) => ranked().some((row) => key in content.rows[row].config))
    .slice(0, AXES);

  // A scale from a config value to a height: numbers on an axis of numbers, all else in order of appearance.
  function settingScale(key, range) {
    const values = ranked().map((row) => content.rows[row].config[key]);
    const numbers = values.filter((value) => typeof value === "number");
    const kinds = [...new Set(values.map(shown))];
    if (numbers.length === values.length && new Set(numbers).size > 1) {
      const skewed = isSkewed(numbers, 20);
      const scale = skewed
        ? logarithmic(spread(numbers, { log: true, margin: 0 }), range)
        : linear(spread(numbers, { margin: 0 }), range);
      const few = [...new Set(numbers)].sort((a, b) => a - b);
      const ticks = few.length <= 6 ? few : scale.ticks(5);
      const texts = written(ticks);
      return { place: scale, ticks: ticks.map((tick, index) => [texts[index], scale(tick)]) };
    }
    const scale = linear([0, kinds.length - 1], range);
    return {
      place: (value) => scale(kinds.indexOf(shown(value))),
      ticks: kinds.map((kind, index) => [kind, scale(index)]),
    };
  }

  function draw(width) {
    const metric = METRICS.get(chosen.value);
    const entry = (row) => content.rows[row].metrics[metric.key];
    const rows = ranked().filter((row) => known(entry(row)?.value));
    // A phone has no room for many axes side by side: they then go down the page.
    const upright = width < 90 * (settings.length + 1);
    const values = rows.map((row) => entry(row).value);
    const spans = upright ? width - 20 : 320;
    const gap = upright ? 88 : 0;
    const range = upright ? [16, spans] : [48 + spans, 48];
    const result = isSkewed(values)
      ? logarithmic(spread(values, { log: true, margin: 0 }), range)
      : linear(spread(values, { margin: 0 }), range);
    const axes = settings.map((key) => {
      const of = (row) => content.rows[row].config[key];
      return { key, title: lastPart(key), of, told: (row) => shown(of(row)), ...settingScale(key, range) };
    });
    const marks = result.ticks(upright ? 4 : 6);
    const texts = written(marks.map((tick) => tick * metric.scale));
    const ticks = marks.map((tick, index) => [texts[index], result(tick)]);
    const last = { key: metric.key, title: withUnit(metric), place: result, ticks };
    axes.push({ ...last, of: (row) => entry(row).value, told: (row) => figure(entry(row).value, metric) });
    const step = upright ? gap : (width - 150) / Math.max(axes.length - 1, 1);
    const at = (index) => (upright ? 40 + index * gap : 40 + index * step);
    const bottom = upright ? at(axes.length - 1) + 44 : 48 + spans + 24;
    const below = legend(
      drawn().filter((row) => rows.includes(row)),
      width,
      bottom,
    );
    const drawing = canvas(width, bottom + below.height);
    const points = [];

    const grey = rows.filter((row) => !state.drawn.has(row));
    const coloured = rows.filter((row) => state.drawn.has(row));
    for (const row of [...grey, ...coloured]) {
      // Runs with equal values are a little apart, so that each can be seen.
      const shift = ((row % 7) - 3) * 1.6;
      const places = axes.map((axis, index) => {
        const along = axis.place(axis.of(row)) + (index < axes.length - 1 ? shift : 0);
        return upright ? [along, at(index)] : [at(index), along];
      });
      const faint = !state.drawn.has(row);
      const group = faint ? svg("g", { class: "faint", "data-row": row }) : ofRow(row);
      group.append(path(row, places));
      if (!faint) group.append(marker(row, ...places.at(-1), 4));
      drawing.append(group);
      places.forEach(([x, y], index) => {
        points.push({
          row,
          x,
          y,
          lines: () => [name(row), `${axes[index].key} = ${axes[index].told(row)}`],
        });
        for (const part of index < axes.length - 1 ? [0.2, 0.4, 0.6, 0.8] : []) {
          const [nextX, nextY] = places[index + 1];
          points.push({
            row,
            x: x + part * (nextX - x),
            y: y + part * (nextY - y),
            lines: () => lines(row, metric),
            between: true,
          });
        }
      });
    }
    axes.forEach((axis, index) => drawing.append(axisOf(axis, at(index), range, upright, step)));
    drawing.append(below.group);
    return { svg: drawing, points, label: `Settings and ${metric.name} of ${rows.length} runs` };
  }

  function axisOf(axis, at, range, upright, step) {
    const group = svg("g", { class: "axis" });
    if (upright) {
      group.append(rule(range[0], at, range[1], at, "spine"), text(0, at - 12, axis.title, "start", "panel halo"));
      let free = -Infinity;
      for (const [label, along] of [...axis.ticks].sort((a, b) => a[1] - b[1])) {
        const half = textWidth(label) / 2;
        const x = Math.min(Math.max(along, half), range[1] - half + 8);
        if (x - half < free) continue;
        free = x + half + 6;
        group.append(text(x, at + 20, label, "middle", "tick halo"));
      }
      return group;
    }
    group.append(
      rule(at, range[0], at, range[1], "spine"),
      text(at - 8, range[1] - 26, fitted(axis.title, step - 6), "start", "panel"),
    );
    for (const [label, along] of axis.ticks)
      group.append(text(at + 9, along + 4, fitted(label, step - 26), "start", "tick halo"));
    return group;
  }

  function table() {
    const columns = ["run", ...content.differing, ...content.metrics.map(({ key }) => key)];
    const rows = ranked().map((row) => [
      name(row),
      ...content.differing.map((key) => plain(content.rows[row].config[key])),
      ...content.metrics.map(({ key }) => content.rows[row].metrics[key]?.value),
    ]);
    return { columns, rows };
  }
  charts.set("parallel", { draw, table });
}
