// The gates as bars, layer by layer, and as a table.

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The bars of one level, a bar per branch. */
function gateChart(gates, level, branches) {
  const values = gates.map((gate) => gate.value);
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values) || 1];
  const group = Math.max(16, Math.min(44, Math.floor(1100 / LAYERS)));
  const [left, top, height] = [48, 8, 120];
  const width = left + group * LAYERS + 8;
  const y = (value) => top + (height * (high - value)) / (high - low);
  const chart = svg("svg", { class: "chart", width, height: height + 34, role: "img",
    "aria-label": `gates to level ${level + 1} by layer; the table below has the numbers` });
  for (const tick of new Set([low, 0, high])) {
    chart.append(
      svg("line", { x1: left, x2: width - 8, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "tick" }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(Math.abs(tick) < 0.1 && tick ? 3 : 2)),
    );
  }
  for (const gate of gates) {
    const bar = (group - 4) / branches.length;
    const x = left + gate.layer * group + 2 + branches.indexOf(gate.branch) * bar;
    const [from, to] = [y(Math.max(0, gate.value)), y(Math.min(0, gate.value))];
    chart.append(svg("rect", { x, y: from, width: bar, height: Math.max(to - from, 1), class: gate.branch,
      "data-layer": gate.layer, "data-value": gate.value },
    svg("title", {}, `layer ${gate.layer}, ${gate.branch}: ${gate.value.toFixed(4)}`)));
  }
  const step = group < 20 ? 5 : 1;
  for (let layer = 0; layer < LAYERS; layer += step) {
    chart.append(svg("text", { x: left + (layer + 0.5) * group, y: height + 24, "text-anchor": "middle" }, String(layer)));
  }
  return chart;
}

function showGates() {
  const box = document.getElementById("gates");
  if (!data.gates.length) {
    const nested = data.orders.some((order) => order > 1);
    box.append(make("p", {}, nested
      ? "No gates: every nested layer is fully nested, as if all gates were 1."
      : "No gates: all layers are of order 1, standard attention."));
    return;
  }
  const branches = Object.keys(PLURAL).filter((branch) => data.gates.some((gate) => gate.branch === branch));
  const names = branches.flatMap((branch, number) => [number ? ", " : "", make("b", { class: branch }, PLURAL[branch])]);
  box.append(make("p", { class: "hint" },
    "How far what a level attends with comes from the level before: 0 closed, standard attention; 1 fully nested. By layer: ",
    ...names, "."));
  for (const level of new Set(data.gates.map((gate) => gate.level))) {
    const gates = data.gates.filter((gate) => gate.level === level);
    box.append(make("figure", {}, make("figcaption", {}, `From level ${level} to level ${level + 1}`),
      make("div", { class: "scroll" }, gateChart(gates, level, branches))));
  }
  const rows = data.gates.map((gate) => make("tr", {},
    ...[gate.layer, `${gate.level} → ${gate.level + 1}`, gate.branch, gate.value.toFixed(4)].map((cell) => make("td", {}, String(cell)))));
  box.append(make("details", {}, make("summary", {}, "As a table"),
    make("table", { id: "gate-table" },
      make("thead", {}, make("tr", {}, ...["layer", "levels", "branch", "gate"].map((name) => make("th", {}, name)))),
      make("tbody", {}, ...rows))));
}
