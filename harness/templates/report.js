// What the reader does: the slider, keys, and pointing at cells.
const slider = byId("slider"), moment = byId("moment");
const callRows = [...document.querySelectorAll("#call-list tr[data-op]")];

function show(look, force) {
  seek(Math.max(0, Math.min(looks.length - 1, look)));
  memory.draw(force);
  pages?.draw(force);
  drawMarks();
  drawCounts();
  if (head.inside) {
    drawFree();
    drawLeaves();
  }
  const words = looks[at][1] + (head.failed && at === head.shown ? " (the violation)" : "");
  slider.value = at;
  slider.setAttribute("aria-valuetext", words);
  moment.textContent = words;
  showCalls(looks[at][0] - 1);
  for (const cursor of [memoryCursor, windowCursor]) cursor?.tell();
}

function showCalls(op) {
  let current = null;
  for (const row of callRows) {
    const is = +row.dataset.op === op;
    if (is) row.setAttribute("aria-current", "step"); else row.removeAttribute("aria-current");
    if (is || +row.dataset.op < op) current = row;
  }
  const list = byId("call-list");
  if (current) list.scrollTop = current.offsetTop - list.clientHeight / 2;
}

// The last look that is not after these operations.
const lookAfter = done => Math.max(0, looks.findLastIndex(look => look[0] <= done));

const goals = {
  first: () => 0, back: () => at - 1, on: () => at + 1, last: () => looks.length - 1, shown: () => head.shown,
  far_back: () => at - 10, far_on: () => at + 10,
};
const keys = { ArrowLeft: "back", ArrowRight: "on", Home: "first", End: "last", PageUp: "far_back", PageDown: "far_on" };

function onKey(event) {
  const goal = keys[event.key];
  const elsewhere = event.target.closest("input, .map, details") || event.ctrlKey || event.altKey || event.metaKey;
  if (!goal || elsewhere) return;
  event.preventDefault();
  show(goals[goal]());
}

// Which blocks have a frame or a page.
function blocksAt(cell, runsOf) {
  const has = ([, block]) => runsOf(block).some(([first, count]) => first <= cell && cell < first + count);
  return [...state.b].filter(has);
}

function describeBlocks(blocks) {
  if (blocks.length === 0) return "no live block";
  const one = ([handle, [tier, addr, asked]]) =>
    `block ${handle}${head.guilty.includes(handle) ? " (guilty)" : ""}: ${tier}, ${addr}, ${asked} bytes`;
  const more = blocks.length > 3 ? ` and ${blocks.length - 3} more` : "";
  return blocks.slice(0, 3).map(one).join("; ") + more;
}

function describeFrame(frame) {
  const code = state.f[frame], zone = head.zones.find(([, , start, count]) => start <= frame && frame < start + count);
  const cache = owner(code)[0] === "S" ? state.c.get(code >> 5) : null;
  const slab = cache ? ` of ${cache[0]} (${cache[1]} objects in ${cache[2]} slabs)` : "";
  const type = head.types[state.p[frame >> head.order]] ?? "?";
  const pageblock = head.inside ? `, pageblock of type ${type}` : "";
  const place = zone ? `node ${zone[0]}, ${zone[1]}${pageblock}` : "no zone";
  return `frame ${frame} (${place}): ${owner(code)[2]}${slab}; ${describeBlocks(blocksAt(frame, blockFrames))}`;
}

function describePage(page) {
  const addr = "0x" + (BigInt(head.start) + BigInt(page) * 4096n).toString(16);
  const [behind] = framesBehind([page, 1]);
  const where = behind ? `leads to frame ${behind[0]}` : "leads nowhere";
  return `page ${page} (${addr}): ${owner(pageCodes(page, page + 1)[0])[2]}, ${where}; ` +
    describeBlocks(blocksAt(page, blockPages));
}

// A cell of a map that the reader points at, with the mouse or with the arrow keys.
class Cursor {
  constructor(grid, map, out, describe) {
    Object.assign(this, { grid, map, out, describe, cell: null });
    this.mark = document.createElementNS("http://www.w3.org/2000/svg", "g");
    grid.element.parentNode.append(this.mark);
    map.addEventListener("mousemove", event => this.point(event));
    map.addEventListener("keydown", event => this.key(event));
  }

  point(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    const svg = row.ownerSVGElement, at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const cell = +row.dataset.from + Math.floor((at.x - row.dataset.x) / CELL);
    if (cell >= +row.dataset.from && cell < +row.dataset.to) this.put(cell);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -64, ArrowDown: 64 }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const first = this.grid.rows[0];
    const next = this.cell === null ? first?.from : this.cell + step;
    if (this.grid.rowOf(next)) this.put(next); else this.skip(step);
  }

  // Over rows that are not drawn.
  skip(step) {
    const rows = this.grid.rows, row = rows.indexOf(this.grid.rowOf(this.cell)), next = rows[row + Math.sign(step)];
    if (next) this.put(step > 0 ? next.from : next.to - 1);
  }

  put(cell) {
    this.cell = cell;
    this.mark.innerHTML = this.grid.mark([[cell, 1]], "cursor");
    const rect = this.mark.firstChild;
    if (document.activeElement === this.map) rect?.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.tell();
  }

  tell() {
    if (this.cell !== null) this.out.textContent = this.describe(this.cell);
  }
}

const memoryCursor = new Cursor(memory, byId("memory-map"), byId("memory-where"), describeFrame);
const windowCursor = pages && new Cursor(pages, byId("window-map"), byId("window-where"), describePage);

byId("controls").hidden = false;
slider.addEventListener("input", () => show(+slider.value));
document.addEventListener("keydown", onKey);
for (const button of document.querySelectorAll("[data-go]")) {
  button.addEventListener("click", () => show(goals[button.dataset.go]()));
}
for (const row of callRows) row.addEventListener("click", () => show(lookAfter(+row.dataset.op + 1)));
byId("chart")?.addEventListener("click", event => {
  const svg = byId("chart"), { left, right, steps } = svg.dataset;
  const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
  show(lookAfter(Math.floor((x - left) / (right - left) * steps)));
});
// On paper is what the page is about.
let before = null;
window.addEventListener("beforeprint", () => { before = at; show(head.shown); });
window.addEventListener("afterprint", () => { if (before !== null) show(before); before = null; });
show(head.shown, true);
