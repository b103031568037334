// The grid of all heads, their maps side by side in every cell: a column per layer and a row per head, or the other way
// about if there are more heads than layers.

const layersAcross = LAYERS >= data.heads;

class Overview {
  constructor(choose) {
    this.cells = []; // [layer][head]
    this.current = null;
    this.choose = choose;
    this.grid = document.getElementById("overview");
    const [columns, rows] = layersAcross ? [LAYERS, data.heads] : [data.heads, LAYERS];
    this.grid.style.gridTemplateColumns = `repeat(${columns + 1}, auto)`;
    this.grid.append(make("span", { class: "corner" }));
    for (let column = 0; column < columns; column++) this.grid.append(this.title("column", layersAcross, column));
    for (let layer = 0; layer < LAYERS; layer++) this.cells.push([]);
    for (let row = 0; row < rows; row++) {
      this.grid.append(this.title("row", !layersAcross, row));
      for (let column = 0; column < columns; column++) {
        this.grid.append(layersAcross ? this.cell(column, row) : this.cell(row, column));
      }
    }
    // Drawn when it comes into sight: a large model has thousands.
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((entry) => entry.isIntersecting)) {
        this.seen.unobserve(entry.target);
        this.drawCell(entry.target);
      }
    });
    this.slider = document.getElementById("side"); // once it is moved, the size stays as chosen
    this.chosen = null;
    this.slider.addEventListener("input", () => {
      this.chosen = Number(this.slider.value);
      this.draw();
    });
    this.draw();
    window.addEventListener("resize", () => this.sideNow() !== this.side && this.draw());
  }

  title(place, isLayer, number) {
    const title = isLayer ? `layer ${number}, order ${data.orders[number]}` : `head ${number}`;
    return make("span", { class: place, title }, `${isLayer ? "L" : "H"}${number}`);
  }

  cell(layer, head) {
    const change = data.change[layer][head];
    const button = make("button", {
      type: "button", class: "cell", tabindex: "-1", "data-layer": layer, "data-head": head,
      title: `layer ${layer}, head ${head}: ${change.toFixed(2)} changed`,
      "aria-label": `layer ${layer}, head ${head}, ${change.toFixed(2)} changed`,
    });
    const bar = make("i", {});
    bar.style.width = `${100 * change}%`;
    button.append(make("canvas", {}), make("span", { class: "change" }, bar));
    button.addEventListener("click", () => this.choose(layer, head));
    this.cells[layer][head] = button;
    return button;
  }

  /** CSS pixels of a small map: as large as lets a whole row be seen at once, within reason. */
  sideNow() {
    if (this.chosen) return this.chosen;
    const counts = mapsOf.map((_, layer) => shown(layer, state.branch).length);
    const maps = layersAcross ? counts.reduce((sum, count) => sum + count, 0) : data.heads * Math.max(...counts);
    const columns = layersAcross ? LAYERS : data.heads;
    const room = document.getElementById("overview-box").clientWidth - 40 - columns * 5 - maps;
    return Math.max(18, Math.min(72, Math.floor(room / maps)));
  }

  draw() {
    this.side = this.sideNow();
    this.slider.value = this.side;
    for (const cell of this.cells.flat()) {
      const canvas = cell.firstChild;
      canvas.style.width = `${shown(cell.dataset.layer, state.branch).length * (this.side + 1) - 1}px`;
      canvas.style.height = `${this.side}px`;
      delete cell.dataset.drawn;
      this.seen.unobserve(cell);
      this.seen.observe(cell);
    }
    if (this.current) this.reveal();
  }

  drawCell(cell) {
    const [layer, head] = [Number(cell.dataset.layer), Number(cell.dataset.head)];
    drawSmall(cell.firstChild, layer, head, shown(layer, state.branch), this.side);
    cell.dataset.drawn = "yes";
  }

  select(layer, head) {
    if (this.current) {
      this.current.removeAttribute("aria-current");
      this.current.tabIndex = -1;
    }
    this.current = this.cells[layer][head];
    this.current.setAttribute("aria-current", "true");
    this.current.tabIndex = 0;
    this.reveal();
  }

  /** Scrolls the box, not the page, to the selected cell. */
  reveal() {
    const box = document.getElementById("overview-box");
    const [cell, frame] = [this.current.getBoundingClientRect(), box.getBoundingClientRect()];
    if (cell.left < frame.left + 40 || cell.right > frame.right) box.scrollLeft += cell.left - frame.left - frame.width / 2;
    if (cell.top < frame.top + 20 || cell.bottom > frame.bottom) box.scrollTop += cell.top - frame.top - frame.height / 2;
  }
}

/** Links to the heads that change most. */
function listMostChanged(choose) {
  const heads = data.change.flatMap((heads, layer) => heads.map((change, head) => ({ layer, head, change })));
  const changed = heads.filter(({ change }) => change >= 0.005).sort((one, other) => other.change - one.change);
  const list = document.getElementById("most-changed");
  if (!changed.length) {
    list.append(heads.some(({ change }) => change > 0)
      ? "No head changes by 0.005 or more."
      : "No head changes: all look where they would if nothing were refined.");
    return;
  }
  list.append("Most changed: ");
  for (const { layer, head, change } of changed.slice(0, 8)) {
    const button = make("button", { type: "button", "data-layer": layer, "data-head": head },
      `L${layer} H${head} `, make("b", {}, change.toFixed(2)));
    button.addEventListener("click", () => choose(layer, head));
    list.append(button, " ");
  }
}
