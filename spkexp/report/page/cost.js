// How well a run does against what it costs.

function costChart() {
  const COSTS = [
    ["macs", "MACs of 2 s", "multiply-accumulates of an utterance of 2 s"],
    ["parameters", "parameters", "parameters"],
    ["train_seconds", "training time", "training time (s)"],
  ];
  const chosen = metricChoice("cost");
  const measured = COSTS.filter(([key]) => ranked().some((row) => content.rows[row][key] > 0));
  const against = choice("cost", "Against", measured);

  function draw(width) {
    const metric = METRICS.get(chosen.value);
    const cost = against.value;
    const title = measured.find(([key]) => key === cost)[2];
    const entry = (row) => content.rows[row].metrics[metric.key];
    const rows = ranked().filter((row) => content.rows[row][cost] > 0 && known(entry(row)?.value));
    const ticked = rows.filter((row) => state.drawn.has(row));
    const box = { left: 48, right: width - 24, top: 30, bottom: 30 + Math.min(430, Math.max(260, width * 0.62)) };
    const values = within(
      rows.map((row) => entry(row).value),
      ticked.flatMap((row) => entry(row).ci95 ?? []),
    );
    const across = logarithmic(
      spread(
        rows.map((row) => content.rows[row][cost]),
        { log: true, margin: 0.09 },
      ),
      [box.left, box.right],
    );
    const up = scaleFor(values, [box.bottom, box.top], isSkewed(values));
    const drawing = canvas(
      width,
      box.bottom + 46,
      axisBelow(box, across, title),
      axisLeft(box, up, `${withUnit(metric)}, ${metric.better} is better`, {
        times: metric.scale,
      }),
    );
    const place = (row) => [across(content.rows[row][cost]), up(entry(row).value)];
    for (const row of rows.filter((row) => !state.drawn.has(row))) {
      drawing.append(svg("g", { class: "faint", "data-row": row }, marker(row, ...place(row), 3.5)));
    }
    const taken = ticked.map((row) => around(...place(row), 7, 7)); // where no name has room
    // Small whiskers first, so that no line crosses a mark.
    for (const row of ticked) {
      const [x] = place(row);
      const ends = entry(row).ci95;
      if (!known(ends?.[0])) continue;
      drawing.append(ofRow(row, ...whisker(ends, up, x, { upright: true, kind: "thin" })));
      taken.push({ left: x - 3, right: x + 3, top: up(ends[1]), bottom: up(ends[0]) });
    }
    const groups = new Map(ticked.map((row) => [row, ofRow(row, marker(row, ...place(row), 5.5))]));
    drawing.append(...groups.values());
    const unnamed = [];
    for (const row of ticked) {
      const label = labelAt(row, place(row), box, taken);
      if (label) groups.get(row).append(label);
      else unnamed.push(row);
    }
    const below = legend(unnamed, width, box.bottom + 54); // there was no room at the mark
    drawing.append(below.group);
    drawing.setAttribute("viewBox", `0 0 ${width} ${box.bottom + 54 + below.height}`);
    drawing.setAttribute("height", box.bottom + 54 + below.height);
    const points = rows.map((row) => {
      const [x, y] = place(row);
      return {
        row,
        x,
        y,
        lines: () => [
          ...lines(row, metric),
          `${short(content.rows[row][cost])} ${measured.find(([key]) => key === cost)[1]}`,
        ],
      };
    });
    points.sort((a, b) => a.x - b.x);
    const unknown = drawn().filter((row) => !rows.includes(row));
    const note = unknown.length ? `Not drawn, for it is not known of them: ${unknown.map(name).join(", ")}` : "";
    return { svg: drawing, points, note, label: `${metric.name} of ${ticked.length} runs against ${title}` };
  }

  const around = (x, y, across, up) => ({ left: x - across, right: x + across, top: y - up, bottom: y + up });
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

  // The name at the first of four places beside a mark where it covers nothing; null where there is none.
  function labelAt(row, [x, y], box, taken) {
    const label = fitted(name(row), 150);
    const size = textWidth(label);
    const places = [
      ["start", x + 10, y + 4],
      ["end", x - 10, y + 4],
      ["middle", x, y - 11],
      ["middle", x, y + 20],
    ];
    for (const [anchor, left, base] of places) {
      const start = anchor === "start" ? left : anchor === "end" ? left - size : left - size / 2;
      const area = { left: start - 2, right: start + size + 2, top: base - 11, bottom: base + 4 };
      const outside =
        area.left < box.left || area.right > box.right + 20 || area.top < box.top || area.bottom > box.bottom;
      if (outside || taken.some((other) => meet(area, other))) continue;
      taken.push(area);
      return text(left, base, label, anchor);
    }
    return null;
  }

  function table() {
    const columns = ["run", ...COSTS.map(([key]) => key), ...content.metrics.map(({ key }) => key)];
    const rows = ranked().map((row) => {
      const one = content.rows[row];
      return [
        one.name,
        ...COSTS.map(([key]) => one[key]),
        ...content.metrics.map(({ key }) => one.metrics[key]?.value),
      ];
    });
    return { columns, rows };
  }
  charts.set("cost", { draw, table });
}
