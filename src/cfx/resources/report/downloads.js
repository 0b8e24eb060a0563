// Files that the page makes itself: the CIF of a crystal, the table as CSV. Nothing is fetched or sent.

/** Saves a text as a file. */
function saveText(name, text, type) {
  // Taken off its object, which a static function does not need: no text of this page looks like a style's address.
  const addressOf = URL.createObjectURL;
  const address = addressOf(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL.call(URL, address), 60_000);
}

/** What of a text may be part of the name of a file or of a CIF block, at most 80 characters. */
const fileWord = (text) => String(text).replace(/[^\w.+-]+/g, "_").replace(/^[_.]+|_+$/g, "").slice(0, 80);

/** A text as it may stand in one line of a CIF: ASCII that can be seen. */
const cifWords = (text) => String(text).replace(/[^\x20-\x7e]/g, "?");

/** The name of a crystal's file and block: its formula and its name, or one of them where the other adds nothing. */
function crystalFileName(crystal) {
  const [formula, name] = [fileWord(crystal.formula ?? ""), fileWord(crystal.name ?? "")];
  return name.startsWith(formula) ? name || "crystal" : [formula, name].filter(Boolean).join("_");
}

/** Cell lengths (angstrom), angles (degrees) and volume (cubic angstrom). */
function cellFacts(cell) {
  const lengths = cell.map(norm);
  const angle = (i, j) => (180 / Math.PI) * Math.acos(clamp(dot(cell[i], cell[j]) / (lengths[i] * lengths[j] || 1), -1, 1));
  const volume = Math.abs(dot(cell[0], cross(cell[1], cell[2])));
  return { lengths, angles: [angle(1, 2), angle(0, 2), angle(0, 1)], volume };
}

const CIF_CELL = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"];
const CIF_SITE = ["label", "type_symbol", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy"];
const NO_SYMMETRY = { group: 1, symbol: "P1", operations: ["x, y, z"], words: "all atoms of the cell, without symmetry" };

/** The symmetry that a CIF can state: that of the space group found where the cell is in its standard setting. */
function cifSymmetry(crystal) {
  const operations = crystal.standard && DATA.operations[crystal.space_group];
  if (!operations) {
    const sites = crystal.species.map((_, i) => [i, 1]);
    const found = missing(crystal.space_group) ? "" : `; space group found: ${crystal.space_group}`;
    return { ...NO_SYMMETRY, words: NO_SYMMETRY.words + found, sites };
  }
  const [group, symbol] = [crystal.space_group, SPACE_GROUPS[crystal.space_group - 1]];
  return { group, symbol, operations, words: "symmetry found within 0.01 angstrom", sites: crystal.sites };
}

/** A CIF block: what came with the crystal as its CIF, or else the cell that is drawn. */
function cifText(crystal) {
  if (crystal.cif) return crystal.cif;
  const { lengths, angles } = cellFacts(crystal.cell);
  const { group, symbol, operations, words, sites } = cifSymmetry(crystal);
  const energy = missing(crystal.e_above_hull) ? [] : [`# energy above the hull: ${crystal.e_above_hull} eV/atom`];
  const rows = sites.map(([atom, count], i) => {
    const element = fileWord(elementOf(crystal.species[atom]).symbol) || "X";
    return [`${element}${i + 1}`, element, count, ...crystal.frac_coords[atom].map((value) => value.toFixed(6)), 1].join(" ");
  });
  return [
    `# ${cifWords(crystal.name)}: ${words}`, ...energy, `data_${crystalFileName(crystal)}`,
    ...[...lengths, ...angles].map((value, i) => `_cell_${CIF_CELL[i]} ${value.toFixed(6)}`),
    `_space_group_IT_number ${group}`, `_space_group_name_H-M_alt '${symbol}'`,
    "loop_", "_space_group_symop_operation_xyz", ...operations.map((text) => `'${text}'`),
    "loop_", ...CIF_SITE.map((tag) => `_atom_site_${tag}`), ...rows, "",
  ].join("\n");
}

const CIF_TYPE = "chemical/x-cif";

function saveCif(crystal) {
  saveText(crystal.cif_file || `${crystalFileName(crystal)}.cif`, cifText(crystal), CIF_TYPE);
}

/** A button that saves the CIF of a crystal. */
function cifButton(crystal, attributes) {
  const title = `Save the CIF of ${crystal.formula || "the crystal"}`;
  return el("button", { type: "button", "aria-label": title, "data-tip": title, click: () => saveCif(crystal), ...attributes }, "CIF");
}

/** A button that saves the crystals of a gallery, one block each, in one file. */
function allCifsButton(crystals, name) {
  const save = () => saveText(`${fileWord(name) || "crystals"}.cif`, crystals.map(cifText).join("\n"), CIF_TYPE);
  return el("button", { type: "button", class: "save", click: save }, `Save ${plural(crystals.length, "CIF")} in one file`);
}

/** A value as a cell of a CSV file, quoted where it has to be. */
function csvCell(value) {
  const text = missing(value) ? "" : typeof value === "boolean" ? (value ? "True" : "False") : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Records as CSV: every column of a file, named as in the table that cfx eval writes. */
const csvText = (columns, records) =>
  [columns, ...records.map((record) => columns.map((column) => record[column]))]
    .map((row) => `${row.map(csvCell).join(",")}\r\n`).join("");
