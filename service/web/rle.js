/**
 * COCO's compressed run lengths, the `rle.counts` of an answer.
 *
 * Runs of "outside" and "inside" alternate, "outside" first, down the columns of the image. A run is a signed number in
 * base 32, least significant digit first. A character (code - 48) has five bits; its bit 5 says that another character
 * follows. Bit 4 of the last character is the sign. From the fourth run on, the number is the difference to the run two
 * before it.
 */

/**
 * @param {string} text
 * @returns {number[]} run lengths in pixels
 */
export function decodeCounts(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0;
    let shift = 0;
    let digit;
    do {
      digit = text.charCodeAt(at++) - 48;
      if (!(digit >= 0 && digit < 64) || shift > 30) throw new RangeError(`not a run length, at character ${at}`);
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new RangeError(`run ${runs.length} is negative`);
    runs.push(value);
  }
  return runs;
}

/**
 * Write `value` wherever the mask is set.
 * @param {{size: [number, number], counts: string}} rle size is [height, width]
 * @param {Uint8Array | Uint16Array} map height * width entries, column by column
 * @param {number} value
 */
export function paintRle(rle, map, value) {
  const [height, width] = rle.size;
  if (map.length !== height * width) throw new RangeError(`the mask is ${width} x ${height}, the image is not`);
  let start = 0;
  decodeCounts(rle.counts).forEach((run, index) => {
    if (index % 2) map.fill(value, start, start + run);
    start += run;
  });
  if (start !== map.length) throw new RangeError(`the runs cover ${start} of ${map.length} pixels`);
}
