// Draws what there is, and draws it anew when ticks, choices or the width of the window change.

function drawChart(chart, width) {
  const place = document.getElementById(`${chart}-canvas`);
  const focused = place.contains(document.activeElement);
  const { svg: drawing, points, label, note } = charts.get(chart).draw(width ?? Math.max(place.clientWidth, 240));
  drawing.setAttribute("role", "img");
  drawing.setAttribute("tabindex", "0");
  drawing.setAttribute("aria-label", `${label}. Arrow keys go from value to value.`);
  if (points.length) listen(drawing, points);
  place.replaceChildren(drawing);
  if (!points.length) place.append(html("p", { class: "empty" }, "No ticked run has values for this chart."));
  if (note) place.append(html("p", { class: "empty" }, note));
  if (focused) drawing.focus();
  const numbers = document.getElementById(`${chart}-numbers`);
  if (numbers.parentElement.open && !numbers.hasChildNodes()) showNumbers(numbers, charts.get(chart).table());
}

function redraw(only = null) {
  hideTip();
  light(null);
  for (const chart of only === null ? charts.keys() : [only]) drawChart(chart);
}

function start() {
  const makers = {
    errors: intervalsChart,
    det: detChart,
    cost: costChart,
    conditions: conditionsChart,
    curves: curvesChart,
    effects: effectsChart,
    parallel: parallelChart,
  };
  for (const [chart, maker] of Object.entries(makers)) if (document.getElementById(chart)) maker();
  startTable();

  const widths = new Map();
  const size = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const chart = target.id.replace("-canvas", "");
      if (widths.get(chart) === Math.round(contentRect.width)) continue; // only its height has changed
      widths.set(chart, Math.round(contentRect.width));
      redraw(chart);
    }
  });
  for (const chart of charts.keys()) {
    size.observe(document.getElementById(`${chart}-canvas`));
    const numbers = document.getElementById(`${chart}-numbers`);
    numbers.parentElement.addEventListener("toggle", () => {
      if (numbers.parentElement.open && !numbers.hasChildNodes()) showNumbers(numbers, charts.get(chart).table());
    });
  }
  const PAPER = 700; // px: so that letters on paper are not smaller than those of the text
  addEventListener("beforeprint", () => {
    for (const chart of charts.keys()) drawChart(chart, PAPER);
  });
  addEventListener("afterprint", () => redraw());

  const button = document.getElementById("theme");
  const label = () => {
    button.textContent = theme.dark ? "Light theme" : "Dark theme";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme.choose(theme.dark ? "light" : "dark");
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
}

start();
