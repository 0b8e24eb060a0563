// Crystals that turn: cards, some at a time, and a large view.

const BATCH = 12;
const IMPLAUSIBLE = "in a gap of the hull, or the potential is wrong";
const HELP = "Drag to turn. Arrow keys turn, plus and minus zoom, 0 resets.";

/** "0.050 eV/atom below the hull". */
function hullText(height) {
  if (Math.abs(height) < 5e-4) return "on the hull";
  return `${decimal(Math.abs(height))}\u202feV/atom ${height < 0 ? "below" : "above"} the hull`;
}

/** What speaks against a crystal, each in a few words. */
function flaws(crystal) {
  return [
    isBelowFloor(crystal) ? IMPLAUSIBLE : null,
    isBelowFloor(bySecond(crystal)) ? `by the second potential ${IMPLAUSIBLE}` : null,
    crystal.valid === false ? "not valid" : null,
    crystal.converged === false ? "the relaxation did not converge" : null,
    crystal.unique === false ? `as ${crystal.duplicate_of || "an earlier one"}` : null,
    crystal.novel === false ? `known${crystal.matched ? `: ${crystal.matched}` : ""}` : null,
  ].filter(Boolean);
}

/** [label, text] of the properties of a crystal that models predicted. */
const predicted = (crystal) => PROPERTIES.filter(([name]) => !missing(crystal[name]))
  .map(([name, label]) => [label, propertyText(crystal, name)]);

function elementLegend(crystal) {
  return el("ul", { class: "atoms" }, composition(crystal).map(({ element, symbol, count }) => {
    const swatch = el("span", { class: "ball", "aria-hidden": "true" });
    swatch.style.setProperty("--ball", element.color);
    return el("li", { "data-tip": `${element.name}: ${plural(count, "atom")} in the cell` }, swatch, symbol);
  }));
}

function crystalCanvas(crystal) {
  const label = `${crystal.formula || "Crystal"}, ${plural(crystal.species.length, "atom")} in the cell. ${HELP}`;
  return el("canvas", { tabindex: 0, role: "img", "aria-label": label });
}

function crystalCard(crystals, index) {
  const crystal = crystals[index];
  const canvas = crystalCanvas(crystal);
  new Viewer(canvas, crystal, false);
  return el("article", { class: "card crystal" }, canvas,
    el("div", { class: "caption" },
      el("h3", {}, missing(crystal.rank) ? [] : `${crystal.rank}. `, formulaNodes(crystal.formula)),
      cifButton(crystal, { class: "cif" }),
      el("button", { type: "button", class: "icon", "aria-label": `Enlarge ${crystal.formula || "the crystal"}`,
        click: () => openCrystal(crystals, index) }, "⤢"),
      missing(crystal.space_group) ? null : el("p", {}, spaceGroupName(crystal.space_group)),
      missing(crystal.e_above_hull) ? null : el("p", {}, hullText(crystal.e_above_hull)),
      missing(crystal.second_e_above_hull) ? null : el("p", {}, `second potential: ${hullText(crystal.second_e_above_hull)}`),
      predicted(crystal).map(([label, text]) => el("p", {}, `${label}: ${text}`)),
      flaws(crystal).map((text) => el("p", { class: "warn" }, text)),
      el("p", { class: "faint name" }, plainText(crystal.name))),
    elementLegend(crystal));
}

/** One atom of each orbit, with its place in the cell that is drawn. */
function sitesTable(crystal) {
  const rows = crystal.sites.map(([atom, , wyckoff]) => [wyckoff, crystal.species[atom],
    ...crystal.frac_coords[atom].map((value) => decimal(value, 4))]);
  return el("details", { open: rows.length < 7 }, el("summary", {}, `${plural(rows.length, "site")}`),
    plainTable("Symmetry-inequivalent sites, fractional coordinates", ["Wyckoff", "Element", "x", "y", "z"], rows));
}

/** The gallery of a file, and in which order it comes. */
function fileGallery(file) {
  const crystals = file.gallery;
  const all = file.records.filter((record) => !missing(record.num_atoms)).length || crystals.length;
  const order = crystals.some((crystal) => !missing(crystal.e_above_hull))
    ? ", sorted by energy above the hull, the lowest first; those below the floor come last"
    : ": valid ones first, then those that are unique and novel, then as in the file";
  const many = crystals.length < all ? `${integer(crystals.length)} of ${plural(all, "crystal")}` : plural(all, "crystal");
  return el("div", {}, el("p", { class: "note order" }, `${many}${order}.`), gallery(crystals),
    crystals.length > 1 ? allCifsButton(crystals, file.name) : null);
}

/** A grid of cards that grows on demand. */
function gallery(crystals) {
  forgetViewers();
  if (!crystals.length) return el("p", { class: "note" }, "No crystals to show.");
  const grid = el("div", { class: `grid${crystals.length === 1 ? " single" : ""}` });
  const more = el("button", { type: "button", class: "more" });
  const grow = () => {
    const from = grid.children.length;
    const to = Math.min(crystals.length, from + BATCH);
    for (let i = from; i < to; i++) grid.append(crystalCard(crystals, i));
    more.textContent = `Show more (${to} of ${integer(crystals.length)} shown)`;
    more.hidden = to === crystals.length;
    ROOT.dataset.gallery = to;
  };
  more.addEventListener("click", grow);
  grow();
  return el("div", {}, grid, more);
}

