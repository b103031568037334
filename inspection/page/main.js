// What is selected, and who is told. The selection lives in the address, as in #layer=3&head=2&token=9, with
// &branch=key where inner levels serve one branch only.

let state;
let overview;
let largeMaps = [];
let hovered = [null, null];

/**
 * Unless the address says otherwise: the last token, from which a decoder predicts, and the head in which it gains most;
 * if it gains nothing in any, or if the model is an encoder, the largest gain of all.
 */
function startingState() {
  const best = { layer: 0, head: 0, token: TOKENS - 1, branch: BRANCHES.includes("key") ? "key" : BRANCHES[0] };
  let largest = [false, 0];
  allPaths.forEach((heads, layer) => heads.forEach((paths, head) => paths.forEach(([query, , gained]) => {
    const here = [data.causal && query === TOKENS - 1, gained];
    if (here[0] > largest[0] || (here[0] === largest[0] && here[1] > largest[1])) {
      largest = here;
      Object.assign(best, { layer, head, token: query });
    }
  })));
  return { ...best, ...fromAddress() };
}

function fromAddress() {
  const limits = { layer: LAYERS, head: data.heads, token: TOKENS };
  const given = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (name in limits && /^\d+$/.test(text) && Number(text) < limits[name]) given[name] = Number(text);
    if (name === "branch" && BRANCHES.includes(text)) given.branch = text;
  }
  return given;
}

function select(change) {
  Object.assign(state, change);
  const branch = state.branch ? `&branch=${state.branch}` : "";
  history.replaceState(null, "", `#layer=${state.layer}&head=${state.head}&token=${state.token}${branch}`);
  show(change);
}

function show(change) {
  const { layer, head, token, branch } = state;
  for (const name of ["layer", "head", "token", "branch"]) document.getElementById(name).value = state[name];
  const order = data.orders[layer];
  document.getElementById("detail-title").textContent =
    `Layer ${layer}, head ${head}: order ${order}` + (order > 1 ? `, ${data.change[layer][head].toFixed(2)} changed` : "");
  document.querySelectorAll(".query-name").forEach((place) => place.replaceChildren(named(token)));
  if (change.branch) overview.draw();
  overview.select(layer, head);
  document.getElementById("texts").replaceChildren(
    ...shown(layer, branch).map((map) => textOfMap(layer, map, head, token, chooseToken)));
  showPaths(state);
  showGains(state, chooseToken);
  if ("layer" in change || "head" in change || change.branch) makeMaps();
  drawMaps();
}

/** CSS pixels of a cell: maps side by side where the window is wide enough, legible where it is not. */
function cellSide() {
  const least = TOKENS <= 64 ? 11 : TOKENS <= 128 ? 8 : 5;
  const room = document.getElementById("maps-box").clientWidth / Math.min(2, data.orders[state.layer]) - 110;
  return Math.max(least, Math.min(28, Math.floor(room / TOKENS)));
}

function makeMaps() {
  const { layer, head, branch } = state;
  const actions = {
    hover: (i, j) => {
      hovered = [i, j];
      drawMaps();
      showReadout(i, j);
    },
    choose: (i, j) => (i ?? j) !== null && select({ token: i ?? j }),
  };
  const cell = cellSide();
  largeMaps = shown(layer, branch).map((map) => (
    new LargeMap(mapName(layer, map, head), (i, j) => weight(layer, map, head, i, j), false, cell, actions)));
  if (data.orders[layer] > 1) {
    const title = `Level ${data.orders[layer]} − ${shortName(layer, 0)}: what refining adds and takes away`;
    largeMaps.push(new LargeMap(title, (i, j) => gain(layer, head, i, j), true, cell, actions));
  }
  document.getElementById("maps-box").replaceChildren(...largeMaps.map((map) => map.element));
}

function drawMaps() {
  largeMaps.forEach((map) => map.draw(state.token, hovered));
}

function showReadout(i, j) {
  const readout = document.getElementById("readout");
  readout.replaceChildren();
  if (i === null || j === null) return;
  readout.append(named(i), " → ", named(j));
  if (!seen(i, j)) {
    readout.append(": comes later");
    return;
  }
  for (const map of shown(state.layer, state.branch)) {
    readout.append(`, ${shortName(state.layer, map)}: ${spelled(weight(state.layer, map, state.head, i, j))}`);
  }
}

function chooseHead(layer, head) {
  select({ layer, head });
}

