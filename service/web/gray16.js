/** Grayscale PNGs of 16 bits. Browsers show them with 8 bits alone, so they are read here. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const BYTES = 2; // of a pixel

async function inflated(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The predictor of filter 4 (PNG, 9.4). */
function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [a, b, c] = [left, above, corner].map((value) => Math.abs(guess - value));
  return a <= b && a <= c ? left : b <= c ? above : corner;
}

/**
 * @param {string} base64 a PNG of one channel of 16 bits, not interlaced
 * @returns {Promise<{width: number, height: number, values: Uint16Array}>} row by row
 */
export async function readGray16(base64) {
  const file = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(file.buffer);
  if (SIGNATURE.some((byte, i) => file[i] !== byte)) throw new RangeError("this is no PNG");
  let [width, height] = [0, 0];
  const parts = [];
  for (let at = 8; at < file.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const data = at + 8;
    if (name === "IHDR") {
      [width, height] = [view.getUint32(data), view.getUint32(data + 4)];
      const kind = [...file.subarray(data + 8, data + 13)];
      if (kind.join() !== "16,0,0,0,0") throw new RangeError("this PNG is not of 16-bit gray");
    }
    if (name === "IDAT") parts.push(file.subarray(data, data + length));
    at = data + length + 4;
  }
  const [raw, line] = [await inflated(parts), width * BYTES];
  if (raw.length !== height * (line + 1)) throw new RangeError("the PNG has too few pixels, or too many");
  const values = new Uint16Array(width * height);
  let above = new Uint8Array(line);
  for (let y = 0; y < height; y++) {
    const start = y * (line + 1);
    const [filter, row] = [raw[start], raw.subarray(start + 1, start + 1 + line)];
    for (let i = 0; i < line; i++) {
      const [left, corner] = i < BYTES ? [0, 0] : [row[i - BYTES], above[i - BYTES]];
      row[i] += [0, left, above[i], (left + above[i]) >> 1, paeth(left, above[i], corner)][filter];
    }
    for (let x = 0; x < width; x++) values[y * width + x] = (row[2 * x] << 8) | row[2 * x + 1];
    above = row;
  }
  return { width, height, values };
}
