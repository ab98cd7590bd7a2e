"use strict";
// A click on a column head sorts the table by it; numbers begin with the largest.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex;
    const body = head.closest("table").tBodies[0], rows = [...body.rows];
    const value = (row) => row.cells[column].dataset.value;
    const text = (row) => row.cells[column].textContent;
    const isNumeric = rows.some((row) => value(row) !== undefined);
    const first = isNumeric ? "descending" : "ascending", second = isNumeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if (!isNumeric) return sign * text(a).localeCompare(text(b));
      const [left, right] = [value(a), value(b)];
      if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);  // dashes last
      return sign * (left - right);
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    body.append(...rows);
  });
}

// A click on an image enlarges it; the arrow keys go through all images of the page.
const dialog = document.getElementById("enlarged"), all = [...document.querySelectorAll(".enlarge")];
let shown = 0;
function show(index) {
  shown = (index + all.length) % all.length;
  const image = all[shown].firstElementChild, enlarged = dialog.querySelector("img");
  enlarged.src = image.src;
  enlarged.alt = image.alt;
  dialog.querySelector("p").textContent = image.alt;
  if (!dialog.open) dialog.showModal();
}
all.forEach((button, index) => button.addEventListener("click", () => show(index)));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});
