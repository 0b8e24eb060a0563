// All crystals as a table: filtered, sorted, and a page at a time, so that many rows stay quick.

const yesNo = (value) => (missing(value) ? DASH : value ? "yes" : "no");

/** [column, header, text of a value, class]; only columns with values are shown. */
const COLUMNS = [
  ["name", "Name", plainText, "name"],
  ["formula", "Formula", plainText, ""],
  ["space_group", "Space group", spaceGroupName, ""],
  ["space_group_relaxed", "After relaxing", spaceGroupName, ""],
  ["space_group_unrelaxed", "Before relaxing", spaceGroupName, ""],
  ["space_group_asked", "Asked for", spaceGroupName, ""],
  ["e_above_hull", "Above hull, eV/atom", (value) => decimal(value, 3), "number"],
  ["verdict", "Verdict", plainText, "verdict"],
  ["class", "Class", plainText, ""],
  ["num_atoms", "Atoms", integer, "number"],
  ["num_elements", "Elements", integer, "number"],
  ["density", "Density, g/cm³", (value) => decimal(value, 2), "number"],
  ["valid_structure", "Structure valid", yesNo, "flag"],
  ["valid_composition", "Composition valid", yesNo, "flag"],
  ["unique", "Unique", yesNo, "flag"],
  ["novel", "Novel", yesNo, "flag"],
  ["matched", "Matches", plainText, "name"],
  ["duplicate_of", "Same as", plainText, ""],
  ["e_above_hull_unrelaxed", "Before relaxing, eV/atom", (value) => decimal(value, 3), "number"],
  ["decomposition", "Decomposition products", formulaNodes, ""],
  ["second_e_above_hull", "Above hull, second potential, eV/atom", (value) => decimal(value, 3), "number"],
  ["e_above_hull_difference", "Second less first, eV/atom", (value) => decimal(value, 3), "number"],
  ["second_verdict", "Verdict, second potential", plainText, "verdict"],
  ["second_decomposition", "Decomposition products, second potential", formulaNodes, ""],
  ["energy_per_atom", "Energy, eV/atom", (value) => decimal(value, 3), "number"],
  ["hhi_production", "HHI, production", (value) => integer(Math.round(value)), "number"],
  ["hhi_reserve", "HHI, reserves", (value) => integer(Math.round(value)), "number"],
  ["rmsd_to_relaxed", "Displacement, Å", (value) => decimal(value, 3), "number"],
  ["converged", "Relaxation converged", yesNo, "flag"],
  ["steps", "Steps", integer, "number"],
  ["probability", "Probability", (value) => percent(value, 0), "number"],
  ["draws", "Draws", integer, "number"],
  ["reason", "Reason", plainText, "reason"],
];

/** Columns of a shortlist, in order. */
const SHORTLIST = ["e_above_hull_unrelaxed", "second_e_above_hull", "e_above_hull_difference",
  "probability", "space_group", "space_group_unrelaxed", "verdict", "second_verdict", "decomposition",
  "second_decomposition", "draws", "converged", "name"];

const isNew = (record) => record.unique && record.novel;

/** [label, test, columns it needs]. */
const FILTERS = [
  ["all crystals", () => true, []],
  ["S.U.N. at 0.1 eV/atom", (record) => isNew(record) && isWithin(record, 0.1), ["unique", "novel", "e_above_hull"]],
  ["S.U.N. at 0 eV/atom", (record) => isNew(record) && isWithin(record, 0), ["unique", "novel", "e_above_hull"]],
  ["at most 0.1 eV/atom above the hull", (record) => isWithin(record, 0.1), ["e_above_hull"]],
  ["at most 0.1 eV/atom above both hulls",
    (record) => isWithin(record, 0.1) && isWithin(bySecond(record), 0.1), ["second_e_above_hull"]],
  ["S.U.N. at 0.1 eV/atom by both potentials",
    (record) => isNew(record) && isWithin(record, 0.1) && isWithin(bySecond(record), 0.1), ["unique", "novel", "second_e_above_hull"]],
  ["the two verdicts differ", (record) => record.second_verdict && record.verdict && record.second_verdict !== record.verdict,
    ["second_verdict"]],
  ["below the floor", (record) => isBelowFloor(record) || isBelowFloor(bySecond(record)), ["verdict"]],
  ["valid", (record) => record.valid, ["valid"]],
  ["not valid", (record) => !record.valid, ["valid"]],
  ["unique and novel", isNew, ["unique", "novel"]],
  ["space group not as asked", (record) => record.space_group !== record.space_group_asked, ["space_group_asked"]],
  ["with a reason of failure", (record) => Boolean(record.reason), ["reason"]],
];

