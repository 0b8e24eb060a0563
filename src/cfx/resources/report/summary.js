// What was evaluated, the numbers that sum it up, and the funnel from all crystals to stable, unique and novel ones.

/** [group, [[name, label, meaning]]]; the names are MatterGen's where it has them. */
const METRICS = [
  ["Validity", [
    ["avg_structure_validity", "Valid structures", "No two atoms within 0.5 Å, in a cell larger than 0.1 Å³."],
    ["avg_comp_validity", "Valid compositions", "Oxidation states can balance; alloys count as valid."],
    ["avg_comp_validity_without_alloys", "Charges balance", "As valid compositions, but alloys have to balance too."],
    ["avg_structure_comp_validity", "Valid", "Structure and composition are both valid."],
    ["frac_space_group_as_asked", "Space group as asked", "Of the crystals for which one was asked."],
  ]],
  ["Uniqueness and novelty", [
    ["frac_unique_structures", "Unique", "No earlier crystal of the file is the same."],
    ["frac_novel_structures", "Novel", "The reference holds no such crystal."],
    ["frac_novel_unique_structures", "Unique and novel", "Both at once."],
  ]],
  ["Diversity", [
    ["num_compositions", "Distinct compositions", "Different reduced formulas."],
    ["vendi_compositions", "Vendi score of compositions", "How many there seem to be, where alike ones count less."],
    ["avg_hhi_production", "HHI by production", "How few countries produce the elements: up to 10,000, where one does."],
    ["avg_hhi_reserve", "HHI by reserves", "The same for the countries that have them."],
  ]],
  ["Stability", [
    ["frac_stable_structures", "Metastable", "At most 0.1 eV/atom above the hull (MatterGen calls this stable)."],
    ["frac_on_hull_structures", "Stable", "On the hull or below it, down to the floor."],
    ["frac_novel_unique_stable_structures", "S.U.N. at 0.1 eV/atom", "Metastable, unique and novel."],
    ["frac_novel_unique_on_hull_structures", "S.U.N. at 0 eV/atom", "Stable, unique and novel."],
    ["frac_below_floor_structures", "Below the floor",
      "So far below the hull that it has a gap there, or the potential is wrong. Not counted as stable or S.U.N."],
    ["avg_energy_above_hull_per_atom", "Mean energy above the hull", "How far an atom is from the most stable phases."],
    ["avg_rmsd_from_relaxation", "Mean displacement in relaxation", "How far atoms move to where forces vanish."],
    ["avg_energy_above_hull_change_per_atom", "Mean change of energy above the hull", "What relaxing brings; negative is down."],
    ["frac_space_group_changed", "Space group changed", "Another one is found after relaxing."],
    ["frac_relaxation_converged", "Relaxation converged", "Forces fell below the limit within the steps allowed."],
  ]],
  ["Two potentials", [
    ["frac_confirmed_stable_structures", "Metastable by both", "At most 0.1 eV/atom above either potential's own hull."],
    ["frac_confirmed_on_hull_structures", "Stable by both", "On either hull or below it, down to the floor."],
    ["frac_confirmed_novel_unique_stable_structures", "S.U.N. at 0.1 eV/atom by both", "Metastable by both, unique and novel."],
    ["frac_confirmed_novel_unique_on_hull_structures", "S.U.N. at 0 eV/atom by both", "Stable by both, unique and novel."],
    ["frac_verdicts_differ", "Verdicts differ", "Of the crystals that both potentials know."],
    ["avg_e_above_hull_difference", "Mean difference", "Second less first, of the crystals that either calls metastable or stable."],
    ["avg_abs_e_above_hull_difference", "Mean absolute difference", "How far apart the two are, of the same crystals."],
    ["median_abs_e_above_hull_difference", "Median absolute difference", "Of all crystals that both know."],
    ["rank_correlation_e_above_hull", "Rank correlation", "Of the two energies above the hull; 1 where they rank crystals alike."],
  ]],
  ["Likeness to the reference", [
    ["wdist_density", "Distance of densities", "Wasserstein distance of distributions; 0 is alike."],
    ["wdist_num_elements", "Distance of numbers of elements", "Wasserstein distance of distributions; 0 is alike."],
    ["coverage_recall", "Coverage (recall)", "Crystals of the reference that have a similar one here."],
    ["coverage_precision", "Coverage (precision)", "Crystals here that have a similar one in the reference."],
  ]],
];

