// Distributions: energies above the hull, densities, numbers of elements, space groups.

const BINS = 30;

const isNumber = (value) => typeof value === "number";
const valuesOf = (file, column) => file.records.map((record) => record[column]).filter(isNumber);
const quantile = (sorted, share) => sorted[clamp(Math.floor(share * sorted.length), 0, sorted.length - 1)];
const ascending = (values) => [...values].sort((a, b) => a - b);
const filesWith = (column) => FILES.filter((file) => valuesOf(file, column).length);

/** What the reference has of a column, from the first file that comes with one. */
const referenceOf = (files, column) => files.map((file) => file.reference[column]).find((values) => values.length) || [];

/** The counts of a column of some files, to draw. */
const seriesOf = (files, column, edges) => files.map((file) =>
  ({ name: file.name, kind: seriesClass(file.index), counts: countInto(edges, valuesOf(file, column)) }));

const referenceSeries = (counts) => ({ name: "reference", kind: "reference", reference: true, counts });

/** Edges of bins of a round width; what lies beyond goes into the first and the last. */
function binEdges(low, high, most = BINS) {
  const step = roundStep(high - low || 1, most);
  const first = Math.floor(low / step + 1e-9);
  const count = Math.max(1, Math.ceil(high / step - 1e-9) - first);
  return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function countInto(edges, values) {
  const counts = new Array(edges.length - 1).fill(0);
  const step = edges[1] - edges[0];
  for (const value of values) counts[clamp(Math.floor((value - edges[0]) / step + 1e-9), 0, counts.length - 1)] += 1;
  return counts;
}

/** "0.02 to 0.04"; the outer bins say what else is in them. */
function binNames(edges, values) {
  const digits = (value) => tickText(value, edges);
  const below = values.some((value) => value < edges[0]);
  const above = values.some((value) => value > edges.at(-1));
  return edges.slice(1).map((high, i) => {
    if (i === 0 && below) return `below ${digits(high)}`;
    if (i === edges.length - 2 && above) return `${digits(edges[i])} and above`;
    return `${digits(edges[i])} to ${digits(high)}`;
  });
}

/** A histogram of a column of all files and, if there is one, of the reference. */
function columnHistogram(column, spec) {
  const shown = filesWith(column);
  if (!shown.length) return null;
  const reference = spec.reference ? referenceOf(shown, column) : [];
  const all = ascending([...shown.flatMap((file) => valuesOf(file, column)), ...reference]);
  const edges = spec.edges(all);
  const series = seriesOf(shown, column, edges);
  if (reference.length) series.push(referenceSeries(countInto(edges, reference)));
  const xTicks = (count) => {
    const places = ticks(edges[0], edges.at(-1), count);
    return places.map((value) => [value, tickText(value, places)]);
  };
  const words = shown.map((file) => describe(file, column, spec.unit)).join(" ");
  return histogram({ ...spec, edges, names: binNames(edges, all), series, xTicks, describe: words });
}

function describe(file, column, unit) {
  const values = ascending(valuesOf(file, column));
  return `${file.name}: ${plural(values.length, "value")}, median ${decimal(quantile(values, 0.5))} ${unit}.`;
}

const hullChart = () => columnHistogram("e_above_hull", {
  title: "Energy above the hull", wide: true, xLabel: "energy above the hull, eV/atom", unit: "eV/atom",
  note: "Left of 0: stable, down to the floor. Left of 0.1: metastable. The outer bins hold what lies beyond.",
  marks: [{ value: 0, text: "0: on the hull" }, { value: 0.1, text: "0.1: metastable" }],
  edges: (all) => binEdges(Math.min(0, Math.max(-0.5, quantile(all, 0.005))), Math.max(0.2, quantile(all, 0.97)), 40),
});

const densityChart = () => columnHistogram("density", {
  title: "Density", xLabel: "density, g/cm³", unit: "g/cm³", reference: true,
  edges: (all) => binEdges(0, Math.max(1, quantile(all, 0.995))),
});

function elementsChart() {
  const shown = filesWith("num_elements");
  if (!shown.length) return null;
  const reference = referenceOf(shown, "num_elements");
  const numbers = shown.flatMap((file) => valuesOf(file, "num_elements"));
  const most = largest([...numbers, ...reference.map(([number]) => number)]);
  const last = clamp(most, 3, 12);
  const edges = Array.from({ length: last + 1 }, (_, i) => i + 0.5);
  const names = edges.slice(1).map((_, i) => (i + 1 === last && most > last ? `${last} and more` : String(i + 1)));
  const series = seriesOf(shown, "num_elements", edges);
  if (reference.length) {
    const counts = new Array(last).fill(0);
    for (const [number, count] of reference) counts[clamp(number, 1, last) - 1] += count;
    series.push(referenceSeries(counts));
  }
  return histogram({ title: "Number of elements", xLabel: "different elements in a crystal", edges, names, series,
    xTicks: () => names.map((name, i) => [i + 1, String(i + 1)]) });
}

function spaceGroupsChart() {
  const shown = filesWith("space_group");
  if (!shown.length) return null;
  const counted = shown.map((file) => {
    const counts = new Map();
    for (const number of valuesOf(file, "space_group")) counts.set(number, (counts.get(number) || 0) + 1);
    return { file, counts, total: sum([...counts.values()]) };
  });
  const share = (number) => sum(counted.map(({ counts, total }) => (counts.get(number) || 0) / total));
  const found = [...new Set(counted.flatMap(({ counts }) => [...counts.keys()]))];
  const top = found.sort((a, b) => share(b) - share(a) || a - b).slice(0, 20);
  return bars({
    title: "Space groups found", wide: true, rowLabel: "Space group", labels: top.map(spaceGroupName),
    note: `${found.length > top.length ? `The ${top.length} most frequent of ${found.length}. ` : ""}Share of crystals.`,
    series: counted.map(({ file, counts, total }) => ({
      name: file.name, kind: seriesClass(file.index), total, counts: top.map((number) => counts.get(number) || 0),
    })),
  });
}
