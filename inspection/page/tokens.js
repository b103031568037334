// The token that asks: the text as each level sees it, and the paths to what is newly attended.

const SHOWN = 6; // targets listed per level
const LEAST = 0.01; // attention, for a target to be listed
const PLURAL = { query: "queries", key: "keys", value: "values" };

/** A map of a head as a title. */
function mapName(layer, map, head) {
  const { level, branch, heads } = mapsOf[layer][map];
  if (data.orders[layer] === 1) return "The only level";
  if (level === 0) return "Nothing refined: for comparison, no level of the model";
  if (branch) {
    const whose = data.inner_attention === "self" ? `${PLURAL[branch]} look at ${PLURAL[branch]}` : `of the ${PLURAL[branch]}`;
    return `Level ${level}, ${whose}` + (heads < data.heads ? ` (head ${headIn(layer, map, head)} of ${heads})` : "");
  }
  if (map === 0) return "Level 1, nothing refined";
  return level === data.orders[layer] ? `Level ${level}, the last` : `Level ${level}`;
}

/** A map in a few words. */
function shortName(layer, map) {
  const { level } = mapsOf[layer][map];
  return level ? `level ${level}` : "nothing refined";
}

/** The text, shaded by where `query` looks in a map, and the largest weights as numbers. */
function textOfMap(layer, map, head, query, choose) {
  const text = make("p", { class: "text" });
  for (let j = 0; j < TOKENS; j++) {
    const value = weight(layer, map, head, query, j);
    const token = make("button", { type: "button", class: "token", tabindex: "-1", "data-token": j });
    token.textContent = visible(j);
    token.title = seen(query, j) ? `${j}: ${spelled(value)}` : `${j}: comes later`;
    token.style.setProperty("--weight", `${(100 * Math.sqrt(value)).toFixed(1)}%`);
    if (value > 0.4) token.classList.add("strong");
    if (j === query) token.classList.add("query");
    if (!seen(query, j)) token.classList.add("later");
    if (j >= data.prompt_tokens) token.classList.add("generated");
    token.addEventListener("click", () => choose(j));
    text.append(token);
    if (data.tokens[j].includes("\n")) text.append(make("br"));
  }
  const largest = [...data.tokens.keys()]
    .map((j) => [j, weight(layer, map, head, query, j)])
    .filter(([, value]) => value >= LEAST)
    .sort(([, one], [, other]) => other - one)
    .slice(0, SHOWN);
  const list = make("ol", { class: "targets" });
  for (const [j, value] of largest) {
    list.append(make("li", { "data-token": j }, named(j), " ", value.toFixed(3)));
  }
  return make("div", { class: "level", "data-level": mapsOf[layer][map].level }, make("h4", {}, mapName(layer, map, head)), text, list);
}

/** One path as a sentence, each further chain on a line of its own. */
function pathItem(layer, head, path) {
  const item = make("li", { "data-query": path.query, "data-target": path.target });
  const [first, last] = [0, mapsOf[layer].length - 1].map((map) => weight(layer, map, head, path.query, path.target));
  item.append(
    make("p", { class: "arrow" }, named(path.query), " → ", named(path.target),
      make("span", { class: "numbers" }, ` ${shortName(layer, 0)}: ${spelled(first)}, the last: ${spelled(last)},`,
        make("b", {}, ` ${signed(path.gain, 3)}`))),
  );
  if (!path.chains.length) {
    item.append(make("p", { class: "hint" }, "No single token explains it: what was gathered adds up from many."));
  }
  for (const chain of path.chains) item.append(chainLine(path, chain));
  return item;
}

function chainLine(path, chain) {
  const line = make("p", { class: "chain", "data-branch": chain[0].branch,
    "data-tokens": chain.map((hop) => hop.token).join(" ") });
  if (chain[0].branch === "key") {
    line.append(named(path.query), " looks at ", named(path.target), ", whose key was gathered from ");
  } else {
    line.append(named(path.query), ", whose query was gathered from ");
  }
  chain.forEach((hop, number) => {
    if (number) {
      line.append(`, which is found through ${hop.branch === "key" ? "its" : "a"} ${hop.inner || hop.branch}, gathered from `);
    }
    line.append(named(hop.token));
    const where = `head ${hop.head} of level ${hop.level}` + (hop.inner ? ` of the ${PLURAL[hop.inner]}` : "");
    line.append(make("span", { class: "numbers" }, ` (${hop.weight.toFixed(2)}, ${where})`));
  });
  if (chain[0].branch === "query") line.append(", looks at ", named(path.target));
  line.append(make("span", { class: "numbers" }, `: credit ${signed(chain[0].credit, 1)}`));
  return line;
}

/** Why a head may have no paths at all; null if it may. */
function whyNoPaths(layer) {
  if (data.orders[layer] === 1) return "This layer is of order 1: it has one level, nothing is refined, and there are no paths.";
  if (isClosed(layer)) {
    return "The gates of this layer are closed: nothing is refined, every head looks where it would without inner attention, and there are no paths.";
  }
  if (String(data.refined) === "value") return "Only values are refined, which changes what a head takes from a token and not where it looks: there are no paths.";
  return null;
}

function showPaths(state) {
  const { layer, head, token } = state;
  const box = document.getElementById("paths");
  const mine = pathsOf(layer, head).filter((path) => path.query === token);
  const why = whyNoPaths(layer);
  if (why) box.replaceChildren(make("p", { class: "none" }, why));
  else if (!mine.length) {
    box.replaceChildren(make("p", { class: "none" },
      "Nothing: to no token does refining add 0.05 attention."));
  } else box.replaceChildren(make("ol", { class: "paths" }, ...mine.map((path) => pathItem(layer, head, path))));
}

/** Links to the rows of this head that gain most. */
function showGains(state, choose) {
  const box = document.getElementById("gains");
  const paths = pathsOf(state.layer, state.head).slice(0, SHOWN);
  box.replaceChildren();
  if (!paths.length) box.append("None.");
  for (const path of paths) {
    const button = make("button", { type: "button", "data-query": path.query, "data-target": path.target },
      named(path.query), " → ", named(path.target), " ", make("b", {}, signed(path.gain, 3)));
    button.addEventListener("click", () => choose(path.query));
    box.append(button, " ");
  }
}
