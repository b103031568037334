// The data of the page. Layers, heads and tokens are counted from 0, levels from 1. A layer has several maps per head:
// the first says where the head would look if nothing were refined, the last where it does look, those between are inner
// levels. In "shared" the first is level 1; elsewhere no level of the model computes it, and it has level 0.

const data = JSON.parse(document.getElementById("data").textContent);
const TOKENS = data.tokens.length;
const LAYERS = data.orders.length;
const CELLS = data.causal ? (TOKENS * (TOKENS + 1)) / 2 : TOKENS * TOKENS; // of one map: rows up to the diagonal, or whole
const STEPS = 1000; // weights are whole numbers of 1/1000
let allCells = 0;
// [layer][map]; an inner level may serve one branch only, and its map may have fewer heads than the layer
const mapsOf = data.maps.map((maps) => maps.map(([level, branch, heads]) => {
  const start = allCells;
  allCells += heads * CELLS;
  return { level, branch, heads, start };
}));
const BRANCHES = ["query", "key", "value"].filter((branch) => mapsOf.flat().some((map) => map.branch === branch));
let cells; // of all maps, Uint16Array
let allPaths; // [layer][head]

/** Fills `cells` and `allPaths`. */
async function unpack() {
  const bytes = await inflate("packed-maps");
  // A map holds its difference to the one of the same branch before it, modulo 256.
  for (const maps of mapsOf) {
    for (const [number, { branch, heads, start }] of maps.entries()) {
      const before = maps.slice(0, number).findLast((map) => map.branch === branch);
      if (!before) continue;
      const back = start - before.start;
      for (const first of [start, allCells + start]) {
        for (let i = first; i < first + heads * CELLS; i++) bytes[i] += bytes[i - back];
      }
    }
  }
  cells = new Uint16Array(allCells);
  for (let i = 0; i < allCells; i++) cells[i] = bytes[i] | (bytes[allCells + i] << 8);
  allPaths = JSON.parse(new TextDecoder().decode(await inflate("packed-paths")));
}

async function inflate(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The maps of a layer that are shown, by number: of inner levels that serve one branch only, those of `branch`. */
function shown(layer, branch) {
  return [...mapsOf[layer].keys()].filter((map) => [null, branch].includes(mapsOf[layer][map].branch));
}

/** The head of a map that belongs to a query head of the layer. */
function headIn(layer, map, head) {
  return Math.floor((head * mapsOf[layer][map].heads) / data.heads);
}

/** Whether token i may look at token j. The tokens of an encoder look at all. */
function seen(i, j) {
  return j <= i || !data.causal;
}

/** How much token i attends to token j. */
function weight(layer, map, head, i, j) {
  if (!seen(i, j)) return 0;
  const row = data.causal ? (i * (i + 1)) / 2 : i * TOKENS;
  return cells[mapsOf[layer][map].start + headIn(layer, map, head) * CELLS + row + j] / STEPS;
}

/** What refining adds to the attention that a token gets. */
function gain(layer, head, i, j) {
  return weight(layer, mapsOf[layer].length - 1, head, i, j) - weight(layer, 0, head, i, j);
}

/** The paths of a head, the largest gain first. */
function pathsOf(layer, head) {
  return allPaths[layer][head]
    .map(([query, target, gained, chains]) => ({
      query, target, gain: gained,
      chains: chains.map((chain) => chain.map(([branch, level, token, head, attention, credit, inner]) => (
        { branch, level, token, head, weight: attention, credit, inner }))),
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
  return make("span", { class: "name" }, make("bdi", {}, label(i)), make("sub", {}, String(i)));
}
