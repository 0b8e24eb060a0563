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
const seriesOf = (files, column, edges, toTheLeft) => files.map((file) =>
  ({ name: file.name, kind: seriesClass(file.index), counts: countInto(edges, valuesOf(file, column), toTheLeft) }));

const referenceSeries = (counts) => ({ name: "reference", kind: "reference", reference: true, counts });

/** Edges of bins of a round width; what lies beyond goes into the first and the last. */
function binEdges(low, high, most = BINS) {
  const step = roundStep(high - low || 1, most);
  const first = Math.floor(low / step + 1e-9);
  const count = Math.max(1, Math.ceil(high / step - 1e-9) - first);
  return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Values in each bin. What is on an edge counts to the right of it, or to the left where that is asked for. */
function countInto(edges, values, edgesToTheLeft = false) {
  const counts = new Array(edges.length - 1).fill(0);
  const slack = edgesToTheLeft ? -ROUNDING : 1e-9 * (edges[1] - edges[0]);
  for (const value of values) {
    const bin = edges.findIndex((edge) => edge > value + slack) - 1;
    counts[bin < -1 ? counts.length - 1 : clamp(bin, 0, counts.length - 1)] += 1;
  }
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
  const series = seriesOf(shown, column, edges, spec.edgesToTheLeft);
  const outer = [all[0] < edges[0] ? 0 : null, all.at(-1) > edges.at(-1) ? edges.length - 2 : null];
  for (const one of series) one.outer = outer;
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

/** The widest part of the axis of energies that is drawn, eV/atom: crystals far beyond say no more than that they are. */
const HULL_AXIS = [-0.5, 1];

/** Edges of bins that have each threshold among them, so that no bin holds crystals of two verdicts. */
function hullEdges(all, thresholds) {
  const low = Math.min(...thresholds.filter((value) => value >= HULL_AXIS[0]), Math.max(HULL_AXIS[0], quantile(all, 0.005)));
  const edges = binEdges(low, clamp(quantile(all, 0.97), 0.2, HULL_AXIS[1]), 40);
  const apart = (value) => edges.every((edge) => Math.abs(edge - value) > 1e-9);
  return ascending([...edges, ...thresholds.filter((value) => value > edges[0] && apart(value))]);
}

/** "131 of 300 lie beyond the right end, up to 12.3 eV/atom." */
function beyondText(values, end) {
  const beyond = values.filter((value) => value > end);
  if (!beyond.length) return "";
  const most = decimal(largest(beyond), 1);
  return ` ${integer(beyond.length)} of ${integer(values.length)} lie beyond the right end, up to ${most}\u202feV/atom.`;
}

function hullChart() {
  const shown = filesWith("e_above_hull");
  if (!shown.length) return null;
  const floors = [...new Set(shown.map((file) => file.floor).filter(isNumber))];
  const values = ascending(shown.flatMap((file) => valuesOf(file, "e_above_hull")));
  const edges = hullEdges(values, [0, 0.1, ...floors]);
  return columnHistogram("e_above_hull", {
    title: "Energy above the hull", wide: true, xLabel: "energy above the hull, eV/atom", unit: "eV/atom",
    note: `Up to 0: stable, down to the floor. Up to 0.1: metastable. The outer bins hold what lies beyond.${
      beyondText(values, edges.at(-1))}`,
    marks: [...floors.map((value) => ({ value, text: `${decimal(value, 1)}: the floor` })),
      { value: 0, text: "0: on the hull" }, { value: 0.1, text: "0.1: metastable" }],
    edgesToTheLeft: true, edges: () => edges,
  });
}

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
