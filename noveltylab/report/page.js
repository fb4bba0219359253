"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A click on a header sorts its table by that column: upwards, then downwards. Cells without a number come last.
function sortBy(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    return { row, value: cell.dataset.v === undefined ? NaN : Number(cell.dataset.v), text: cell.textContent.trim() };
  });
  const numbers = keyed.some((entry) => !Number.isNaN(entry.value));
  keyed.sort((a, b) => {
    if (numbers && Number.isNaN(a.value) !== Number.isNaN(b.value)) return Number.isNaN(a.value) ? 1 : -1;
    const order = numbers && !Number.isNaN(a.value)
      ? a.value - b.value
      : a.text.localeCompare(b.text, undefined, { numeric: true });
    return down ? -order : order;
  });
  body.append(...keyed.map((entry) => entry.row));
  all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
}
all("thead th").forEach((header) => header.querySelector("button").addEventListener("click", () => sortBy(header)));

// The filter keeps rows and plots that hold every word, in themselves or in their section's name.
const sections = all("section").map((section) => ({
  section,
  items: all("tbody tr, .item", section).map((item) => ({
    item,
    text: `${section.dataset.text} ${item.dataset.text || item.textContent}`.toLowerCase(),
  })),
}));
const total = sections.reduce((sum, { items }) => sum + items.length, 0);
const status = document.getElementById("status");
function filter(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { section, items } of sections) {
    let here = 0;
    for (const { item, text } of items) {
      item.hidden = !words.every((word) => text.includes(word));
      here += !item.hidden;
    }
    section.hidden = words.length > 0 && here === 0;
    all("figure", section).forEach((figure) => {
      const rows = all("tbody tr, .item", figure);
      if (!figure.classList.contains("item")) figure.hidden = rows.length > 0 && rows.every((row) => row.hidden);
    });
    shown += here;
  }
  status.textContent = words.length ? `${shown} of ${total} rows and plots` : "";
}
document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));

// What is folded is printed too.
addEventListener("beforeprint", () => all("details").forEach((details) => { details.open = true; }));