const large = { crystals: [], index: 0 };

function fillLarge() {
  const crystal = large.crystals[large.index];
  const { lengths, angles, volume } = cellFacts(crystal.cell);
  const facts = [
    ["Name", plainText(crystal.name)],
    ["Space group", spaceGroupName(crystal.space_group)],
    ["Space group before relaxing", missing(crystal.space_group_unrelaxed) ? null : spaceGroupName(crystal.space_group_unrelaxed)],
    ["Atoms in the cell", integer(crystal.species.length)],
    ["Volume", `${decimal(volume, 2)}\u202fÅ³`],
    ["a, b, c", `${lengths.map((value) => decimal(value, 3)).join(", ")}\u202fÅ`],
    ["α, β, γ", `${angles.map((value) => decimal(value, 2)).join(", ")}\u202f°`],
    ["Distance", missing(crystal.e_above_hull) ? null : hullText(crystal.e_above_hull)],
    ["Before relaxing", missing(crystal.e_above_hull_unrelaxed) ? null : hullText(crystal.e_above_hull_unrelaxed)],
    ["Verdict", missing(crystal.verdict) ? null : crystal.verdict],
    ["Decomposition products", missing(crystal.decomposition) ? null : formulaNodes(crystal.decomposition)],
    ...(missing(crystal.second_e_above_hull) ? [] : [
      ["Second potential", hullText(crystal.second_e_above_hull)],
      ["Its verdict", plainText(crystal.second_verdict)],
      ["Its decomposition products", formulaNodes(crystal.second_decomposition)],
    ]),
    ...predicted(crystal),
    ["Remarks", flaws(crystal).join("; ") || null],
  ].filter(([, value]) => value !== null);
  large.title.replaceChildren(...formulaNodes(crystal.formula));
  const long = new Set(["a, b, c", "α, β, γ", "Distance", "Decomposition products", "Second potential",
    "Its decomposition products", "Remarks"]);
  large.facts.replaceChildren(...facts.map(([key, value]) =>
    el("div", { class: long.has(key) ? "long" : null }, el("dt", {}, key), el("dd", {}, value))));
  large.sites.replaceChildren(...(crystal.sites || []).length ? [sitesTable(crystal)] : []);
  large.legend.replaceChildren(elementLegend(crystal));
  large.canvas.setAttribute("aria-label", `${crystal.formula || "Crystal"}. ${HELP}`);
  large.place.textContent = `${integer(large.index + 1)} of ${integer(large.crystals.length)}`;
  large.viewer.show(crystal);
}

function stepLarge(step) {
  large.index = (large.index + step + large.crystals.length) % large.crystals.length;
  fillLarge();
}

const button = (label, name, click) => el("button", { type: "button", "aria-label": name, click }, label);

function viewButtons() {
  const along = AXES.map(([name], axis) => button(name, `View along ${name}`, () => large.viewer.along(axis)));
  return el("div", { class: "buttons" }, el("span", {}, "Along"), along,
    button("−", "Zoom out", () => large.viewer.scale(1 / 1.25)), button("+", "Zoom in", () => large.viewer.scale(1.25)),
    button("Reset", "Reset the view", () => large.viewer.reset()));
}

function bondsBox() {
  const change = (event) => {
    large.viewer.bonds = event.target.checked;
    large.viewer.request();
  };
  return el("label", { class: "check" }, el("input", { type: "checkbox", checked: true, change }), "Bonds");
}

/** The dialog, made when first opened. */
function makeLarge(crystal) {
  large.canvas = el("canvas", { tabindex: 0, role: "img", class: "large" });
  large.title = el("h2", { id: "large-title" });
  large.facts = el("dl");
  large.legend = el("div");
  large.sites = el("div");
  large.place = el("span", { role: "status" });
  large.dialog = el("dialog", { class: "large", "aria-labelledby": "large-title" },
    el("header", {}, large.title, button("✕", "Close", () => large.dialog.close())),
    el("div", { class: "stage-large" }, large.canvas,
      el("div", { class: "side" }, large.legend, large.facts, large.sites, viewButtons(), bondsBox(),
        el("button", { type: "button", click: () => saveCif(large.crystals[large.index]) }, "Save CIF"))),
    el("footer", {}, button("← Previous", "Previous crystal", () => stepLarge(-1)), large.place,
      button("Next →", "Next crystal", () => stepLarge(1))));
  document.body.append(large.dialog);
  large.viewer = new Viewer(large.canvas, crystal, true);
}

function openCrystal(crystals, index) {
  Object.assign(large, { crystals, index });
  if (!large.dialog) makeLarge(crystals[index]);
  fillLarge();
  large.dialog.showModal();
  large.canvas.focus();
}
