// Learning curves: any quantity that was measured in training or validation, a line a seed.

function curvesChart() {
  const titleOf = (part) =>
    ({ train: "training", val: "validation" })[part] ?? `validation, ${part.replace(/^val_/, "")}`;
  const NAMES = { loss: "loss", accuracy: "accuracy", learning_rate: "learning rate" };
  const all = content.rows.map((row, index) => index).filter((index) => content.rows[index].curves.length);
  const curvesOf = (row, part, quantity) =>
    content.rows[row].curves
      .filter((curve) => curve[part]?.[quantity] && curve[part].epoch)
      .map((curve) => ({
        seed: curve.seed,
        points: curve[part].epoch.map((epoch, index) => [epoch, curve[part][quantity][index]]),
      }));
  const PARTS = [
    ...new Set(all.flatMap((row) => content.rows[row].curves.flatMap((curve) => Object.keys(curve)))),
  ].filter((key) => key !== "seed");
  const quantities = [
    ...new Set(
      all.flatMap((row) =>
        content.rows[row].curves.flatMap((curve) => PARTS.flatMap((part) => Object.keys(curve[part] ?? {}))),
      ),
    ),
  ].filter((key) => key !== "epoch");
  const nameOf = (key) => METRICS.get(key)?.name ?? NAMES[key] ?? key;
  quantities.sort((a, b) => (b === "loss") - (a === "loss"));
  const chosen = choice(
    "curves",
    "Quantity",
    quantities.map((key) => [key, nameOf(key)]),
  );
  const axis = choice("curves", "Axis", [
    ["linear", "linear"],
    ["log", "logarithmic"],
  ]);

  const has = (part, key) => all.some((row) => curvesOf(row, part, key).length);
  // What is drawn of a part: lists of unknown speakers have no loss, and minCllr stands in for it.
  const keyOf = (part) =>
    chosen.value === "loss" && part !== "train" && !has(part, "loss") ? "min_cllr" : chosen.value;
  const metricOf = (key) =>
    METRICS.get(key) ?? {
      name: nameOf(key),
      scale: key === "accuracy" ? 100 : 1,
      unit: key === "accuracy" ? "%" : "",
      digits: key === "accuracy" ? 1 : 4,
    };

  function draw(width) {
    const rows = all.filter((row) => state.drawn.has(row));
    const parts = PARTS.filter((part) => has(part, keyOf(part)));
    const columns = parts.length > 1 && width >= 720 ? 2 : 1;
    const each = (width - 24 * (columns - 1)) / columns;
    const height = Math.min(340, Math.max(230, each * 0.6));
    const drawing = canvas(width, 0);
    const points = [];
    const epochs = rows.flatMap((row) =>
      parts.flatMap((part) => curvesOf(row, part, keyOf(part)).flatMap((curve) => curve.points.map(([epoch]) => epoch))),
    );
    let bottom = 0;
    parts.forEach((part, place) => {
      const left = (place % columns) * (each + 24);
      const top = 44 + Math.floor(place / columns) * (height + 100);
      const box = { left: 48, right: each - 12, top, bottom: top + height };
      const metric = metricOf(keyOf(part));
      const curves = rows.flatMap((row) => curvesOf(row, part, keyOf(part)).map((curve) => ({ row, ...curve })));
      const values = curves.flatMap((curve) => curve.points.map(([, value]) => value)).filter(known);
      const log = axis.value === "log" && values.some((value) => value > 0);
      const across = linear([0, epochs.length ? epochs.reduce((a, b) => Math.max(a, b)) : 1], [box.left, box.right]);
      const up = log
        ? logarithmic(spread(values, { log }), [box.bottom, box.top])
        : linear(spread(values), [box.bottom, box.top]);
      const panel = svg(
        "g",
        { transform: `translate(${left.toFixed(1)} 0)` },
        text(0, top - 30, titleOf(part), "start", "panel"),
        axisBelow(box, across, "epoch"),
        axisLeft(box, up, withUnit(metric), { times: metric.scale }),
      );
      for (const { row, seed, points: measured } of curves) {
        const places = thinned(measured, box.right - box.left).map(([epoch, value]) => [
          across(epoch),
          known(value) && (!log || value > 0) ? up(value) : NaN,
          epoch,
          value,
        ]);
        const group = ofRow(row, path(row, places));
        const sparse = places.length <= 30;
        for (const [x, y, epoch, value] of places) {
          if (!Number.isFinite(y)) continue;
          if (sparse) group.append(marker(row, x, y, 2.6));
          const which = known(seed) && content.rows[row].curves.length > 1 ? `, seed ${seed}` : "";
          points.push({
            row,
            x: x + left,
            y,
            lines: () => [
              `${name(row)}${which}`,
              `${titleOf(part)}, epoch ${Number(epoch.toPrecision(4))}: ${metric.name} ${figure(value, metric)}`,
            ],
          });
        }
        panel.append(group);
      }
      drawing.append(panel);
      bottom = Math.max(bottom, box.bottom + 52);
    });
    const below = legend(rows, width, bottom);
    drawing.append(below.group);
    drawing.setAttribute("viewBox", `0 0 ${width} ${bottom + below.height}`);
    drawing.setAttribute("height", bottom + below.height);
    points.sort((a, b) => a.row - b.row);
    return {
      svg: drawing,
      points,
      label: `${nameOf(chosen.value)} by epoch of ${rows.length} runs, in ${parts.map((part) => titleOf(part)).join(" and ")}`,
    };
  }

  // No more points than pixels: of each stretch the lowest and the highest, so that no peak is lost.
  function thinned(points, pixels) {
    if (points.length <= pixels) return points;
    const size = Math.ceil(points.length / (pixels / 2));
    const found = [];
    for (let start = 0; start < points.length; start += size) {
      const stretch = points.slice(start, start + size).filter(([, value]) => known(value));
      if (!stretch.length) {
        found.push(points[start]);
        continue;
      }
      const least = stretch.reduce((a, b) => (b[1] < a[1] ? b : a));
      const most = stretch.reduce((a, b) => (b[1] > a[1] ? b : a));
      found.push(...(least === most ? [least] : least[0] < most[0] ? [least, most] : [most, least]));
    }
    return found;
  }

  function table() {
    const rows = all.flatMap((row) =>
      PARTS.flatMap((part) =>
        quantities.flatMap((key) =>
          curvesOf(row, part, key).flatMap(({ seed, points }) =>
            points.map(([epoch, value]) => [name(row), seed, part, key, epoch, value]),
          ),
        ),
      ),
    );
    return { columns: ["run", "seed", "part", "quantity", "epoch", "value"], rows };
  }
  charts.set("curves", { draw, table });
}
