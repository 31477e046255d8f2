// Draws a state into the places where Rust drew the first one, in the same form. See harness/src/report/page/.
const CELL = 13, OWNER = 31, UNKNOWN = -1;
const NOBODY = 16;
const owner = code => head.owners[code & OWNER];
const byId = id => document.getElementById(id);

// Numbers and names of the program, and never a text of the trace, become markup here.
function cells(x, y, codes) {
  let markup = "";
  for (let i = 0; i < codes.length;) {
    const style = owner(codes[i])[1];
    let end = i + 1;
    while (end < codes.length && owner(codes[end])[1] === style) end++;
    markup += `<rect x="${x + i * CELL}" y="${y}" width="${(end - i) * CELL}" height="13" class="o-${style}"></rect>`;
    i = end;
  }
  return markup;
}

class Grid {
  constructor(id, codesOf) {
    this.element = byId(id);
    this.codesOf = codesOf;
    this.marks = this.element.querySelector(".marks");
    this.rows = [...this.element.querySelectorAll(".row")].map(element => ({
      from: +element.dataset.from, to: +element.dataset.to, x: +element.dataset.x, y: +element.dataset.y,
      types: element.dataset.types.split(" ").map(Number), cells: element.querySelector(".cells"),
      letters: element.querySelector(".letters"), typesText: element.querySelector(".types"), drawn: null,
    }));
  }

  draw(force) {
    for (const row of this.rows) {
      const codes = this.codesOf(row.from, row.to), key = codes.join();
      if (force || row.drawn !== key) {
        row.cells.innerHTML = cells(row.x, row.y, codes);
        row.letters.textContent = codes.map(code => owner(code)[0].replace(" ", "\u00a0")).join("");
        row.drawn = key;
      }
      const [first, count] = row.types;
      row.typesText.textContent = state.p.slice(first, first + count).map(type => head.types[type] ?? "?").join("");
    }
  }

  rowOf(cell) {
    return this.rows.find(row => row.from <= cell && cell < row.to);
  }

  // Frames around runs of cells; styles are names of the program.
  mark(runs, style) {
    let markup = "";
    for (const [first, count] of runs) {
      for (const row of this.rows) {
        const from = Math.max(first, row.from), to = Math.min(first + count, row.to);
        if (from < to) {
          markup += `<rect x="${row.x + (from - row.from) * CELL}" y="${row.y}" width="${(to - from) * CELL}" height="13" class="mark ${style}"></rect>`;
        }
      }
    }
    return markup;
  }
}

function pageCodes(from, to) {
  const codes = new Array(to - from).fill(NOBODY);
  for (const [first, [count, code]] of state.w) {
    if (first < to && from < first + count) codes.fill(code, Math.max(first, from) - from, Math.min(first + count, to) - from);
  }
  return codes;
}

const memory = new Grid("memory", (from, to) => state.f.slice(from, to));
// Without a look inside there is nothing but the blocks that the model knows.
const pages = head.inside ? new Grid("window", pageCodes) : null;

// The frames to which the page tables lead from these pages.
function framesBehind([first, count]) {
  const runs = [];
  for (const [start, [length, frame]] of sorted(state.l)) {
    const from = Math.max(first, start), to = Math.min(first + count, start + length);
    if (from < to) runs.push([frame + from - start, to - from]);
  }
  return runs;
}

const BLOCK_FRAMES = 5, BLOCK_PAGES = 6;
const blockFrames = block => block[BLOCK_FRAMES].concat(block[BLOCK_PAGES][1] ? framesBehind(block[BLOCK_PAGES]) : block[BLOCK_FRAMES]);
const blockPages = block => block[BLOCK_PAGES][1] ? [block[BLOCK_PAGES]] : [];

function drawMarks() {
  let frames = "", virtual = "";
  for (const block of head.guilty.map(handle => state.b.get(handle)).filter(Boolean)) {
    frames += memory.mark(blockFrames(block), "guilty");
    virtual += pages?.mark(blockPages(block), "guilty");
  }
  if (head.answer && at === head.shown) {
    frames += memory.mark(head.answer[0], "answer");
    virtual += pages?.mark(head.answer[1], "answer");
  }
  memory.marks.innerHTML = frames;
  if (pages) pages.marks.innerHTML = virtual;
}

const number = n => n === UNKNOWN ? "\u2013" : n.toLocaleString("en-US");

function drawCounts() {
  [...byId("counts").tBodies[0].rows].forEach((row, i) => {
    const [model, subject] = [state.n[2 * i], state.n[2 * i + 1]];
    const differs = model !== subject && model !== UNKNOWN && subject !== UNKNOWN;
    row.cells[1].textContent = number(model);
    row.cells[2].textContent = number(subject);
    row.cells[3].textContent = differs ? "differ" : "";
    if (differs) row.className = "differs"; else row.removeAttribute("class");
  });
}

function drawFree() {
  const lists = [...byId("free").tBodies[0].rows].flatMap(row => [...row.cells].slice(1));
  lists.forEach((cell, i) => cell.textContent = state.z[i]);
  const chart = byId("chart"), { left, right, steps } = chart.dataset, now = byId("now");
  const x = (+left + (right - left) * (looks[at][0] + 0.5) / steps).toFixed(1);
  now.setAttribute("x1", x);
  now.setAttribute("x2", x);
}

function drawLeaves() {
  const leaves = sorted(state.l), start = BigInt(head.start);
  const sum = (wanted, each) => leaves.map(([, leaf]) => leaf).filter(wanted).map(each).reduce((a, b) => a + b, 0);
  const small = sum(leaf => leaf[2] === 0, leaf => leaf[0]);
  const huge = sum(leaf => leaf[2] > 0, leaf => leaf[0] >> leaf[2]);
  byId("leaves-in-words").textContent =
    `Leaves of 4 KiB: ${small}; of 2 MiB: ${huge}; runs of frames that follow each other: ${leaves.length}`;
  const rows = leaves.slice(0, head.runs).map(([first, [count, frame, order, writable]]) => {
    const addr = "0x" + (start + BigInt(first) * 4096n).toString(16);
    return `<tr><td><code>${addr}</code></td><td class="n">${count}</td><td>${order > 0 ? "2 MiB" : "4 KiB"}</td>` +
      `<td>${frame}..${frame + count - 1}</td><td>${writable ? "read, write" : "read"}</td></tr>`;
  });
  if (leaves.length > head.runs) rows.push(`<tr><td colspan="5">and ${leaves.length - head.runs} more runs</td></tr>`);
  byId("leaves").tBodies[0].innerHTML = rows.join("");
}
