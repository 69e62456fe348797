/** The segment of every pixel of an answer, and pictures of the segments. */

import { paintRle } from "./rle.js";

/** 0xAABBGGRR: the byte order of ImageData as 32-bit words (all browsers run on little-endian machines). */
const word = ([red, green, blue], alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

const FAINT = 56; // alpha of classes other than the selected one
const INSIDE = 140; // alpha of an object within its outline
const CHANGED = word([255, 46, 154], 255);
const DIMMED = word([4, 18, 27], 150);
const HATCH = word([255, 255, 255], 200);

/**
 * One colour per object, RGB, 0..255. The golden angle puts the hues of consecutive ids far apart. About the same hue
 * returns 5, 8 or 13 ids later, with another lightness.
 */
function objectColor(id) {
  const [hue, lightness, chroma] = [(id * 137.508) % 360, 0.48 + 0.1 * (id % 3), 0.3];
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

export class Labels {
  /**
   * @param {object} answer the JSON of /segment, with the segments of one head
   * @param {boolean} objects whether a segment is one object, as in /plans: it then has its own colour
   */
  constructor(answer, objects) {
    this.segments = answer.segments ?? [];
    this.asked = Boolean(answer.segments); // else nobody asked for masks
    this.width = answer.image.width;
    this.height = answer.image.height;
    this.objects = objects;
    this.paused = answer.paused ?? null;
    const pixels = this.width * this.height;
    /** Column by column, as in the run lengths: 0 = no segment, i + 1 = segments[i]. */
    this.map = this.segments.length < 255 ? new Uint8Array(pixels) : new Uint16Array(pixels);
    this.segments.forEach((segment, index) => paintRle(segment.rle, this.map, index + 1));
  }

  /** The segment at a pixel, or undefined. */
  at(x, y) {
    return this.segments[this.map[x * this.height + y] - 1];
  }

  /** RGB of a segment: an object's own colour, else the class's. */
  color(segment, colors) {
    return this.objects ? objectColor(segment.id) : (colors[segment.class_id] ?? [128, 128, 128]);
  }

  /** The class for each value of the map; -1 for "no segment". */
  classes() {
    return Int16Array.from([-1, ...this.segments.map((segment) => segment.class_id)]);
  }

  /** The share (0..1) of pixels that have another class in the other result. */
  difference(other) {
    if (other.map.length !== this.map.length) throw new RangeError("the results differ in size");
    const [mine, theirs] = [this.classes(), other.classes()];
    let changed = 0;
    for (let i = 0; i < this.map.length; i++) if (mine[this.map[i]] !== theirs[other.map[i]]) changed++;
    return changed / this.map.length;
  }

  /**
   * Paint the segments' colours into a canvas, at most `longest` pixels on the longer side (nearest pixel). Objects are
   * paler inside their outlines, so that touching objects look separate.
   * @param {HTMLCanvasElement} canvas
   * @param {[number, number, number][]} colors per class id
   * @param {{longest?: number, only?: number | null, against?: Labels | null}} how only: the class id that stays
   *   opaque; against: paint only the pixels that have another class in that result
   */
  paint(canvas, colors, { longest = 2048, only = null, against = null } = {}) {
    const mine = this.classes();
    const theirs = against?.classes();
    const alpha = (segment) => (only === null || only === segment.class_id ? 255 : FAINT);
    const palette = (most) => Uint32Array.from([null, ...this.segments], (segment) =>
      segment ? word(this.color(segment, colors), Math.min(most, alpha(segment))) : 0,
    );
    const [outline, inside] = [palette(255), palette(this.objects ? INSIDE : 255)];
    const { map } = this;
    this.#draw(canvas, longest, (at, left, right, above, below) => {
      const value = map[at];
      if (against) return mine[value] === theirs[against.map[at]] ? 0 : CHANGED;
      const alone = value === map[left] && value === map[right] && value === map[above] && value === map[below];
      return alone ? inside[value] : outline[value];
    });
  }

  /** Hatch the part that the encoder paused. There must be one. */
  paintPaused(canvas, { longest = 2048 } = {}) {
    const map = new Uint8Array(this.map.length);
    paintRle(this.paused.rle, map, 1);
    const period = Math.max(6, Math.round(Math.min(longest, Math.max(this.width, this.height)) / 72));
    this.#draw(canvas, longest, (at, left, right, above, below, x, y) => {
      if (!map[at]) return 0;
      return (x + y) % period < period / 5 ? HATCH : DIMMED;
    });
  }

  /**
   * @param {(at: number, left: number, right: number, above: number, below: number, x: number, y: number) => number}
   *   paint returns the word of a pixel of the canvas. It gets the indices in the map of the pixel and of its
   *   neighbours in the image, one line width away, and the pixel's position
   */
  #draw(canvas, longest, paint) {
    const scale = Math.min(1, longest / Math.max(this.width, this.height));
    const width = Math.max(1, Math.round(this.width * scale));
    const height = Math.max(1, Math.round(this.height * scale));
    const image = new ImageData(width, height);
    const words = new Uint32Array(image.data.buffer);
    const line = Math.max(1, Math.round(Math.max(width, height) / 700));
    const nearest = (count, size) => (i) => Math.floor(((Math.min(count - 1, Math.max(0, i)) + 0.5) * size) / count);
    const places = (count, at) => [0, -line, line].map((by) => Int32Array.from({ length: count }, (_, i) => at(i + by)));
    const [columns, before, after] = places(width, nearest(width, this.width));
    const [rows, over, under] = places(height, nearest(height, this.height));
    for (let x = 0; x < width; x++) {
      const [column, left, right] = [columns[x] * this.height, before[x] * this.height, after[x] * this.height];
      for (let y = 0; y < height; y++) {
        const row = rows[y];
        words[y * width + x] =
          paint(column + row, left + row, right + row, column + over[y], column + under[y], x, y);
      }
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}
