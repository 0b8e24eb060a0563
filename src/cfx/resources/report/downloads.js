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

/** A CIF block: what came with the crystal as its CIF, or else all atoms of the cell that is drawn. */
function cifText(crystal) {
  if (crystal.cif) return crystal.cif;
  const { lengths, angles } = cellFacts(crystal.cell);
  const tags = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"];
  const group = missing(crystal.space_group) ? "not known" : `${crystal.space_group}`;
  const energy = missing(crystal.e_above_hull) ? [] : [`# energy above the hull: ${crystal.e_above_hull} eV/atom`];
  const sites = crystal.frac_coords.map((frac, i) => {
    const symbol = fileWord(elementOf(crystal.species[i]).symbol) || "X";
    return [`${symbol}${i + 1}`, symbol, ...frac.map((value) => value.toFixed(6)), 1].join(" ");
  });
  return [
    `# ${cifWords(crystal.name)}: all atoms of the cell; space group found: ${group}`, ...energy,
    `data_${crystalFileName(crystal)}`,
    ...[...lengths, ...angles].map((value, i) => `_cell_${tags[i]} ${value.toFixed(6)}`),
    "_space_group_IT_number 1", "_space_group_name_H-M_alt 'P 1'",
    "loop_", "_space_group_symop_operation_xyz", "'x, y, z'",
    "loop_", ...["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"].map((tag) => `_atom_site_${tag}`),
    ...sites, "",
  ].join("\n");
}

const CIF_TYPE = "chemical/x-cif";

function saveCif(crystal) {
  saveText(`${crystalFileName(crystal)}.cif`, cifText(crystal), CIF_TYPE);
}

/** A button that saves the CIF of a crystal. */
function cifButton(crystal, attributes) {
  const title = `Save the CIF of ${crystal.formula || "the crystal"}`;
  return el("button", { type: "button", "aria-label": title, "data-tip": title, click: () => saveCif(crystal), ...attributes }, "CIF");
}
