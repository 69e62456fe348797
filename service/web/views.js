/** What the other heads say of the photo, side by side: boxes, a colour scale of values, more masks. */

import { element, rgb, short } from "./format.js";
import { readGray16 } from "./gray16.js";
import { Labels } from "./labels.js";

const $ = (id) => document.getElementById(id);
const LONGEST = 900; // the longer side of a picture, in pixels
// Viridis, from the least value to the largest: what is near is bright.
const SCALE = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];

/** The colour of a share 0..1 of the scale. */
function scaled(share) {
  const at = Math.min(1, Math.max(0, share)) * (SCALE.length - 1);
  const first = Math.min(SCALE.length - 2, Math.floor(at));
  return SCALE[first].map((value, i) => Math.round(value + (SCALE[first + 1][i] - value) * (at - first)));
}

/** Of 256 shares; 0xAABBGGRR as in labels.js. */
const SHADES = Uint32Array.from({ length: 256 }, (_, i) => {
  const [red, green, blue] = scaled(i / 255);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
});

/** A canvas of the image's shape, with the photo on it as far as the browser can draw it. */
function pictureOf({ width, height }) {
  const canvas = element("canvas");
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  const pen = canvas.getContext("2d");
  if ($("photo").naturalWidth) pen.drawImage($("photo"), 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  return { canvas, pen, scale };
}

const counted = (segments) => {
  const counts = new Map();
  for (const { label } of segments) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => `${count} ${label}`).join(", ") || "nothing found";
};

/** Boxes over the photo. */
function boxes(head, found, image) {
  const { canvas, pen, scale } = pictureOf(image);
  pen.lineWidth = Math.max(2, canvas.width / 240);
  for (const { box: [x, y, width, height], class_id: id } of found.segments) {
    const sides = [x, y, width, height].map((side) => side * scale);
    pen.strokeStyle = "#04121b";
    pen.strokeRect(...sides.map((side, i) => side + (i < 2 ? -1 : 2)));
    pen.strokeStyle = rgb(head.classes[id]?.color ?? [255, 46, 154]);
    pen.strokeRect(...sides);
  }
  canvas.setAttribute("aria-label", `Boxes of ${head.name} over the photo`);
  return [canvas, element("p", "fine", counted(found.segments))];
}

/** Values in a colour scale, with its legend. */
async function values(head, { values: told }) {
  const { width, height, values: pixels } = await readGray16(told.png);
  const canvas = element("canvas");
  const step = Math.max(1, Math.ceil(Math.max(width, height) / LONGEST));
  [canvas.width, canvas.height] = [Math.ceil(width / step), Math.ceil(height / step)];
  const image = new ImageData(canvas.width, canvas.height);
  const words = new Uint32Array(image.data.buffer);
  const factor = SHADES.length / (told.scale * (told.max - told.min || 1));
  const least = told.min * told.scale;
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, at++) {
      const shade = Math.floor((pixels[y * step * width + x * step] - least) * factor);
      words[at] = SHADES[Math.min(SHADES.length - 1, Math.max(0, shade))];
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${head.name} from ${short(told.min)} to ${short(told.max)} ${told.unit}, in colours`);
  const bar = element("div", "scale");
  bar.setAttribute("aria-hidden", "true");
  bar.style.backgroundImage = `linear-gradient(90deg, ${SCALE.map(rgb).join(", ")})`;
  const ends = element("p", "fine ends");
  const unit = (value) => `${short(value)}\u00a0${told.unit}`;
  ends.append(...[unit(told.min), `median ${unit(told.median)}`, unit(told.max)].map((text) => element("span", "", text)));
  return [canvas, bar, ends];
}

/** Masks over the photo. */
function masks(head, found, image) {
  const { canvas, pen } = pictureOf(image);
  const labels = new Labels({ image, segments: found.segments }, head.objects);
  const drawn = element("canvas");
  labels.paint(drawn, head.classes.map(({ color }) => color), { longest: LONGEST });
  pen.globalAlpha = 0.66;
  pen.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Masks of ${head.name} over the photo`);
  return [canvas, element("p", "fine", counted(found.segments))];
}

const DRAW = { boxes, values, masks };

export class Views {
  /** @param {object[]} heads of GET /plans */
  constructor(heads) {
    this.heads = heads;
    this.shown = null;
  }

  clear() {
    this.shown = null;
    $("views").replaceChildren();
    $("views").hidden = true;
  }

  /**
   * Show what the heads say.
   * @param {object} image of the answer
   * @param {Record<string, object>} answers by head
   * @param {string} except the head that the stage shows
   */
  async show(image, answers, except) {
    const shown = (this.shown = answers);
    const figures = await Promise.all(this.heads.filter(({ name }) => name !== except && answers[name]).map(async (head) => {
      const figure = element("figure", "view");
      figure.dataset.head = head.name;
      const { weight, width } = answers[head.name];
      const facts = [head.task === head.name ? "" : head.task, width < 1 ? `w${Math.round(100 * width)}` : "",
        weight === undefined ? "" : `${Math.round(100 * weight)} %`].filter(Boolean).join(" · ");
      const caption = element("figcaption", "", head.name);
      caption.append(" ", element("span", "facts", facts));
      figure.append(caption, ...await DRAW[head.gives](head, answers[head.name], image));
      return figure;
    }));
    if (this.shown !== shown) return; // another answer came meanwhile
    $("views").replaceChildren(...figures);
    $("views").hidden = figures.length === 0;
  }
}
