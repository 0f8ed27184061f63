// A click on a heading sorts its table; without a script the order is that of the run.
// Written without ampersands and less-than signs, for the page is XML too.
const order = (a, b, sign) => {
  const texts = [a, b].map((cell) => (cell.dataset.sort ?? cell.textContent).trim());
  if (texts.includes("")) return (texts[0] === "") - (texts[1] === ""); // empty cells last, either way
  const [x, y] = texts.map((text) => parseFloat(text.replace(/^[^\d.-]+/, "").replaceAll(",", "")));
  const words = a.tagName === "TH" || Number.isNaN(x - y);
  return sign * (words ? texts[0].localeCompare(texts[1], undefined, { numeric: true }) : x - y);
};

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  for (const [column, heading] of headings.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.ariaSort === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.ariaSort = down ? "descending" : "ascending";
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => order(a.cells[column], b.cells[column], down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  }
}
