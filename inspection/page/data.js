// The data of the page. Levels, layers, heads and tokens are counted from 0 here, levels from 1 where they are shown.

const data = JSON.parse(document.getElementById("data").textContent);
const TOKENS = data.tokens.length;
const LAYERS = data.orders.length;
const CELLS = (TOKENS * (TOKENS + 1)) / 2; // of one map: rows 0, 1, ... up to the diagonal
const STEPS = 1000; // weights are whole numbers of 1/1000
const firstCell = [];
const allCells = data.orders.reduce((start, order, layer) => {
  firstCell[layer] = start;
  return start + order * data.heads * CELLS;
}, 0);
let maps; // of all layers, Uint16Array
let allPaths; // [layer][head]

/** Fills `maps` and `allPaths`. */
async function unpack() {
  const bytes = await inflate("packed-maps");
  const ofLevel = data.heads * CELLS;
  // A level holds its difference to the level before, modulo 256.
  for (const [layer, order] of data.orders.entries()) {
    for (const start of [firstCell[layer], allCells + firstCell[layer]]) {
      for (let i = start + ofLevel; i < start + order * ofLevel; i++) bytes[i] += bytes[i - ofLevel];
    }
  }
  maps = new Uint16Array(allCells);
  for (let i = 0; i < allCells; i++) maps[i] = bytes[i] | (bytes[allCells + i] << 8);
  allPaths = JSON.parse(new TextDecoder().decode(await inflate("packed-paths")));
}

async function inflate(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** How much token i attends to token j. */
function weight(layer, level, head, i, j) {
  if (j > i) return 0;
  const map = firstCell[layer] + (level * data.heads + head) * CELLS;
  return maps[map + (i * (i + 1)) / 2 + j] / STEPS;
}

/** What the last level puts on a token beyond the first. */
function gain(layer, head, i, j) {
  return weight(layer, data.orders[layer] - 1, head, i, j) - weight(layer, 0, head, i, j);
}

/** The paths of a head, the largest gain first. */
function pathsOf(layer, head) {
  return allPaths[layer][head]
    .map(([query, target, gained, chains]) => ({
      query, target, gain: gained,
      chains: chains.map((chain) => chain.map(([branch, level, token, inner, attention, credit]) => (
        { branch, level, token, head: inner, weight: attention, credit }))),
    }))
    .sort((one, other) => other.gain - one.gain);
}

/** The gates of a layer. */
function gatesOf(layer) {
  return data.gates.filter((gate) => gate.layer === layer);
}

function isClosed(layer) {
  const gates = gatesOf(layer);
  return gates.length > 0 && gates.every((gate) => gate.value === 0);
}

/** A weight in words. Of those below 0.01 only their colour is kept. */
function spelled(value) {
  return value < 0.01 ? "<0.01" : value.toFixed(3);
}

/** A token, what cannot be seen made visible. */
function visible(i) {
  const code = (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
  return data.tokens[i].replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/[\u0000-\u001f\u007f-\u009f]/g, code);
}

/** A token where space is short, without the spaces around it. */
function label(i, longest = 14) {
  const token = visible(i);
  const text = token.replace(/^ +| +$/g, "") || "␣".repeat(token.length);
  const characters = [...text];
  return characters.length <= longest ? text : characters.slice(0, longest - 1).join("") + "…";
}

function signed(number, digits) {
  return (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);
}

/** An element: make("b", {class: "x"}, "text", child, ...). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A token with its number, as it stands in sentences. */
function named(i) {
  return make("span", { class: "name" }, label(i), make("sub", {}, String(i)));
}
