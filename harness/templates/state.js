"use strict";
// The states: what Rust wrote as differences, made whole again. See harness/src/report/film/delta.rs.
const film = JSON.parse(document.getElementById("film").textContent);
const head = film.head, looks = film.looks;

const zeros = n => new Array(n).fill(0);
const blank = () => ({
  f: zeros(head.frames), p: zeros(head.pageblocks), z: zeros(head.lists), n: zeros(head.counts),
  w: new Map(), l: new Map(), b: new Map(), c: new Map(),
});

// Runs of one value: entries to skip, entries, value.
function fill(list, runs) {
  let at = 0;
  for (let i = 0; i < runs.length; i += 3) {
    at += runs[i];
    list.fill(runs[i + 2], at, at + runs[i + 1]);
    at += runs[i + 1];
  }
}

// What is gone is null.
function change(map, changes) {
  for (const [key, value] of Object.entries(changes)) {
    if (value === null) map.delete(Number(key)); else map.set(Number(key), value);
  }
}

function apply(state, delta) {
  for (const list of "fpzn") if (delta[list]) fill(state[list], delta[list]);
  for (const map of "wlbc") if (delta[map]) change(state[map], delta[map]);
}

// Going back starts from the last copy before; one is kept of every so many states.
const COPY_EVERY = 64, copies = [];
let at = -1, state = blank();

function seek(look) {
  if (look < at) {
    const copy = Math.floor(look / COPY_EVERY);
    at = copy * COPY_EVERY;
    state = structuredClone(copies[copy]);
  }
  while (at < look) {
    apply(state, looks[++at][2]);
    if (at % COPY_EVERY === 0 && !copies[at / COPY_EVERY]) copies[at / COPY_EVERY] = structuredClone(state);
  }
}

const sorted = map => [...map].sort((a, b) => a[0] - b[0]);
