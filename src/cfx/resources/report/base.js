// What all parts use: the data, elements of the page, numbers as text, hints under the pointer.
"use strict";

const ROOT = document.documentElement;

function recordError(message) {
  ROOT.dataset.error = `${ROOT.dataset.error || ""}${message}\n`;
}
addEventListener("error", (event) => recordError(event.message));
addEventListener("unhandledrejection", (event) => recordError(event.reason));

const missing = (value) => value === null || value === undefined;
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG_SPACE = document.querySelector("svg").namespaceURI;

/** Sets attributes; functions are listeners, true is an empty attribute, null, undefined and false are none. */
function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (!missing(value) && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
}

/** An element of HTML; children are nodes or text, which stays text whatever is in it. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element of SVG. */
function mark(tag, attributes, ...children) {
  const node = document.createElementNS(SVG_SPACE, tag);
  setAttributes(node, attributes);
  node.append(...children.flat());
  return node;
}

const DASH = "–";
const plainText = (value) => (missing(value) || value === "" ? DASH : String(value));
const sum = (values) => values.reduce((total, value) => total + value, 0);
/** The largest value; a call with all of them as arguments would overflow. */
const largest = (values, least = -Infinity) => values.reduce((most, value) => Math.max(most, value), least);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** 12345 -> "12,345". */
function integer(value) {
  return missing(value) ? DASH : Number(value).toLocaleString("en-US");
}

/** A number with some decimals and a true minus; values that are not numbers stay as they are. */
function decimal(value, digits = 3) {
  if (missing(value)) return DASH;
  if (typeof value !== "number") return String(value);
  return value.toFixed(digits).replace(/^-(?=.*[1-9])/, "−").replace(/^-/, "");
}

/** 0.9316 -> "93.2 %". */
function percent(share, digits = 1) {
  return missing(share) || Number.isNaN(share) ? DASH : `${decimal(100 * share, digits)}\u202f%`;
}

function plural(count, one, many = `${one}s`) {
  return `${integer(count)} ${count === 1 ? one : many}`;
}

/** A formula with its numbers set low. */
function formulaNodes(formula) {
  if (!formula) return [DASH];
  const low = (number) => (number === "1" ? "" : el("sub", {}, number));
  return String(formula).split(/(?<=[A-Za-z)])(\d+(?:\.\d+)?)/).map((part, i) => (i % 2 ? low(part) : part));
}

const content = (cell) => (cell instanceof Node || Array.isArray(cell) ? cell : String(cell));

/** A table that scrolls sideways where it is wider than its place. */
function scrollingTable(caption, kind, head, body) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: kind }, el("caption", { class: "hidden" }, caption), el("thead", {}, head), body));
}

/** A table of texts and nodes with headers of columns and, in the first column, of rows. */
function plainTable(caption, headers, rows) {
  return scrollingTable(caption, "plain", el("tr", {}, headers.map((text) => el("th", { scope: "col" }, text))),
    el("tbody", {}, rows.map(([first, ...rest]) => el("tr", {},
      el("th", { scope: "row" }, content(first)), rest.map((cell) => el("td", {}, content(cell)))))));
}

/** A section of the page, with an entry in its contents. */
function section(id, title, lead, ...children) {
  document.getElementById("contents").append(el("a", { href: `#${id}` }, title));
  const node = el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), lead ? el("p", { class: "lead" }, lead) : null, ...children);
  document.getElementById("content").append(node);
  return node;
}

const SERIES = 6;
/** The class that gives the color of a file. */
const seriesClass = (index) => `s${index % SERIES}`;

const TIP = document.getElementById("tip");

function showTip(event) {
  const target = event.target.closest && event.target.closest("[data-tip]");
  TIP.hidden = !target;
  if (!target) return;
  TIP.textContent = target.dataset.tip;
  const { width, height } = TIP.getBoundingClientRect();
  const above = event.clientY - height - 14;
  TIP.style.left = `${clamp(event.clientX - width / 2, 4, ROOT.clientWidth - width - 4)}px`;
  TIP.style.top = `${above > 4 ? above : event.clientY + 18}px`;
}
document.addEventListener("pointermove", showTip, { passive: true });
document.addEventListener("pointerdown", showTip, { passive: true });
document.addEventListener("scroll", () => { TIP.hidden = true; }, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") TIP.hidden = true; });

/** The records of a file as objects, and which of their values were evaluated. */
function readFile(file, index) {
  const names = Object.keys(file.columns);
  const rows = Array.from({ length: file.rows }, (_, i) =>
    Object.fromEntries(names.map((name) => [name, file.columns[name][i]])));
  const known = new Set(names.filter((name) => file.columns[name].some((value) => !missing(value))));
  const total = missing(file.crystals) ? rows.length : file.crystals;
  return { ...file, index, total, records: rows, has: (name) => known.has(name) };
}

const FILES = (DATA.files || []).map(readFile);

/** [name, what it is called] of the properties that models predicted. */
const PROPERTIES = Object.entries(FILES[0]?.properties || {}).map(([name, label]) => [name, label[0].toUpperCase() + label.slice(1)]);

/** A predicted property of a crystal, to two digits of its standard deviation: "1.25 ± 0.31", or "3.6, extrapolated". */
function propertyText(crystal, name) {
  const std = crystal[`${name}_std`];
  const digits = missing(std) ? 3 : clamp(1 - Math.floor(Math.log10(std)), 0, 3);
  const text = decimal(crystal[name], digits);
  if (crystal[`${name}_extrapolated`]) return `${text}, extrapolated`;
  return missing(std) ? text : `${text} ± ${decimal(std, digits)}`;
}

const listeners = [];
let chosen = 0;

/** Calls back now and whenever another file is chosen for the parts that show one at a time. */
function onFile(callback) {
  listeners.push(callback);
  callback(FILES[chosen]);
}

function chooseFile(index) {
  chosen = index;
  for (const input of document.querySelectorAll(".files input")) input.checked = Number(input.value) === index;
  for (const callback of listeners) callback(FILES[index]);
}

let choices = 0;

/** The choice of a file, or nothing where there is but one. */
function fileChoice() {
  if (FILES.length < 2) return null;
  const group = `files-${choices++}`;
  return el("fieldset", { class: "files" }, el("legend", {}, "File"), FILES.map((file) =>
    el("label", { class: seriesClass(file.index) },
      el("input", { type: "radio", name: group, value: file.index, checked: file.index === chosen,
        change: () => chooseFile(file.index) }),
      el("span", {}, file.name))));
}
