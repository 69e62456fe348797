/** Shared helpers: numbers and small elements look the same everywhere. */

/** About three significant digits: 0.123, 4.12, 31.4, 1520. */
export const short = (value) => value.toFixed(value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0);

/** GFLOPs of a plan, rounded up like all costs that are told: as a ceiling, the number buys the plan. */
export function cost(gflops) {
  const digits = gflops < 1 ? 3 : gflops < 10 ? 2 : gflops < 100 ? 1 : 0;
  return (Math.ceil(gflops * 10 ** digits - 1e-6) / 10 ** digits).toFixed(digits);
}

/** A share 0..1 in per cent; a tiny one does not become zero. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

export function bytes(count) {
  if (count < 1e6) return `${Math.ceil(count / 1e3)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

/** An element with a class and text. Text from outside stays text and never becomes HTML. */
export function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

export const rgb = (color) => `rgb(${color.join(" ")})`;

const shares = (pairs) => pairs.filter(([, share]) => share < 1)
  .map(([letter, share]) => letter + Number((100 * share).toPrecision(3)));

/** A plan's keep and width in per cent, as in its name: "k25 w50". Shares of 100 % are left out. */
export const knobs = ({ keep, width }) => shares([["k", keep], ["w", width]]).join(" ");

/** The heads that a plan runs narrower than they are, as in its name: ["depth-w25"]. */
export const narrowed = ({ heads }) => shares(Object.entries(heads).map(([name, share]) => [`${name}-w`, share]));

/** A canvas' shape as photos are measured: "640 × 480", the width first. It stays on one line. */
export const size = ({ width, height }) => `${width}\u00a0×\u00a0${height}`;

/** The sum of the service's stages, in milliseconds. */
export const serverMs = (timing) => Object.values(timing).reduce((sum, ms) => sum + ms, 0);

/** The canvases that are not cut into tiles, from small to large. */
const plain = (canvases) => canvases.filter(({ tiles }) => !tiles);

/**
 * The plans that an image may take, its full plan last: tiled ones are for images alone that the largest other canvas
 * would shrink. Without a size, all of them.
 */
export function openTo(plans, canvases, { width, height }) {
  if (!width || !height || !plans.some(({ tiled }) => tiled)) return plans;
  const fits = plain(canvases).at(-1).shapes.map((shape) => {
    const scale = Math.min(shape.width / width, shape.height / height);
    return { scale, filled: (scale * width * scale * height) / (shape.width * shape.height) };
  });
  const best = fits.reduce((most, fit) => (fit.filled > most.filled ? fit : most));
  if (best.scale >= 1) return plans.filter(({ tiled }) => !tiled);
  return plans.slice(0, plans.findLastIndex(({ tiled }) => tiled) + 1);
}

/** A canvas in words: its shapes, and how it is cut. */
export function described({ name, shapes, tiles }) {
  const cut = tiles ? `, ${tiles.rows * tiles.columns} tiles of ${tiles.of}, for larger images alone` : "";
  return `${name}: ${shapes.map(size).join(" or ")}${cut}.`;
}
