// Draws a crystal on a canvas and lets pointer, wheel and keys turn it. Nothing is drawn while it is out of sight.

const SPRITE = 128;
const AXES = [["a", "#d6363b"], ["b", "#2c9c46"], ["c", "#3b7de0"]];
/** How the first view differs from one along a vector, in radians. */
const HOME_TURN = [0.42, 0.3];

const sprites = new Map();
let printing = false;

/** A color mixed with black (amount below 0) or white. */
function shade(color, amount) {
  const target = amount < 0 ? 0 : 255;
  const channels = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgb(${channels.map((value) => Math.round(value + (target - value) * Math.abs(amount))).join(",")})`;
}

/** A shaded ball of a color, drawn once. */
function sprite(color) {
  if (!sprites.has(color)) {
    const canvas = el("canvas", { width: SPRITE, height: SPRITE });
    const pen = canvas.getContext("2d");
    const half = SPRITE / 2;
    const gradient = pen.createRadialGradient(0.7 * half, 0.6 * half, 0.05 * half, half, half, half);
    const stops = [[0, 0.85], [0.25, 0.32], [0.6, 0], [0.88, -0.3], [1, -0.55]];
    for (const [stop, amount] of stops) gradient.addColorStop(stop, shade(color, amount));
    pen.fillStyle = gradient;
    pen.arc(half, half, half - 1, 0, 2 * Math.PI);
    pen.fill();
    sprites.set(color, canvas);
  }
  return sprites.get(color);
}

class Viewer {
  constructor(canvas, crystal, captive) {
    Object.assign(this, { canvas, captive, bonds: true, visible: false, asked: false, drawn: 0, pointers: new Map() });
    this.pen = canvas.getContext("2d");
    this.show(crystal);
    this.listen();
    this.sight = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible) this.request();
    }, { rootMargin: "100px" });
    this.sight.observe(canvas);
    new ResizeObserver(() => this.request()).observe(canvas);
    Viewer.all.add(this);
  }

  /** Takes another crystal; its things to draw are made when first needed. */
  show(crystal) {
    Object.assign(this, { crystal, scene: null });
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.view = turned(viewAlong(this.crystal.cell, 0), ...HOME_TURN);
    this.request();
  }

  along(axis) {
    this.view = viewAlong(this.crystal.cell, axis);
    this.request();
  }

  turn(right, down) {
    this.view = turned(this.view, right, down);
    this.request();
  }

  scale(factor) {
    this.zoom = clamp(this.zoom * factor, 0.3, 8);
    this.request();
  }

  /** Draws before the next frame, once, if in sight. */
  request() {
    if (this.asked || !this.visible) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.draw();
    });
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      // In the gallery the wheel belongs to the page until a crystal is clicked.
      if (!this.captive && !event.ctrlKey && document.activeElement !== canvas) return;
      event.preventDefault();
      this.scale(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("dblclick", () => this.reset());
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.pointers.set(event.pointerId, now);
    const away = (at) => Math.hypot(at[0] - others[0][0], at[1] - others[0][1]) || 1;
    if (others.length) this.scale(away(now) / away(before));
    else this.turn((now[0] - before[0]) * 0.01, (now[1] - before[1]) * 0.01);
  }

  key(event) {
    const step = 0.12;
    const turn = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    const zoom = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (turn) this.turn(...turn);
    else if (zoom) this.scale(zoom);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  /** Makes the canvas as many pixels as the screen has for it; its size in CSS pixels. */
  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const density = Math.min(3, window.devicePixelRatio || 1);
    const [wide, high] = [Math.round(width * density), Math.round(height * density)];
    if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, { width: wide, height: high });
    this.pen.setTransform(density, 0, 0, density, 0, 0);
    this.pen.clearRect(0, 0, width, height);
    return [width, height];
  }

  draw() {
    const [width, height] = this.fit();
    if (!width || !height) return;
    this.scene ||= makeScene(this.crystal);
    const { radius } = this.scene;
    const [far, pixels] = [5 * radius, (this.zoom * 0.9 * Math.min(width, height)) / 2 / radius];
    const project = (at) => {
      const [x, y, z] = this.view.map((row) => dot(row, at));
      const factor = (pixels * far) / (far - z);
      return { x: width / 2 + x * factor, y: height / 2 - y * factor, z, factor };
    };
    const background = printing ? "#ffffff" : getComputedStyle(this.canvas).getPropertyValue("--paper").trim();
    const mist = (z) => clamp(0.28 - (0.34 * z) / radius, 0, 0.6);
    const items = [...this.atomItems(project), ...this.edgeItems(project), ...(this.bonds ? this.bondItems(project) : [])];
    for (const item of items.sort((a, b) => a.z - b.z)) item.paint(this.pen, mist(item.z), background);
    this.drawNames(project, background);
    this.drawn += 1;
  }

  atomItems(project) {
    return this.scene.atoms.map((atom) => {
      const { x, y, z, factor } = project(atom.at);
      const size = atom.radius * factor;
      const paint = (pen, mist, background) => {
        pen.drawImage(sprite(atom.element.color), x - size, y - size, 2 * size, 2 * size);
        pen.globalAlpha = mist;
        pen.fillStyle = background;
        pen.beginPath();
        pen.arc(x, y, size, 0, 2 * Math.PI);
        pen.fill();
        pen.globalAlpha = 1;
      };
      return { z, paint };
    });
  }

  /** A straight piece between two points, as deep as its middle. */
  lineItem(project, from, to, paint) {
    const [start, end] = [project(from), project(to)];
    const stroke = (pen, mist, background) => {
      pen.globalAlpha = 1 - mist;
      pen.beginPath();
      pen.moveTo(start.x, start.y);
      pen.lineTo(end.x, end.y);
      paint(pen, start.factor);
      pen.globalAlpha = 1;
    };
    return { z: (start.z + end.z) / 2, paint: stroke };
  }

  edgeItems(project) {
    return this.scene.pieces.map(({ from, to, axis }) => this.lineItem(project, from, to, (pen) => {
      pen.lineCap = "butt";
      pen.lineWidth = axis === null ? 1.1 : 2;
      pen.strokeStyle = axis === null ? "#7d8894" : AXES[axis][1];
      pen.stroke();
    }));
  }

  /** Each bond as two halves with the colors of their atoms, from surface to middle. */
  bondItems(project) {
    return this.scene.bonds.flatMap((bond) => bond.map((atom, i) => {
      const other = bond[1 - i];
      const distance = norm(minus(other.at, atom.at));
      const start = between(atom.at, other.at, Math.min(0.5, (0.85 * atom.radius) / distance));
      return this.lineItem(project, start, between(atom.at, other.at, 0.5), (pen, factor) => {
        pen.lineCap = "butt";
        for (const [width, amount] of [[0.2, -0.45], [0.15, -0.05], [0.05, 0.4]]) {
          pen.lineWidth = width * factor;
          pen.strokeStyle = shade(atom.element.color, amount);
          pen.stroke();
        }
      });
    }));
  }

  /** The letters of the vectors of the cell, just beyond their ends. */
  drawNames(project, background) {
    this.pen.font = "600 12px system-ui, sans-serif";
    this.pen.textAlign = "center";
    this.pen.lineJoin = "round";
    this.pen.textBaseline = "middle";
    for (const { from, to, axis } of this.scene.edges.filter((edge) => edge.axis !== null)) {
      const share = 1 + (0.14 * this.scene.radius) / (norm(minus(to, from)) || 1);
      const { x, y } = project(between(from, to, share));
      this.pen.lineWidth = 3;
      this.pen.strokeStyle = background;
      this.pen.strokeText(AXES[axis][0], x, y);
      this.pen.fillStyle = AXES[axis][1];
      this.pen.fillText(AXES[axis][0], x, y);
    }
  }
}
Viewer.all = new Set();

/** Lets go of viewers whose canvas is no longer in the page. */
function forgetViewers() {
  for (const viewer of Viewer.all) {
    if (viewer.canvas.isConnected) continue;
    viewer.sight.disconnect();
    Viewer.all.delete(viewer);
  }
}

function redrawAll(print) {
  printing = print;
  forgetViewers();
  for (const viewer of Viewer.all) viewer.draw();
}
addEventListener("beforeprint", () => redrawAll(true));
addEventListener("afterprint", () => redrawAll(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redrawAll(false));