const isRate = (name, metric) => !missing(metric.count) || (!metric.unit && /^(frac_|coverage_|avg_.*validity$)/.test(name));

const unitText = (unit) => String(unit).replace("angstrom", "Å").replace("g/cm3", "g/cm³");

/** Decimals of a number and its error: three below 10, one below 1000, none above. */
const digitsOf = (value) => (Math.abs(value) < 10 ? 3 : Math.abs(value) < 1000 ? 1 : 0);
const rounded = (value, digits) => (digits ? decimal(value, digits) : integer(Math.round(value)));

function metricText(name, metric) {
  if (isRate(name, metric)) return percent(metric.value);
  const number = Number.isInteger(metric.value) ? integer(metric.value) : rounded(metric.value, digitsOf(metric.value));
  return `${number}${metric.unit ? `\u202f${unitText(metric.unit)}` : ""}`;
}

/** "718 of 772" and "95 % interval 91.3 to 94.8 %", as far as they are known. */
function metricDetail(name, metric) {
  const parts = [];
  if (!missing(metric.count)) parts.push(`${integer(metric.count)} of ${integer(metric.of)}`);
  else if (!missing(metric.of)) parts.push(`over ${plural(metric.of, "crystal")}`);
  if (!missing(metric.low) && !missing(metric.high)) {
    const range = isRate(name, metric)
      ? `${decimal(100 * metric.low, 1)} to ${percent(metric.high)}`
      : `${decimal(metric.low)} to ${decimal(metric.high)}`;
    parts.push(`95\u202f% interval ${range}`);
  }
  if (!missing(metric.error)) parts.push(`standard error ${rounded(metric.error, digitsOf(metric.value))}`);
  return el("small", {}, parts.map((part, i) => el("span", {}, part + (i + 1 < parts.length ? "; " : ""))));
}

/** A bar from 0 to 100 % with its interval as a whisker. */
function rateBar(metric, index) {
  const bar = el("div", { class: `bar ${seriesClass(index)}`, "aria-hidden": "true" }, el("i"));
  bar.firstChild.style.width = `${100 * clamp(metric.value, 0, 1)}%`;
  if (!missing(metric.low) && !missing(metric.high)) {
    const whisker = el("b");
    whisker.style.left = `${100 * metric.low}%`;
    whisker.style.width = `${100 * (metric.high - metric.low)}%`;
    bar.append(whisker);
  }
  return bar;
}

function metricCell(name, file) {
  const metric = file.summary[name];
  if (missing(metric) || missing(metric.value)) return el("td", { class: "faint" }, "not evaluated");
  return el("td", {}, el("div", { class: FILES.length === 1 ? "inline" : null },
    el("strong", {}, metricText(name, metric)),
    isRate(name, metric) ? rateBar(metric, file.index) : null,
    metricDetail(name, metric)));
}

function metricRow([name, label, meaning]) {
  return el("tr", {},
    el("th", { scope: "row" }, el("span", {}, label), meaning ? el("small", {}, meaning) : null),
    FILES.map((file) => metricCell(name, file)));
}

/** The groups of metrics that some file has, with those that have no label here at the end. */
function metricGroups() {
  const evaluated = (name) => FILES.some((file) => file.summary[name] && !missing(file.summary[name].value));
  const labelled = new Set(METRICS.flatMap(([, metrics]) => metrics.map(([name]) => name)));
  const others = [...new Set(FILES.flatMap((file) => Object.keys(file.summary)))].filter((name) => !labelled.has(name));
  return [...METRICS, ["Other", others.map((name) => [name, name, ""])]]
    .map(([group, metrics]) => [group, metrics.filter(([name]) => evaluated(name))])
    .filter(([, metrics]) => metrics.length);
}

function fileHeader(file) {
  const swatch = el("span", { class: `swatch ${seriesClass(file.index)}`, "aria-hidden": "true" });
  return el("th", { scope: "col" }, el("span", { class: "of" }, swatch, el("span", {}, file.name)));
}