const table = { file: null, page: 0, size: 25, order: null, rows: [] };
const parts = {};

function haystack(record) {
  record.haystack ??= [record.name, record.formula, spaceGroupName(record.space_group), record.reason].join(" ").toLowerCase();
  return record.haystack;
}

function matching() {
  const words = parts.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const symbols = elementsTyped(parts.elements.value).map((element) => element.symbol);
  const [, test] = FILTERS[Number(parts.filter.value)];
  return table.file.records.filter((record) => {
    if (!test(record) || !words.every((word) => haystack(record).includes(word))) return false;
    if (!symbols.length) return true;
    record.symbols ??= new Set(elementsIn(record.formula).map((element) => element.symbol));
    return symbols.every((symbol) => record.symbols.has(symbol));
  });
}

const COLLATOR = new Intl.Collator("en", { numeric: true });

/** Orders records by a column; what is missing comes last either way. */
const byColumn = (column, descending) => (a, b) => {
  const [first, second] = [a[column], b[column]];
  const [none, other] = [missing(first) || first === "", missing(second) || second === ""];
  if (none || other) return none - other;
  const order = typeof first === "string" ? COLLATOR.compare(first, second) : first - second;
  return descending ? -order : order;
};

/** Headers that sort: up, then down, then not at all. `sort` is called with how records compare, or with null. */
function sortingHeaders(columns, sort) {
  let [by, descending] = [null, false];
  const press = (column) => {
    [by, descending] = by !== column ? [column, false] : descending ? [null, false] : [column, true];
    for (const header of headers) {
      const order = header.dataset.column !== by ? "none" : descending ? "descending" : "ascending";
      header.setAttribute("aria-sort", order);
    }
    sort(by && byColumn(by, descending));
  };
  const headers = columns.map(([column, header, , kind]) =>
    el("th", { scope: "col", class: kind, "data-column": column, "aria-sort": "none" },
      el("button", { type: "button", click: () => press(column) }, header)));
  return headers;
}

function updateRows() {
  table.rows = matching();
  if (table.order) table.rows.sort(table.order);
  table.page = 0;
  showPage();
}

function cellOf(record, [column, , text, kind]) {
  const value = record[column];
  if (column === "name") return el("th", { scope: "row", class: kind }, viewLink(record));
  if (column === "formula") return el("td", {}, formulaNodes(value));
  if (kind === "verdict") return el("td", { class: isBelowFloor({ verdict: value }) ? "warn" : "" }, text(value));
  if (kind === "flag") return el("td", { class: missing(value) ? kind : `${kind} ${value ? "yes" : "no"}` }, el("span", {}, text(value)));
  return el("td", { class: kind }, text(value, record));
}

/** The name, as a button if the gallery can show the crystal. */
function viewLink(record) {
  const index = table.file.gallery.findIndex((crystal) => crystal.name === record.name && crystal.formula === record.formula);
  const name = plainText(record.name);
  if (index < 0) return el("span", { "data-tip": name }, name);
  return el("button", { class: "link", type: "button", "data-tip": name, "aria-label": `${name}, show the crystal`,
    click: () => openCrystal(table.file.gallery, index) }, name);
}

/** "26 to 50 of 313 crystals, of 772 in the file". */
function statusText(first, shown, total, all) {
  if (!total) return all ? "No crystal is like that." : "No crystals.";
  const place = `${integer(first + 1)} to ${integer(first + shown)} of ${plural(total, "crystal")}`;
  return total < all ? `${place}, of ${integer(all)} in the file` : place;
}

function showPage() {
  const [first, total] = [table.page * table.size, table.rows.length];
  const rows = table.rows.slice(first, first + table.size);
  parts.body.replaceChildren(...rows.map((record) => el("tr", {}, table.columns.map((column) => cellOf(record, column)))));
  parts.status.textContent = statusText(first, rows.length, total, table.file.records.length);
  parts.save.textContent = `Save ${plural(total, "row")} as CSV`;
  parts.save.disabled = !total;
  parts.back.disabled = table.page === 0;
  parts.forward.disabled = first + table.size >= total;
}

/** Saves what is listed, in its order, with all columns. */
function saveRows() {
  const columns = Object.keys(table.file.columns);
  saveText(`${fileWord(table.file.name) || "crystals"}.csv`, csvText(columns, table.rows), "text/csv");
}

