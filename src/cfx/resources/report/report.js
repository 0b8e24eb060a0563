// The page: what comes in which order.

const METRICS_HELP =
  "Rates count all crystals of a file, with intervals that hold the true rate with 95\u202f% confidence.";
const CLASSES_HELP =
  "Rates are of the crystals of a class. Intermetallics have two elements or more, no non-metal among them; compounds are " +
  "charge-neutral if SMACT finds oxidation states that balance.";
const FUNNEL_HELP =
  "What is left after each test in turn. The rates above ask for fewer tests at once, so they can be higher.";
const GALLERY_HELP =
  "Drag a crystal to turn it; click it, and the wheel zooms. Bonds join atoms up to 0.4\u202fÅ farther apart than their " +
  "covalent radii, metals among themselves only in crystals of metals.";

function heading(title, text) {
  document.getElementById("heading").append(el("h1", {}, title), el("p", {}, text));
}

/** The numbers one looks for first, where there is but one file to look at. */
function headline(file) {
  const names = ["avg_structure_comp_validity", "frac_unique_structures", "frac_novel_structures",
    "frac_stable_structures", "frac_novel_unique_stable_structures", "frac_below_floor_structures",
    "avg_energy_above_hull_per_atom"];
  const labels = new Map(METRICS.flatMap(([, metrics]) => metrics.map(([name, label]) => [name, label])));
  const worthIt = (name, metric) => metric && !missing(metric.value) && (name !== "frac_below_floor_structures" || metric.count);
  const shown = names.filter((name) => worthIt(name, file.summary[name]));
  if (!shown.length) return null;
  const tile = (name, metric) => {
    const [number, ...unit] = metricText(name, metric).split("\u202f");
    return el("li", { class: "card" }, el("span", {}, labels.get(name)),
      el("strong", {}, number, unit[0] === "%" ? "\u202f" : " ", el("small", {}, unit)),
      el("small", {}, missing(metric.count) ? `over ${plural(metric.of, "crystal")}` : `${integer(metric.count)} of ${integer(metric.of)}`));
  };
  return el("ul", { class: "tiles", "aria-label": "In short" }, shown.map((name) => tile(name, file.summary[name])));
}

/** A part that shows the chosen file. */
function perFile(content) {
  const place = el("div");
  onFile((file) => place.replaceChildren(content(file)));
  return place;
}

function report() {
  const total = sum(FILES.map((file) => file.total));
  heading(FILES.length === 1 ? "Evaluation of generated crystals" : "Comparison of generated crystals",
    FILES.length ? `${plural(total, "crystal")} in ${plural(FILES.length, "file")}` : "Nothing was evaluated.");
  if (!FILES.length) return;
  section("evaluated", "Evaluated", null,
    el("div", { class: "cards" }, settingsCards()), warningsCard(), FILES.length === 1 ? headline(FILES[0]) : null);
  section("metrics", "Metrics", METRICS_HELP, metricsTable());
  section("classes", "Classes", CLASSES_HELP, fileChoice(), el("div", { class: "card" }, perFile(classesTable)));
  section("funnel", "Funnel", FUNNEL_HELP, funnelCard());
  const charts = [hullChart(), densityChart(), elementsChart(), spaceGroupsChart()].filter(Boolean);
  section("distributions", "Distributions", null,
    charts.length ? el("div", { class: "cards charts" }, charts) : el("p", { class: "card note" }, "No values to draw."));
  section("elements", "Elements", null, fileChoice(), el("div", { class: "card" }, perFile(periodicTable)));
  section("failures", "Failures", null, fileChoice(), el("div", { class: "card" }, perFile(reasonsTable)));
  section("crystals", "Crystals", null, fileChoice(), crystalsTable());
  section("gallery", "Gallery", GALLERY_HELP, fileChoice(), perFile(fileGallery));
}

function shortlist() {
  const [file] = FILES;
  const saveTable = () => saveText("shortlist.csv", DATA.table, "text/csv");
  heading(DATA.title, DATA.text);
  section("evaluated", "Evaluated", null, el("div", { class: "cards" }, settingsCards()), warningsCard());
  if (file.funnel.length) section("funnel", "Funnel", null, stagesCard(file));
  section("crystals", "Crystals", null,
    el("p", { class: "buttons" },
      allCifsButton(file.gallery, "shortlist"),
      el("button", { type: "button", class: "save", click: saveTable }, "Save the table as CSV")),
    el("div", { class: "card" }, shortlistTable(file)));
  section("gallery", "Gallery", GALLERY_HELP, gallery(file.gallery));
}

function viewer() {
  heading(DATA.title, plural(DATA.gallery.length, "crystal"));
  section("gallery", "Crystals", GALLERY_HELP, gallery(DATA.gallery),
    DATA.gallery.length > 1 ? allCifsButton(DATA.gallery, DATA.title) : null);
  document.getElementById("contents").remove();
}

/** Crystals in the output of a notebook's cell, where little room is. */
function cell() {
  ROOT.classList.add("cell");
  document.getElementById("content").append(el("p", { class: "note" }, DATA.title), gallery(DATA.gallery));
}

({ viewer, shortlist, cell }[DATA.kind] || report)();
document.getElementById("footer").append(
  DATA.version ? `Made by cfx ${DATA.version}. ` : "Made by cfx. ", "This file needs no network and sends nothing.");
ROOT.dataset.ready = "yes";
