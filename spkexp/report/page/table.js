// The table: sorted by any column, filtered by words, and the place where one says which runs the charts draw.

function startTable() {
  const table = document.getElementById("table");
  const ticks = [...document.querySelectorAll("[data-draw-row]")];
  for (const tick of ticks) {
    if (tick.checked) state.drawn.add(Number(tick.dataset.drawRow));
    tick.addEventListener("change", () => {
      if (tick.checked) state.drawn.add(Number(tick.dataset.drawRow));
      else state.drawn.delete(Number(tick.dataset.drawRow));
      count();
      redraw();
    });
  }
  for (const swatch of document.querySelectorAll("[data-swatch]")) {
    const row = Number(swatch.dataset.swatch);
    swatch.append(
      path(row, [
        [0, 6],
        [22, 6],
      ]),
      marker(row, 11, 6, 4),
    );
  }
  if (!table) return;
  const body = table.tBodies[0];
  const filter = document.getElementById("filter");

  const listed = () => [...body.rows].filter((row) => !row.hidden);
  function count() {
    const drawnNow = ticks.filter((tick) => tick.checked).length;
    const all = body.rows.length;
    document.getElementById("count").textContent =
      `${listed().length === all ? all : `${listed().length} of ${all}`} listed, ${drawnNow} drawn`;
  }

  function sortBy(button) {
    const column = Number(button.dataset.column);
    const heading = button.closest("th");
    const before = heading.getAttribute("aria-sort");
    const first = button.dataset.falling === undefined ? "ascending" : "descending";
    const order = !before ? first : before === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const numeric = heading.classList.contains("number");
    const value = (row) => row.cells[column + 1].dataset.sort;
    const compared = (a, b) => {
      if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
      return (
        sign *
        (numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), undefined, { numeric: true }))
      );
    };
    body.append(...[...body.rows].sort(compared));
    announcement.textContent = `sorted by ${button.textContent.trim()}, ${order}`;
  }
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(button);
  });

  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const one = content.rows[Number(row.dataset.row)];
      const settings = Object.entries(one.config).map(([key, value]) => `${key}=${plain(value)}`);
      const searched = [one.name, one.model, one.data, ...settings, ...one.runs.map((run) => run.folder)]
        .join(" ")
        .toLowerCase();
      row.hidden = !words.every((word) => searched.includes(word));
    }
    count();
  });

  function tickOnly(rows) {
    for (const tick of ticks) tick.checked = rows.includes(tick.dataset.drawRow);
    state.drawn = new Set(rows.map(Number));
    count();
    redraw();
  }
  const number = (row) => row.dataset.row;
  document.querySelectorAll("[data-draw]").forEach((button) =>
    button.addEventListener("click", () => {
      const best = ranked()
        .slice(0, ranked().length > 5 ? 5 : 1)
        .map(String);
      tickOnly({ listed: listed().map(number), best, none: [] }[button.dataset.draw]);
    }),
  );

  for (const box of document.querySelectorAll(".choices input")) {
    box.addEventListener("change", () => {
      for (const cell of table.querySelectorAll(
        `th[data-column="${box.dataset.column}"], td[data-column="${box.dataset.column}"]`,
      )) {
        cell.classList.toggle("spare", !box.checked);
      }
    });
  }
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest?.(".menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  count();
}
