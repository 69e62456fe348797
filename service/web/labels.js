/** Which segment every pixel of an answer belongs to, and pictures of it. */

import { paintRle } from "./rle.js";

/** 0xAABBGGRR, the byte order of ImageData seen as 32-bit words (every browser runs on little-endian machines). */
const word = ([red, green, blue], alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

const FAINT = 56; // alpha of what is not singled out
const CHANGED = word([255, 46, 154], 255);

export class Labels {
  /** @param {object} answer the JSON of /segment */
  constructor(answer) {
    this.segments = answer.segments;
    this.width = answer.image.width;
    this.height = answer.image.height;
    const pixels = this.width * this.height;
    /** Column by column, as in the run lengths: 0 = no segment, i + 1 = segments[i]. */
    this.map = this.segments.length < 255 ? new Uint8Array(pixels) : new Uint16Array(pixels);
    this.segments.forEach((segment, index) => paintRle(segment.rle, this.map, index + 1));
  }

  /** The segment at a pixel, or undefined. */
  at(x, y) {
    return this.segments[this.map[x * this.height + y] - 1];
  }

  /** Class per entry of the map's values; -1 for "no segment". */
  classes() {
    return Int16Array.from([-1, ...this.segments.map((segment) => segment.class_id)]);
  }

  /** Share (0..1) of pixels whose class differs from the other result's. */
  difference(other) {
    if (other.map.length !== this.map.length) throw new RangeError("the results differ in size");
    const [mine, theirs] = [this.classes(), other.classes()];
    let changed = 0;
    for (let i = 0; i < this.map.length; i++) if (mine[this.map[i]] !== theirs[other.map[i]]) changed++;
    return changed / this.map.length;
  }

  /**
   * Paint class colours into a canvas, at most `longest` pixels on the longer side (nearest pixel).
   * @param {HTMLCanvasElement} canvas
   * @param {[number, number, number][]} colors per class id
   * @param {{longest?: number, only?: number | null, against?: Labels | null}} how only: the class id that stays
   *   opaque; against: paint just the pixels whose class differs from that result
   */
  paint(canvas, colors, { longest = 2048, only = null, against = null } = {}) {
    const scale = Math.min(1, longest / Math.max(this.width, this.height));
    const width = Math.max(1, Math.round(this.width * scale));
    const height = Math.max(1, Math.round(this.height * scale));
    const image = new ImageData(width, height);
    const words = new Uint32Array(image.data.buffer);
    const mine = this.classes();
    const theirs = against?.classes();
    const palette = Uint32Array.from(mine, (id) =>
      id < 0 ? 0 : word(colors[id] ?? [128, 128, 128], only === null || only === id ? 255 : FAINT),
    );
    for (let x = 0; x < width; x++) {
      const column = Math.floor(((x + 0.5) * this.width) / width) * this.height;
      for (let y = 0; y < height; y++) {
        const at = column + Math.floor(((y + 0.5) * this.height) / height);
        const value = this.map[at];
        if (!against) words[y * width + x] = palette[value];
        else if (mine[value] !== theirs[against.map[at]]) words[y * width + x] = CHANGED;
      }
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}
