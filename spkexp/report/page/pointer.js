// Pointing at a chart, by mouse, finger or keys: the nearest value is told, and its run lights up on the whole page.

const tooltip = document.getElementById("tooltip");
const announcement = document.getElementById("announcement");

// Everything of one row stands out, in all charts and the table; null: all are equal again.
function light(row) {
  document.body.classList.toggle("lit", row !== null);
  for (const element of document.querySelectorAll("[data-row]")) {
    element.classList.toggle("own", row !== null && element.dataset.row === String(row));
  }
}

function rowOf(target) {
  const owner = target instanceof Element ? target.closest("[data-row]") : null;
  return owner ? Number(owner.dataset.row) : null;
}

function showTip(point, left, top) {
  tooltip.replaceChildren(...point.lines().map((line, index) => html(index ? "span" : "strong", {}, line)));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const x = left + 16 + width > room ? left - 16 - width : left + 16;
  const y = top - height - 12 < 0 ? top + 16 : top - height - 12;
  tooltip.style.left = `${Math.max(4, Math.min(x, room - width - 4))}px`;
  tooltip.style.top = `${y}px`;
}
const hideTip = () => {
  tooltip.hidden = true;
};

// points: [{row, x, y, lines}] in the coordinates of the drawing; lines() are the texts, the first of them the heading.
// A point that is `between` others helps the mouse to find its row, and keys pass it by.
function listen(drawing, points) {
  const stops = points.filter((point) => !point.between);
  const ring = svg("circle", { r: 8, class: "ring", visibility: "hidden" });
  drawing.append(ring);
  let current = null;

  const tell = (point, spoken) => {
    current = point;
    const matrix = drawing.getScreenCTM();
    if (!point || !matrix) {
      ring.setAttribute("visibility", "hidden");
      hideTip();
      light(null);
      return;
    }
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.setAttribute("visibility", point.between ? "hidden" : "visible");
    showTip(point, matrix.a * point.x + matrix.e, matrix.d * point.y + matrix.f);
    light(point.row);
    if (spoken) announcement.textContent = point.lines().join(", ");
  };

  const nearest = (event) => {
    const matrix = drawing.getScreenCTM();
    const x = (event.clientX - matrix.e) / matrix.a;
    const y = (event.clientY - matrix.f) / matrix.d;
    let best = null;
    let distance = 40 ** 2;
    for (const point of points) {
      const square = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (square < distance) [best, distance] = [point, square];
    }
    return best;
  };
  drawing.addEventListener("pointermove", (event) => {
    const legendRow = rowOf(event.target.closest(".legend [data-row]"));
    const found = legendRow === null ? nearest(event) : null;
    if (found !== current || legendRow !== null) tell(found, false);
    if (legendRow !== null) light(legendRow);
  });
  drawing.addEventListener("pointerleave", () => tell(null));
  drawing.addEventListener("blur", () => tell(null));
  drawing.addEventListener("focus", () => {
    if (drawing.matches(":focus-visible") && stops.length) tell(stops[0], true);
  });
  drawing.addEventListener("keydown", (event) => {
    const next = step(stops, current, event.key);
    if (event.key === "Escape") tell(null);
    else if (next) {
      event.preventDefault(); // the page must not scroll as well
      tell(next, true);
    }
  });
}

// Left and right go along a run, up and down from run to run; where a run has one point all four do the latter.
function step(stops, current, key) {
  const sign = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
  if (key === "Home") return stops[0];
  if (key === "End") return stops.at(-1);
  if (!sign || !stops.length) return null;
  const at = stops.indexOf(current);
  if (at < 0) return stops[0];
  const own = stops.filter((point) => point.row === current.row);
  if ((key === "ArrowLeft" || key === "ArrowRight") && own.length > 1)
    return own[own.indexOf(current) + sign] ?? current;
  const rows = [...new Set(stops.map((point) => point.row))];
  const row = rows[rows.indexOf(current.row) + sign];
  if (rows.length === 1) return stops[at + sign] ?? current;
  if (row === undefined) return current;
  const distance = (point) => Math.hypot(point.x - current.x, (point.y - current.y) / 100);
  return stops.filter((point) => point.row === row).reduce((a, b) => (distance(b) < distance(a) ? b : a));
}

document.addEventListener("pointerover", (event) => {
  if (!(event.target instanceof Element) || event.target.closest(".canvas")) return; // charts tell themselves
  light(rowOf(event.target));
});
document.addEventListener("focusin", (event) => {
  if (!event.target.closest(".canvas")) light(event.target.matches(":focus-visible") ? rowOf(event.target) : null);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideTip();
    light(null);
  }
});
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