function metricsTable() {
  const groups = metricGroups();
  const shown = new Set(groups.flatMap(([, metrics]) => metrics.map(([name]) => name)));
  const asked = (name) => FILES.some((file) => name in file.summary);
  const left = METRICS.flatMap(([, metrics]) => metrics)
    .filter(([name]) => asked(name) && !shown.has(name)).map(([, label]) => label);
  const table = el("table", { class: "metrics" },
    el("caption", { class: "hidden" }, "Metrics with 95 % confidence intervals"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Metric"), FILES.map(fileHeader))),
    groups.map(([group, metrics]) => el("tbody", {},
      el("tr", { class: "group" }, el("th", { scope: "colgroup", colspan: 1 + FILES.length }, group)), metrics.map(metricRow))));
  table.style.setProperty("--files", FILES.length);
  return el("div", { class: "card" },
    groups.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Metrics" }, table) : null,
    left.length ? el("p", { class: "note" }, el("strong", {}, "Not evaluated: "), `${left.join(", ")}.`) : null);
}

/** [metric of a class, header]. */
const CLASS_METRICS = [
  ["frac_of_crystals", "Share of crystals"], ["frac_unique_structures", "Unique"], ["frac_novel_structures", "Novel"],
  ["frac_stable_structures", "Metastable"], ["frac_on_hull_structures", "Stable"],
  ["frac_novel_unique_stable_structures", "S.U.N. at 0.1"], ["frac_novel_unique_on_hull_structures", "S.U.N. at 0"],
  ["frac_below_floor_structures", "Below the floor"],
];

/** Rates of each class of compositions, of the crystals of the class. */
function classesTable(file) {
  const classes = Object.entries(file.classes);
  if (!classes.length) return el("p", { class: "note" }, "No compositions.");
  const metrics = CLASS_METRICS.filter(([name]) => classes.some(([, rates]) => rates[name]));
  const cell = (rate) => (rate ? `${percent(rate.value)}\n(${integer(rate.count)} of ${integer(rate.of)})` : DASH);
  return plainTable("Rates by class of compositions", ["Class", ...metrics.map(([, header]) => header)],
    classes.map(([name, rates]) => [name, ...metrics.map(([metric]) => cell(rates[metric]))]));
}

/** What the terminal warned of, for each file; nothing where there was nothing. */
function warningsCard() {
  const said = FILES.filter((file) => file.warnings.length);
  if (!said.length) return null;
  return el("article", { class: "card warnings", role: "note" }, el("h3", {}, "Warnings"),
    el("ul", {}, said.flatMap((file) => file.warnings.map((text) =>
      el("li", { class: "warn" }, FILES.length > 1 ? `${file.name}: ${text}` : text)))));
}

const settingText = (value) => {
  if (missing(value)) return DASH;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "number") return Number.isInteger(value) ? integer(value) : String(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
};

/** A text that may be broken after what separates parts of a path or a name. */
const breakable = (text) => String(text).split(/(?<=[/\\_,:])(?=\S)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));

/** Files that were evaluated alike, with how that was. */
function settingsCards() {
  const alike = new Map();
  for (const file of FILES) {
    const key = JSON.stringify(file.settings);
    alike.set(key, [...(alike.get(key) || []), file]);
  }
  return [...alike.values()].map(settingsCard);
}

function settingsCard(files) {
  const settings = Object.entries(files[0].settings);
  return el("article", { class: "card file" },
    files.map((file) => el("div", { class: "head" },
      el("h3", {}, el("span", { class: `swatch ${seriesClass(file.index)}`, "aria-hidden": "true" }), breakable(file.name)),
      el("p", {}, plural(file.total, "crystal")))),
    settings.length ? el("dl", {}, settings.map(([key, value]) =>
      el("div", {}, el("dt", {}, key.replaceAll("_", " ")), el("dd", {}, breakable(settingText(value)))))) : null);
}

/** Energies (eV/atom) so little above a threshold are on it. */
const ROUNDING = 1e-8;

/** Whether a crystal is known to be at most so far above the hull, eV/atom, and not below the floor. */
const isWithin = (record, limit) =>
  !missing(record.e_above_hull) && !isBelowFloor(record) && record.e_above_hull <= limit + ROUNDING;

