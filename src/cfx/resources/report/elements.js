// The periodic table as a heat map: how many crystals hold an element. An element chosen filters the table.

/** From this heat on, the other ink of the two has the better contrast. */
const HOT = 0.665;

/** Crystals that hold each element, by atomic number. */
function countElements(records) {
  const counts = new Array(ELEMENTS.length + 1).fill(0);
  for (const record of records) for (const element of elementsIn(record.formula)) counts[element.number] += 1;
  return counts;
}

/** From 0 to 1, by the square root: else oxygen would hide all others. */
const heat = (count, most) => Math.sqrt(count / (most || 1));

function elementCell(element, count, most, total) {
  const [row, column] = placeOf(element.number);
  const text = `${element.name}: ${plural(count, "crystal")}, ${percent(total ? count / total : 0)}`;
  const cell = el(count ? "button" : "div", {
    class: `element${count ? "" : " none"}${heat(count, most) > HOT ? " hot" : ""}`,
    "data-tip": `${text}${count ? "\nClick to list them" : ""}`, "aria-label": text,
    type: count ? "button" : null, tabindex: count ? -1 : null, role: count ? null : "img",
    "data-row": row, "data-column": column, click: count ? () => showElement(element.symbol) : null,
  }, el("b", {}, element.symbol), count ? el("small", {}, integer(count)) : null);
  cell.style.gridArea = `${row} / ${column}`;
  if (count) cell.style.setProperty("--heat", `${Math.round(100 * heat(count, most))}%`);
  return cell;
}

/** Arrow keys go to the next element that can be chosen. */
function walkElements(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("button");
  if (!step || !from) return;
  event.preventDefault();
  const [row, column] = [Number(from.dataset.row), Number(from.dataset.column)];
  for (let i = 1; i < 19; i++) {
    const place = `[data-row="${row + i * step[0]}"][data-column="${column + i * step[1]}"]`;
    const next = event.currentTarget.querySelector(`button${place}`);
    if (!next) continue;
    from.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    return;
  }
}

function periodicTable(file) {
  const counts = countElements(file.records);
  const most = Math.max(...counts);
  if (!most) return el("p", { class: "note" }, "No crystals to count elements in.");
  const total = file.records.filter((record) => record.formula).length;
  const label = "Periodic table, crystals that hold each element";
  const grid = el("div", { class: "periodic", role: "group", "aria-label": label, keydown: walkElements },
    ELEMENTS.map((element) => elementCell(element, counts[element.number], most, total)));
  grid.querySelector("button").tabIndex = 0;
  return el("div", {}, grid, heatScale(most), elementNumbers(counts, total));
}

/** Colors and what they stand for; the middle of a square root is a quarter. */
function heatScale(most) {
  return el("div", { class: "scale", "aria-hidden": "true" }, el("span", {}, "0"),
    el("i", {}, el("em", {}, integer(Math.round(most / 4)))), el("span", {}, integer(most)), " crystals that hold the element");
}

function elementNumbers(counts, total) {
  const present = ELEMENTS.filter((element) => counts[element.number]);
  const ordered = present.sort((a, b) => counts[b.number] - counts[a.number] || a.number - b.number);
  const rows = ordered.map(({ name, symbol, number }) => [name, symbol, integer(counts[number]), percent(counts[number] / total)]);
  return el("details", {}, el("summary", {}, "Numbers"),
    plainTable("Crystals that hold each element", ["Element", "Symbol", "Crystals", "Share"], rows));
}

function exampleLink({ example: name, kinds }) {
  if (missing(name) || name === "") return null;
  const of = kinds > 1 ? `${integer(kinds)} different ones; ` : "";
  return el("small", {}, of, "for example ", el("button", { class: "link", type: "button", click: () => showCrystal(name) }, name));
}

function reasonsTable(file) {
  const reasons = [...file.reasons].sort((a, b) => b.count - a.count);
  if (!reasons.length) return el("p", { class: "note" }, "Nothing failed.");
  return el("table", { class: "plain reasons" },
    el("caption", { class: "hidden" }, "Reasons of failures"),
    el("thead", {}, el("tr", {}, ["Reason", "Crystals"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, reasons.map((entry) => el("tr", {},
      el("th", { scope: "row" }, entry.reason, exampleLink(entry)), el("td", {}, integer(entry.count))))));
}
