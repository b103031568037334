// Drawing attention maps on canvases.

const colours = {}; // of the scheme in use, as [red, green, blue]
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["map", "future", "more", "less", "ink", "faint", "page", "accent"]) {
    const hex = style.getPropertyValue(`--${name}`).trim().slice(1);
    colours[name] = [0, 2, 4].map((start) => parseInt(hex.slice(start, start + 2), 16));
  }
}

function css(name) {
  return `rgb(${colours[name].join(",")})`;
}

/** The colour of a weight in [0, 1], or of a difference in [-1, 1]. */
function shade(value, diverging) {
  const strength = Math.sqrt(Math.min(1, Math.abs(value)));
  const full = diverging ? colours[value < 0 ? "less" : "more"] : colours.ink;
  return colours.map.map((low, part) => low + (full[part] - low) * strength);
}

/** A map as an image of size x size dots, each the value farthest from 0 among the cells that it stands for. */
function mapImage(value, size, diverging) {
  const image = new ImageData(size, size);
  const span = TOKENS / size;
  for (let y = 0; y < size; y++) {
    const top = Math.floor(y * span);
    const bottom = Math.max(top + 1, Math.ceil((y + 1) * span));
    for (let x = 0; x < size; x++) {
      const left = Math.floor(x * span);
      const right = Math.max(left + 1, Math.ceil((x + 1) * span));
      let farthest = null;
      for (let i = top; i < bottom && i < TOKENS; i++) {
        for (let j = left; j < right && seen(i, j); j++) {
          const here = value(i, j);
          if (farthest === null || Math.abs(here) > Math.abs(farthest)) farthest = here;
        }
      }
      const colour = farthest === null ? colours.future : shade(farthest, diverging);
      image.data.set([...colour, 255], 4 * (y * size + x));
    }
  }
  return image;
}

/** Small maps of a head side by side, `side` CSS pixels each. */
function drawSmall(canvas, layer, head, maps, side) {
  const ratio = window.devicePixelRatio || 1;
  const dots = Math.round(side * ratio);
  const step = dots + Math.max(1, Math.round(ratio));
  canvas.width = maps.length * step - (step - dots);
  canvas.height = dots;
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.style.height = `${side}px`;
  const context = canvas.getContext("2d");
  for (const [place, map] of maps.entries()) {
    context.putImageData(mapImage((i, j) => weight(layer, map, head, i, j), dots, false), place * step, 0);
  }
}

/** A large map with the tokens along both axes, and the row in question marked. */
class LargeMap {
  constructor(title, value, diverging, cell, actions) {
    this.value = value;
    this.diverging = diverging;
    this.cell = cell;
    this.font = Math.max(9, Math.min(13, cell - 1));
    this.every = Math.ceil((this.font + 1) / cell); // as many labels as fit
    const measure = document.createElement("canvas").getContext("2d");
    measure.font = this.fontOf(true);
    const longest = Math.max(...data.tokens.map((_, i) => measure.measureText(this.name(i)).width));
    this.margin = Math.ceil(longest) + 8;
    this.canvas = make("canvas", { role: "img", "aria-label": `${title}; the tables above say the same in numbers` });
    this.element = make("figure", {}, make("figcaption", {}, title), this.canvas);
    this.canvas.addEventListener("mousemove", (event) => actions.hover(...this.cellAt(event)));
    this.canvas.addEventListener("mouseleave", () => actions.hover(null, null));
    this.canvas.addEventListener("click", (event) => actions.choose(...this.cellAt(event)));
    this.image = null;
  }

  fontOf(bold) {
    return `${bold ? "600 " : ""}${this.font}px system-ui, sans-serif`;
  }

  name(i) {
    return `${label(i, 10)} ${i}`;
  }

  /** The row and column under the pointer, null where there is none. */
  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((at) => (
      Math.floor((at - this.margin) / this.cell)));
    const inside = (n) => (n >= 0 && n < TOKENS ? n : null);
    return [inside(row), inside(column)];
  }

  draw(query, hovered) {
    const ratio = window.devicePixelRatio || 1;
    const { cell, margin } = this;
    const size = margin + cell * TOKENS + 2;
    this.canvas.width = this.canvas.height = Math.round(size * ratio);
    this.canvas.style.width = this.canvas.style.height = `${size}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    if (!this.image) {
      this.image = document.createElement("canvas");
      this.image.width = this.image.height = TOKENS;
      this.image.getContext("2d").putImageData(mapImage(this.value, TOKENS, this.diverging), 0, 0);
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, margin, margin, cell * TOKENS, cell * TOKENS);
    this.marks(context, query, hovered);
    this.labels(context, query, hovered);
  }

  marks(context, query, [row, column]) {
    const { cell, margin } = this;
    context.strokeStyle = css("accent");
    context.lineWidth = 1.5;
    const markRow = (i) => {
      const end = data.causal ? i + 1 : TOKENS;
      context.strokeRect(margin - 0.5, margin + i * cell - 0.5, end * cell + 1, cell + 1);
    };
    markRow(query);
    if (row === null || column === null || !seen(row, column)) return;
    context.strokeStyle = css("faint");
    context.lineWidth = 1;
    markRow(row);
    const top = data.causal ? column : 0;
    context.strokeRect(margin + column * cell - 0.5, margin + top * cell - 0.5, cell + 1, cell * (TOKENS - top) + 1);
  }

  labels(context, query, [row, column]) {
    const { cell, margin } = this;
    context.textBaseline = "middle";
    for (let i = 0; i < TOKENS; i++) {
      const centre = margin + (i + 0.5) * cell;
      for (const [marked, isColumn] of [[i === query || i === row, false], [i === column, true]]) {
        // A marked label needs the room of those beside it.
        if (i % this.every !== 0 && !marked) continue;
        context.font = this.fontOf(marked);
        context.fillStyle = css(marked ? "accent" : "faint");
        context.save();
        context.translate(isColumn ? centre : margin - 4, isColumn ? margin - 4 : centre);
        if (isColumn) context.rotate(-Math.PI / 2);
        context.textAlign = isColumn ? "left" : "right";
        context.fillText(this.name(i), 0, 0);
        context.restore();
      }
    }
  }
}