function chooseToken(token) {
  select({ token });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
  const [across, down] = layersAcross ? ["layer", "head"] : ["head", "layer"]; // as in the overview
  const steps = { ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowUp: [down, -1], ArrowDown: [down, 1],
    ",": ["token", -1], ".": ["token", 1] };
  if (!(event.key in steps)) return;
  const [name, step] = steps[event.key];
  const limit = { layer: LAYERS, head: data.heads, token: TOKENS }[name];
  const next = state[name] + step;
  event.preventDefault();
  if (next < 0 || next >= limit) return;
  select({ [name]: next });
  if (event.target.matches(".cell") && name !== "token") overview.current.focus();
}

function fillSelects() {
  const fill = (name, count, text) => {
    const element = document.getElementById(name);
    for (let i = 0; i < count; i++) element.append(make("option", { value: i }, text(i)));
    element.addEventListener("change", () => select({ [name]: Number(element.value) }));
  };
  fill("layer", LAYERS, (i) => `${i}` + (data.orders[i] > 1 ? "" : " (order 1)"));
  fill("head", data.heads, String);
  fill("token", TOKENS, (i) => `${i} ${label(i)}`);
  const branch = document.getElementById("branch");
  branch.append(...BRANCHES.map((name) => make("option", { value: name }, PLURAL[name])));
  branch.addEventListener("change", () => select({ branch: branch.value }));
  branch.parentElement.hidden = !BRANCHES.length;
}

function count(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

function showFacts() {
  document.getElementById("model").textContent = data.model;
  const orders = [...new Set(data.orders)].sort((one, other) => one - other);
  const generated = TOKENS - data.prompt_tokens;
  document.getElementById("facts").textContent = `${count(LAYERS, "layer")} of ${count(data.heads, "head")}, attention order `
    + `${orders.join(" and ")}; ${count(TOKENS, "token")}` + (generated ? `, the last ${generated} generated by the model` : "")
    + (orders.at(-1) > 1 ? `; inner attention "${data.inner_attention}", refined: ${data.refined.join(", ")}` : "") + ".";
  document.getElementById("overview-hint").textContent = `A column per ${layersAcross ? "layer" : "head"}, a row per `
    + `${layersAcross ? "head" : "layer"}; in each cell `
    + (BRANCHES.length ? "where the head would look if nothing were refined, then its levels" : "the levels side by side, level 1 first")
    + ". The bar below a cell is how much of its attention refining moves. Click a cell.";
  document.getElementById("keys").textContent = layersAcross ? "← → layer, ↑ ↓ head" : "← → head, ↑ ↓ layer";
  const notes = notices();
  if (!notes.length) return;
  const notice = document.getElementById("notice");
  notice.hidden = false;
  notice.textContent = notes.join(" ");
}

/** What must not be overlooked. */
function notices() {
  const notes = [];
  if (data.orders.every((order) => order === 1)) {
    notes.push("All layers are of order 1, standard attention: there is one level, and nothing is refined.");
  } else if (data.gates.length && data.gates.every((gate) => gate.value === 0)) {
    notes.push("All gates are closed (0): the inner attention has no effect, every head looks where it would without it, and "
      + "the model computes standard attention.");
    if (data.gates_set_to === null) notes.push("Train the gates, or see what open ones would do with --open-gates 0.05.");
  }
  if (data.gates_set_to !== null) {
    notes.push(`All gates were set to ${data.gates_set_to} for this page (--open-gates); of the model's own `
      + `${data.gates.length} gates ${data.gates_open_in_the_model || "none"} `
      + `${data.gates_open_in_the_model === 1 ? "is" : "are"} open.`);
  }
  if (data.inner_attention === "separate" && BRANCHES.length) {
    notes.push("Inner attentions have weights of their own in this model: head 3 of level 1 is another head than head 3 of "
      + "the last level.");
  }
  if (data.refined.includes("value") && data.orders.some((order) => order > 1)) {
    notes.push("Values are refined, which changes what a head takes from a token and not where it looks: paths and credits "
      + "are of queries and keys only.");
  }
  return notes;
}

async function start() {
  readColours();
  showFacts();
  fillSelects();
  showGates();
  listMostChanged(chooseHead);
  await unpack();
  state = startingState();
  overview = new Overview(chooseHead);
  select({ ...state });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => select(fromAddress()));
}

start();
window.addEventListener("resize", () => {
  makeMaps();
  drawMaps();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  overview.draw();
  makeMaps();
  drawMaps();
});
