/* Sorts tables of class "sortable" by a column: a click on its title, lowest first, then highest, then as written.
   Rows with a class (the reference, differences) keep their places. */
function makeTablesSortable(inside) {
  "use strict";
  for (const table of inside.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], rows = [...body.rows], own = rows.filter((row) => !row.className);
    if (table.dataset.ready || own.length < 2) continue;
    table.dataset.ready = "yes";
    const titles = [...table.tHead.rows[0].cells];
    titles.forEach((title, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title.textContent;
      title.replaceChildren(button);
      button.addEventListener("click", () => {
        const before = title.getAttribute("aria-sort");
        const order = { ascending: "descending", descending: null }[before] ?? (before ? null : "ascending");
        for (const each of titles) each.removeAttribute("aria-sort");
        if (order) title.setAttribute("aria-sort", order);
        const key = (row) => {
          const cell = row.cells[column];
          if (!cell) return NaN;
          return column === 0 ? cell.textContent : parseFloat(cell.dataset.value);
        };
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (column === 0) return x.localeCompare(y);
          return Number.isNaN(x) - Number.isNaN(y) || x - y || 0;
        };
        const sorted = !order ? own : [...own].sort((a, b) =>
          compare(a, b) * (order === "descending" && !Number.isNaN(key(a)) && !Number.isNaN(key(b)) ? -1 : 1));
        const queue = [...sorted];
        body.append(...rows.map((row) => (row.className ? row : queue.shift())));
      });
    });
  }
}
