"use strict";
// Tables that sort by a click on a head and filter by what is typed.

/** Sort a table's rows by a column: numbers by their value, text by its letters, what is missing last. */
function setUpSorting(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const apply = (column, descending) => {
    heads.forEach((head, k) => head.setAttribute("aria-sort", k !== column ? "none" : descending ? "descending" : "ascending"));
    const rows = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column]) }));
    rows.sort((a, b) => compare(a.key, b.key, descending));
    body.append(...rows.map((entry) => entry.row));
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending" || (head.getAttribute("aria-sort") === "none" && head.classList.contains("n"));
      apply(column, descending);
      if (table.id) keep(table.id + "-sort", [column, descending]);
    });
  });
  const before = chosen[table.id + "-sort"];
  if (before && before[0] < heads.length) apply(...before);
}

function keyOf(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const words = cell.textContent.trim();
  return words === "" || words === "–" ? null : words !== "" && !Number.isNaN(Number(words)) ? Number(words) : words;
}

function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return descending ? -order : order;
}

/** Show the rows that have every word of the box, in all tables that it names. */
function setUpFilter(box) {
  const tables = box.getAttribute("aria-controls").split(" ").map((id) => document.getElementById(id));
  const output = document.getElementById(box.id + "-told");
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let [shown, all] = [0, 0];
    for (const table of tables) {
      for (const row of table.tBodies[0].rows) {
        const matches = words.every((word) => row.textContent.toLowerCase().includes(word));
        row.hidden = !matches;
        shown += matches;
        all += 1;
      }
    }
    output.textContent = words.length ? `${shown} of ${all} rows` : "";
  };
  remember(box, apply);
  apply();
}

/** Copy what a button stands beside. */
function setUpCopy(button) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let done = false;
    try {
      await navigator.clipboard.writeText(source.textContent);
      done = true;
    } catch {
      done = document.execCommand("copy"); // where a page from a file may not use the clipboard
    }
    button.textContent = done ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
