// Charts as SVG: drawn for the width they have, redrawn when it changes.

/** Round steps: the smallest of 1, 2 or 5 times a power of ten that cuts a range into at most `count`. */
function roundStep(range, count) {
  const power = 10 ** Math.floor(Math.log10(range / count));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => range / step <= count + 1e-9);
}

function ticks(low, high, count) {
  const step = roundStep(high - low || 1, count);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Tick labels with the decimals that the step between them needs, and no more. */
function tickText(value, all) {
  const digits = Math.max(...all.map((tick) => (String(tick).split(".")[1] || "").length));
  return decimal(value, digits);
}

/** A figure with title, legend, picture and the numbers behind it. */
function figure({ title, describe, entries, numbers, draw, note, wide }) {
  const plot = el("div", { class: "plot" });
  let drawn = 0;
  const redraw = () => {
    const width = Math.round(plot.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const picture = draw(width);
    setAttributes(picture, { role: "img", "aria-label": describe });
    plot.replaceChildren(picture);
  };
  // Drawing changes the height, which an observer must not do while it is called.
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(plot);
  return el("figure", { class: wide ? "card wide" : "card" },
    el("figcaption", {}, el("h3", {}, title), note ? el("p", { class: "note" }, note) : null),
    entries.length > 1 ? legend(entries) : null, plot,
    el("details", {}, el("summary", {}, "Numbers"), plainTable(title, ...numbers)));
}

const MARGIN = { left: 46, right: 12, top: 22, bottom: 44 };

/** The frame of a chart: grid, axes with labels, and the functions from values to pixels. */
function axes(width, height, { xLow, xHigh, yHigh, xLabel, yLabel, xTicks }) {
  const x = (value) => MARGIN.left + ((value - xLow) / (xHigh - xLow || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (share) => height - MARGIN.bottom - (share / (yHigh || 1)) * (height - MARGIN.top - MARGIN.bottom);
  const svg = mark("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  const levels = ticks(0, 100 * yHigh, 4);
  for (const level of levels) {
    const at = y(level / 100);
    svg.append(
      mark("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }),
      mark("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end" }, tickText(level, levels)));
  }
  for (const [value, text] of xTicks(Math.max(2, Math.floor(width / 80)))) {
    svg.append(mark("text", { x: x(value), y: height - MARGIN.bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(
    mark("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(0), y2: y(0) }),
    mark("text", { class: "label", x: x((xLow + xHigh) / 2), y: height - 6, "text-anchor": "middle" }, xLabel),
    mark("text", { class: "label", x: 2, y: 12 }, yLabel));
  return { svg, x, y };
}

/** The outline of a histogram as steps from the base line and back to it. */
function steps(edges, shares, x, y) {
  const tops = shares.map((share, i) => `V${y(share).toFixed(1)}H${x(edges[i + 1]).toFixed(1)}`);
  return `M${x(edges[0]).toFixed(1)},${y(0).toFixed(1)}${tops.join("")}V${y(0).toFixed(1)}`;
}

/** One series of a histogram: columns if it is the only one of its kind, else an outline one can see through. */
function drawSeries(series, edges, only, x, y) {
  if (series.reference || !only) {
    return [mark("path", { class: `steps ${series.kind}`, d: steps(edges, series.shares, x, y) })];
  }
  return series.shares.map((share, i) => mark("rect", {
    class: `column ${series.kind}${series.outer?.includes(i) ? " outer" : ""}`, x: x(edges[i]) + 0.5, width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1),
    y: y(share), height: y(0) - y(share),
  }));
}

/** Vertical lines with names, one below the other. */
function drawMarks(marks, x, top, bottom, right) {
  const kind = "mark";
  const lines = marks.map(({ value }) => mark("line", { class: kind, x1: x(value), x2: x(value), y1: top, y2: bottom }));
  const names = marks.map(({ value, text }, i) => {
    const [side, anchor] = x(value) + 7 * text.length > right ? [-5, "end"] : [5, "start"];
    return mark("text", { class: kind, x: x(value) + side, y: top + 12 + 15 * i, "text-anchor": anchor }, text);
  });
  return [...lines, ...names];
}

/**
 * A histogram of shares.
 * spec: title, note, xLabel, edges, names (of the bins), series ([{name, kind, counts, reference}]), marks, xTicks.
 */
function histogram(spec) {
  const series = spec.series.map((one) => {
    const total = sum(one.counts) || 1;
    return { ...one, total, shares: one.counts.map((count) => count / total) };
  });
  const yHigh = 1.08 * Math.max(...series.flatMap((one) => one.shares), 0.01);
  const marks = (spec.marks || []).filter(({ value }) => value >= spec.edges[0] && value <= spec.edges.at(-1));
  const only = series.filter((one) => !one.reference).length === 1;
  const shareText = (one, i) => percent(one.shares[i]) + (one.reference ? "" : ` (${integer(one.counts[i])})`);
  const tip = (i) => [spec.names[i], ...series.map((one) => `${one.name}: ${shareText(one, i)}`)].join("\n");
  const draw = (width) => {
    const height = width < 480 ? 240 : 280;
    const { svg, x, y } = axes(width, height, {
      xLow: spec.edges[0], xHigh: spec.edges.at(-1), xLabel: spec.xLabel, xTicks: spec.xTicks, yHigh,
      yLabel: "share of crystals, %",
    });
    svg.append(...series.flatMap((one) => drawSeries(one, spec.edges, only, x, y)));
    svg.append(...drawMarks(marks, x, MARGIN.top, y(0), width - MARGIN.right));
    svg.append(...spec.names.map((_, i) => mark("rect", {
      class: "hit", x: x(spec.edges[i]), width: x(spec.edges[i + 1]) - x(spec.edges[i]), y: MARGIN.top,
      height: y(0) - MARGIN.top, "data-tip": tip(i),
    })));
    return svg;
  };
  return figure({
    title: spec.title, note: spec.note, wide: spec.wide, draw, entries: series.map((one) => [one.name, one.kind]),
    describe: `${spec.title}. ${spec.describe || ""} The numbers follow as a table.`,
    numbers: [[spec.xLabel, ...series.map((one) => one.name)],
      spec.names.map((name, i) => [name, ...series.map((one) => shareText(one, i))])],
  });
}

/** Horizontal bars in groups. spec: title, note, labels, series ([{name, kind, counts, total}]). */
function bars(spec) {
  const share = (one, i) => one.counts[i] / (one.total || 1);
  const shareText = (one, i) => `${integer(one.counts[i])} (${percent(share(one, i))})`;
  const high = 1.02 * Math.max(...spec.series.flatMap((one) => one.counts.map((_, i) => share(one, i))), 0.001);
  const draw = (width) => {
    const [left, right, thick] = [104, 52, spec.series.length > 1 ? 12 : 14];
    const step = thick * spec.series.length + (spec.series.length > 1 ? 9 : 7);
    const columns = width > 760 && spec.labels.length > 5 ? 2 : 1;
    const rows = Math.ceil(spec.labels.length / columns);
    const svg = mark("svg", { viewBox: `0 0 ${width} ${step * rows + 8}`, width, height: step * rows + 8 });
    const length = (one, i) => (share(one, i) / high) * (width / columns - left - right);
    spec.labels.forEach((label, i) => {
      const [x, top] = [left + Math.floor(i / rows) * (width / columns), 4 + (i % rows) * step];
      const middle = top + (thick * spec.series.length) / 2;
      svg.append(mark("text", { x: x - 8, y: middle + 4, "text-anchor": "end" }, label));
      spec.series.forEach((one, k) => {
        const y = top + k * thick;
        svg.append(
          mark("rect", { class: `column ${one.kind}`, x, y, width: length(one, i), height: thick - 1, rx: 1.5 }),
          mark("text", { class: "value", x: x + length(one, i) + 5, y: y + thick / 2 + 4 }, percent(share(one, i))),
          mark("rect", { class: "hit", x: x - left, y, width: width / columns, height: thick,
            "data-tip": `${label}\n${one.name}: ${shareText(one, i)}` }));
      });
    });
    return svg;
  };
  return figure({
    title: spec.title, note: spec.note, wide: spec.wide, draw, entries: spec.series.map((one) => [one.name, one.kind]),
    describe: `${spec.title}. The numbers follow as a table.`,
    numbers: [[spec.rowLabel, ...spec.series.map((one) => one.name)],
      spec.labels.map((label, i) => [label, ...spec.series.map((one) => shareText(one, i))])],
  });
}
