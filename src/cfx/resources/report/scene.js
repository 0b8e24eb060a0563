// A crystal as things to draw: atoms with their images on the far faces of the cell, bonds, edges. Lengths in angstrom.

/** An atom this near to a face, in angstrom, is on it. */
const TOLERANCE = 0.1;

/** Atoms are bonded up to the sum of their covalent radii and this. */
const BOND_SLACK = 0.4;

/** How finely edges are cut. */
const EDGE_PIECES = 24;

const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const times = (a, factor) => [a[0] * factor, a[1] * factor, a[2] * factor];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const norm = (a) => Math.hypot(...a);
const unit = (a) => times(a, 1 / (norm(a) || 1));
const between = (a, b, share) => add(times(a, 1 - share), times(b, share));

/** Fractional to Cartesian: rows of the cell are its vectors. */
const cartesian = (frac, cell) => add(add(times(cell[0], frac[0]), times(cell[1], frac[1])), times(cell[2], frac[2]));

/** A coordinate within the cell, and the same on the opposite face if it is on one. */
function repeated(value, length) {
  const inside = value - Math.floor(value);
  const near = Math.min(0.25, TOLERANCE / (length || 1));
  if (inside < near) return [inside, inside + 1];
  return inside > 1 - near ? [inside, inside - 1] : [inside];
}

function placeAtoms(crystal, centre) {
  const lengths = crystal.cell.map(norm);
  const atoms = [];
  crystal.frac_coords.forEach((frac, i) => {
    const element = elementOf(crystal.species[i]);
    const [xs, ys, zs] = frac.map((value, k) => repeated(value, lengths[k]));
    for (const x of xs) for (const y of ys) for (const z of zs) {
      const at = minus(cartesian([x, y, z], crystal.cell), centre);
      atoms.push({ at, element, radius: 0.18 + 0.27 * element.radius });
    }
  });
  return atoms;
}

const NONMETALS = new Set("H B C N O F Si P S Cl Ge As Se Br Te I At He Ne Ar Kr Xe Rn".split(" "));

/** Whether two atoms are drawn as bonded; metals among themselves only where there is nothing else. */
function isBond(first, second, distance, metallic) {
  if (distance < 0.4 || distance > first.element.radius + second.element.radius + BOND_SLACK) return false;
  return metallic || NONMETALS.has(first.element.symbol) || NONMETALS.has(second.element.symbol);
}

/** The 27 cubes around and including one. */
const NEIGHBOURS = Array.from({ length: 27 }, (_, i) => [(i % 3) - 1, (Math.floor(i / 3) % 3) - 1, Math.floor(i / 9) - 1]);

/** Pairs of atoms, by a grid of cubes so that large cells stay quick. */
function findBonds(atoms) {
  const reach = 2 * largest(atoms.map((atom) => atom.element.radius)) + BOND_SLACK;
  const cube = (at) => at.map((value) => Math.floor(value / reach));
  const cubes = new Map();
  const bonds = [];
  const metallic = !atoms.some((atom) => NONMETALS.has(atom.element.symbol));
  atoms.forEach((atom) => {
    const [x, y, z] = cube(atom.at);
    for (const [i, j, k] of NEIGHBOURS) {
      for (const other of cubes.get(`${x + i},${y + j},${z + k}`) || []) {
        if (isBond(atom, other, norm(minus(atom.at, other.at)), metallic)) bonds.push([atom, other]);
      }
    }
    const key = `${x},${y},${z}`;
    if (!cubes.has(key)) cubes.set(key, []);
    cubes.get(key).push(atom);
  });
  return bonds;
}

const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => [i & 1, (i >> 1) & 1, (i >> 2) & 1]);

/** The twelve edges; those from the origin carry the name of their vector. */
function cellEdges(cell, centre) {
  const corner = (frac) => minus(cartesian(frac, cell), centre);
  return [0, 1, 2].flatMap((axis) => CORNERS.filter((frac) => !frac[axis]).map((frac) => {
    const end = frac.map((value, k) => (k === axis ? 1 : value));
    return { from: corner(frac), to: corner(end), axis: frac.some(Boolean) ? null : axis };
  }));
}

/** Edges cut so that each piece has a depth of its own, without those that are inside atoms. */
function edgePieces(edges, atoms) {
  const inside = (at) => atoms.some((atom) => norm(minus(atom.at, at)) < atom.radius);
  return edges.flatMap(({ from, to, axis }) => Array.from({ length: EDGE_PIECES }, (_, i) => ({
    from: between(from, to, i / EDGE_PIECES), to: between(from, to, (i + 1) / EDGE_PIECES), axis,
  }))).filter((piece) => !inside(between(piece.from, piece.to, 0.5)));
}

/** Everything to draw of a crystal, around the middle of its cell. */
function makeScene(crystal) {
  const centre = cartesian([0.5, 0.5, 0.5], crystal.cell);
  const atoms = placeAtoms(crystal, centre);
  const edges = cellEdges(crystal.cell, centre);
  const corners = edges.flatMap(({ from, to }) => [norm(from), norm(to)]);
  const radius = largest([...corners, ...atoms.map((atom) => norm(atom.at) + atom.radius)], 1);
  return { atoms, edges, radius, pieces: edgePieces(edges, atoms), bonds: findBonds(atoms) };
}

/** Elements of a crystal with the number of their atoms in the cell. */
function composition(crystal) {
  const counts = new Map();
  for (const species of crystal.species) {
    const { symbol } = elementOf(species);
    counts.set(symbol, (counts.get(symbol) || 0) + 1);
  }
  return [...counts].map(([symbol, count]) => ({ element: elementOf(symbol), symbol, count }));
}

/** A view along a vector of the cell, the next one but one upwards: rows are right, up and towards the viewer. */
function viewAlong(cell, axis) {
  const towards = unit(cell[axis]);
  const other = cell[(axis + 2) % 3];
  const up = unit(minus(other, times(towards, dot(other, towards))));
  return [cross(up, towards), up, towards];
}

/** A view turned by angles (radians) about the upward and the right direction of the screen. */
function turned(view, right, down) {
  const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
  const [x, y, z] = view;
  const side = add(times(x, c), times(z, s));
  const depth = add(times(x, -s), times(z, c));
  return [side, add(times(y, d), times(depth, -t)), add(times(y, t), times(depth, d))];
}