/** [name, short meaning, test of a record, the value it needs]. */
const STAGES = [
  ["all", "crystals in the file", () => true, null],
  ["readable", "the text describes a crystal", (record) => !missing(record.num_atoms), null],
  ["valid", "structure and composition", (record) => record.valid, "valid"],
  ["unique", "the first of its kind in the file", (record) => record.unique, "unique"],
  ["novel", "not in the reference", (record) => record.novel, "novel"],
  ["metastable", "at most 0.1 eV/atom above the hull",
    (record) => isWithin(record, 0.1), "e_above_hull"],
  ["stable", "on the hull or below, down to the floor", (record) => isWithin(record, 0), "e_above_hull"],
];

/** For each stage: how many passed it and all before, how many pass it alone; null where it was not evaluated. */
function funnel(file) {
  let left = file.records;
  return STAGES.map(([, , test, column]) => {
    if (column && !file.has(column)) return null;
    const before = left.length;
    left = left.filter(test);
    return { count: left.length, lost: before - left.length, alone: file.records.filter(test).length };
  });
}

function funnelBar(file, stage) {
  if (!stage) return el("div", { class: "stage faint" }, el("div", { class: "track none" }), el("span", {}, "not evaluated"));
  const total = file.records.length || 1;
  const fill = el("i");
  fill.style.width = `${(100 * stage.count) / total}%`;
  return el("div", { class: "stage" },
    el("div", { class: `track ${seriesClass(file.index)}`, "aria-hidden": "true" }, fill),
    el("span", {}, el("strong", {}, integer(stage.count)), ` ${percent(stage.count / total)}`,
      stage.lost ? el("small", {}, ` −${integer(stage.lost)}`) : null));
}

function funnelCard() {
  const stages = FILES.map(funnel);
  const rows = STAGES.map(([name, meaning], i) => el("tr", {},
    el("th", { scope: "row" }, el("span", {}, name), el("small", {}, meaning)),
    el("td", {}, FILES.map((file) => funnelBar(file, stages[file.index][i])))));
  const numbers = STAGES.map(([name], i) => [name, ...stages.flatMap((list) =>
    list[i] ? [integer(list[i].count), integer(list[i].alone)] : ["not evaluated", "not evaluated"])]);
  const headers = FILES.flatMap((file) => [`${file.name}: left`, `${file.name}: passing this test alone`]);
  return el("div", { class: "card" },
    FILES.length > 1 ? legend(FILES.map((file) => [file.name, seriesClass(file.index)])) : null,
    el("table", { class: "funnel" }, el("caption", { class: "hidden" }, "How many crystals are left after each test"),
      el("thead", { class: "hidden" }, el("tr", {}, el("th", { scope: "col" }, "Test"), el("th", { scope: "col" }, "Left"))),
      el("tbody", {}, rows)),
    el("details", {}, el("summary", {}, "Numbers"), plainTable("The funnel in numbers", ["Test", ...headers], numbers)));
}

/** The stages of a discovery, each with the crystals that are left and why others were lost. */
function stagesCard(file) {
  const total = file.funnel[0].left || 1;
  const bar = (row) => {
    const fill = el("i");
    fill.style.width = `${(100 * row.left) / total}%`;
    return el("div", { class: "stage" }, el("div", { class: `track ${seriesClass(0)}`, "aria-hidden": "true" }, fill),
      el("span", {}, el("strong", {}, integer(row.left)), row.lost ? el("small", {}, ` −${integer(row.lost)}`) : null));
  };
  const rows = file.funnel.map((row) => el("tr", {},
    el("th", { scope: "row" }, el("span", {}, row.stage), row.lost ? el("small", {}, `lost: ${row.why}`) : null),
    el("td", {}, bar(row))));
  return el("div", { class: "card" },
    el("table", { class: "funnel" }, el("caption", { class: "hidden" }, "How many crystals are left after each stage"),
      el("thead", { class: "hidden" }, el("tr", {}, el("th", { scope: "col" }, "Stage"), el("th", { scope: "col" }, "Left"))),
      el("tbody", {}, rows)));
}

function legend(entries) {
  return el("ul", { class: "legend" }, entries.map(([name, kind]) =>
    el("li", {}, el("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), name)));
}
