// What a reader takes away: a chart's numbers as CSV, JSON or a table, and its drawing as SVG.

function save(file, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: `${kind};charset=utf-8` }));
  const link = html("a", { href: address, download: file });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// RFC 4180. A text that a spreadsheet would take for a formula is kept a text by an apostrophe (OWASP, CSV injection).
function csv({ columns, rows }) {
  const field = (value) => {
    if (!known(value)) return "";
    let shown = String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(shown)) shown = `'${shown}`;
    return /[",\n\r]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
  };
  return [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

const records = ({ columns, rows }) =>
  rows.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index] ?? null])));

// The drawing with all that the style sheet says of it written into it, for it leaves the style sheet.
function standalone(drawing) {
  const copy = drawing.cloneNode(true);
  const properties = [
    "fill",
    "fill-opacity",
    "stroke",
    "stroke-width",
    "stroke-opacity",
    "opacity",
    "font-family",
    "font-size",
    "font-weight",
    "paint-order",
    "stroke-linejoin",
  ];
  const originals = drawing.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((element, index) => {
    const style = getComputedStyle(originals[index]);
    for (const property of properties) element.setAttribute(property, style.getPropertyValue(property));
  });
  copy.querySelectorAll(".target, .ring").forEach((element) => element.remove());
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const paper = getComputedStyle(document.body).backgroundColor;
  copy.prepend(svg("rect", { width: "100%", height: "100%", fill: paper }));
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}\n`;
}

const wholeTable = () => {
  const columns = ["name", "model", "data", ...["parameters", "macs", "train_seconds", "utterances_per_second"]];
  for (const { key } of content.metrics) columns.push(key, `${key}.low`, `${key}.high`, `${key}.p_holm`);
  const rows = ranked().map((index) => {
    const row = content.rows[index];
    const values = [
      row.name,
      row.model,
      row.data,
      row.parameters,
      row.macs,
      row.train_seconds,
      row.utterances_per_second,
    ];
    for (const { key } of content.metrics) {
      const entry = row.metrics[key];
      values.push(entry?.value, entry?.ci95?.[0], entry?.ci95?.[1], entry?.difference?.p_holm);
    }
    return [...values, ...content.differing.map((key) => plain(row.config[key]))];
  });
  return { columns: [...columns, ...content.differing], rows };
};
const plain = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : value);

const SHOWN = 400; // rows of numbers that a page can hold beside a chart; the files have all
function showNumbers(place, { columns, rows }) {
  const cell = (value) =>
    html("td", { class: typeof value === "number" ? "number" : "text" }, known(value) ? String(value) : "–");
  const table = html(
    "table",
    {},
    html("thead", {}, html("tr", {}, ...columns.map((column) => html("th", { scope: "col" }, column)))),
    html("tbody", {}, ...rows.slice(0, SHOWN).map((row) => html("tr", {}, ...row.map(cell)))),
  );
  const rest =
    rows.length > SHOWN
      ? [html("p", {}, `and ${(rows.length - SHOWN).toLocaleString("en")} more rows: see CSV or JSON`)]
      : [];
  place.replaceChildren(table, ...rest);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-file]");
  if (!button) return;
  const { file: kind, chart } = button.dataset;
  const table = chart === "runs" ? wholeTable() : charts.get(chart).table();
  if (kind === "csv") save(`${chart}.csv`, "text/csv", csv(table));
  else if (kind === "svg")
    save(`${chart}.svg`, "image/svg+xml", standalone(document.querySelector(`#${chart}-canvas svg`)));
  else
    save(
      `${chart === "runs" ? "comparison" : chart}.json`,
      "application/json",
      JSON.stringify(chart === "runs" ? content : records(table), null, 2),
    );
});