function turnPage(step) {
  table.page += step;
  showPage();
}

/** Fills the table with another file. */
function tableOf(file) {
  Object.assign(table, { file, order: null, columns: COLUMNS.filter(([column]) => file.has(column)) });
  parts.scroll.hidden = !table.columns.length;
  parts.head.replaceChildren(...sortingHeaders(table.columns, (order) => { table.order = order; updateRows(); }));
  parts.search.value = parts.elements.value = "";
  parts.filter.replaceChildren(...FILTERS.map(([label, , needed], i) =>
    (needed.every((column) => file.has(column)) ? el("option", { value: i }, label) : null)).filter(Boolean));
  updateRows();
}

function crystalsTable() {
  const field = (name, label, node) => {
    parts[name] = node;
    return el("label", {}, el("span", {}, label), node);
  };
  const text = (placeholder) =>
    el("input", { type: "search", placeholder, input: updateRows, autocomplete: "off", spellcheck: "false" });
  const button = (name, label, step) => (parts[name] = el("button", { type: "button", click: () => turnPage(step) }, label));
  parts.head = el("tr");
  parts.body = el("tbody");
  parts.scroll = scrollingTable("Crystals; headers sort", "crystals", parts.head, parts.body);
  parts.status = el("p", { role: "status" });
  const size = el("select", { change: (event) => { table.size = Number(event.target.value); updateRows(); } },
    [25, 50, 100, 250].map((count) => el("option", { value: count }, String(count))));
  parts.save = el("button", { type: "button", class: "save", click: saveRows });
  const card = el("div", { class: "card" },
    el("div", { class: "controls" },
      field("search", "Search", text("name, formula, space group, reason")),
      field("elements", "With elements", text("such as Li O")),
      field("filter", "Show", el("select", { change: updateRows })),
      field("size", "Rows", size)),
    parts.scroll,
    el("div", { class: "pager" }, button("back", "Previous", -1), parts.status, button("forward", "Next", 1)), parts.save);
  onFile(tableOf);
  return card;
}

function filterTable(search, elements) {
  parts.search.value = search;
  parts.elements.value = elements;
  parts.filter.selectedIndex = 0;
  updateRows();
  document.getElementById("crystals").scrollIntoView();
  (search ? parts.search : parts.elements).focus({ preventScroll: true });
}

const showElement = (symbol) => filterTable("", symbol);
const showCrystal = (name) => filterTable(String(name), "");

/** The columns of a shortlist: what it is sorted by, energies, predicted properties, and the rest. */
function shortlistColumns(file) {
  const known = new Map(COLUMNS.map((column) => [column[0], column]));
  for (const [name, label] of PROPERTIES) {
    known.set(name, [name, label, (_, crystal) => propertyText(crystal, name), "number"]);
  }
  const names = [file.column, "e_above_hull", ...PROPERTIES.map(([name]) => name), ...SHORTLIST];
  return [...new Set(names)].filter((name) => file.gallery.some((crystal) => !missing(crystal[name])))
    .map((name) => known.get(name) || [name, name, (value) => decimal(value), "number"]);
}

/** The crystals of a shortlist, the best first, each with its CIF. */
function shortlistTable(file) {
  const [crystals, columns] = [file.gallery, shortlistColumns(file)];
  const open = (crystal) => el("button", { type: "button", class: "link", "aria-label": `${crystal.formula}, show the crystal`,
    click: () => openCrystal(crystals, crystals.indexOf(crystal)) }, formulaNodes(crystal.formula));
  const cell = (crystal, column) => (column[0] === "name" ? el("td", {}, crystal.name) : cellOf(crystal, column));
  const row = (crystal) => el("tr", {}, el("th", { scope: "row", class: "number" }, integer(crystal.rank)),
    el("td", { class: "name" }, open(crystal)), columns.map((column) => cell(crystal, column)),
    el("td", {}, cifButton(crystal, { class: "cif" })));
  const body = el("tbody");
  const fill = (order) => body.replaceChildren(...(order ? crystals.toSorted(order) : crystals).map(row));
  const headers = sortingHeaders([["rank", "Rank", integer, "number"], ["formula", "Formula", null, "name"], ...columns], fill);
  fill(null);
  return scrollingTable("Crystals of the shortlist; headers sort", "crystals",
    el("tr", {}, headers, el("th", { scope: "col" }, "CIF")), body);
}
