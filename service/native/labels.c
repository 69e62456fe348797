/* The most probable channel of every pixel, as pixels/most_probable.py defines it, to the last bit:
   the same operations in float32, in the same order, so that it is compiled without contraction.

   Compiled once for each set of instructions, with NAME as the function's name. The inner loops run
   over neighbours in a row and have no branches, so that compilers make vector instructions of them. */
#include "labels.h"

#include <stdlib.h>
#include <string.h>

#define TILE 128 /* columns of pixels whose labels stay in the cache until they are written */

/* best[i], label[i]: the largest of the channels seen so far, of equals the first. */
static void compare(const float *restrict value, int32_t channel, float *restrict best,
                    int32_t *restrict label, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    label[i] = value[i] > best[i] ? channel : label[i];
    best[i] = value[i] > best[i] ? value[i] : best[i];
  }
}

/* The same of the mixtures between two rows. */
static void compare_between(const float *restrict upper, const float *restrict lower, float weight,
                            int32_t channel, float *restrict best, int32_t *restrict label,
                            int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    float value = (lower[i] - upper[i]) * weight + upper[i];
    label[i] = value > best[i] ? channel : label[i];
    best[i] = value > best[i] ? value : best[i];
  }
}

static void mix_columns(const float *restrict row, const int32_t *restrict left,
                        const int32_t *restrict right, const float *restrict across,
                        float *restrict mixed, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    mixed[i] = (row[right[i]] - row[left[i]]) * across[i] + row[left[i]];
}

typedef struct {
  int32_t *cells;      /* (cell_rows, cell_columns): the label of each cell */
  float *best;         /* the same room, and at least TILE */
  uint8_t *tile;       /* (height, TILE) */
  float *upper, *lower; /* (channels, TILE), of the columns that have to be compared */
  int32_t label[TILE];
  int32_t left[TILE], right[TILE], column[TILE];
  float across[TILE];
} Room;

static int alloc(Room *room, const Labelling *call) {
  const int64_t cells = (int64_t)call->cell_rows * call->cell_columns;
  room->cells = malloc(sizeof(int32_t) * cells);
  room->best = malloc(sizeof(float) * (cells > TILE ? cells : TILE));
  room->tile = calloc(call->height, TILE);
  room->upper = malloc(2 * sizeof(float) * TILE * call->channels);
  room->lower = room->upper + TILE * call->channels;
  return room->cells && room->best && room->tile && room->upper;
}

static void free_room(Room *room) {
  free(room->cells);
  free(room->best);
  free(room->tile);
  free(room->upper);
}

static void label_cells(const Labelling *call, Room *room) {
  const int64_t cells = (int64_t)call->cell_rows * call->cell_columns;
  memset(room->cells, 0, sizeof(int32_t) * cells);
  memcpy(room->best, call->planes, sizeof(float) * cells);
  for (int32_t channel = 1; channel < call->channels; channel++)
    compare(call->planes + channel * cells, channel, room->best, room->cells, cells);
}

/* Fill the rows begin..end of the tile, all of which lie between the same two rows of cells. */
static void label_strip(const Labelling *call, Room *room, int64_t first, int64_t width,
                        int64_t begin, int64_t end) {
  const int64_t cell_columns = call->cell_columns, cells = call->cell_rows * cell_columns;
  const int64_t top = call->top[begin] * cell_columns, bottom = call->bottom[begin] * cell_columns;
  const int32_t *above = room->cells + top, *below = room->cells + bottom;
  uint8_t *rows = room->tile + begin * TILE;
  int64_t open = 0; /* columns whose four cells do not agree */
  for (int64_t i = 0; i < width; i++) {
    const int64_t left = call->left[first + i];
    /* That of the next cell, also where no pixel takes part of it: as in most_probable.py. */
    const int64_t right = left + 1 < cell_columns ? left + 1 : left;
    const int32_t label = above[left];
    rows[i] = label;
    if (label == above[right] && label == below[left] && label == below[right]) continue;
    room->left[open] = left;
    room->right[open] = call->right[first + i];
    room->across[open] = call->across[first + i];
    room->column[open++] = i;
  }
  for (int64_t y = 1; y < end - begin; y++) memcpy(rows + y * TILE, rows, width);
  if (open == 0) return;
  for (int32_t channel = 0; channel < call->channels; channel++) {
    const float *plane = call->planes + channel * cells;
    mix_columns(plane + top, room->left, room->right, room->across, room->upper + channel * TILE,
                open);
    mix_columns(plane + bottom, room->left, room->right, room->across,
                room->lower + channel * TILE, open);
  }
  for (int64_t y = begin; y < end; y++, rows += TILE) {
    const float weight = call->down[y];
    for (int64_t i = 0; i < open; i++) {
      room->best[i] = (room->lower[i] - room->upper[i]) * weight + room->upper[i];
      room->label[i] = 0;
    }
    for (int32_t channel = 1; channel < call->channels; channel++)
      compare_between(room->upper + channel * TILE, room->lower + channel * TILE, weight, channel,
                      room->best, room->label, open);
    for (int64_t i = 0; i < open; i++) rows[room->column[i]] = room->label[i];
  }
}

/* Which bytes of these eight differ: bit 8 k of the result for byte k. */
static inline uint64_t differing(const uint8_t *a, const uint8_t *b) {
  uint64_t x, y;
  memcpy(&x, a, 8);
  memcpy(&y, b, 8);
  x ^= y;
  x |= x >> 4;
  x |= x >> 2;
  x |= x >> 1;
  return x & 0x0101010101010101u;
}

static void copy_rows(const Labelling *call, const Room *room, int64_t first, int64_t width) {
  for (int64_t y = 0; y < call->height; y++)
    memcpy(call->labels + y * call->width + first, room->tile + y * TILE, width);
}

/* Append the runs of the tile's columns: count them, then write each where its column's runs begin.
   Rows that follow each other are compared, which are the same nearly everywhere. */
static int64_t add_runs(const Labelling *call, Room *room, int64_t first, int64_t width,
                        int64_t count) {
  int64_t next[TILE];
  for (int64_t i = 0; i < TILE; i++) next[i] = 1; /* the first row */
  for (int64_t y = 1; y < call->height; y++) {
    const uint8_t *row = room->tile + y * TILE;
    for (int64_t at = 0; at < width; at += 8)
      for (uint64_t left = differing(row + at, row - TILE + at); left; left &= left - 1)
        next[at + __builtin_ctzll(left) / 8]++;
  }
  for (int64_t i = 0; i < width; i++) {
    const int64_t runs = next[i];
    call->starts[count] = (first + i) * call->height;
    call->values[count] = room->tile[i];
    next[i] = count + 1;
    count += runs;
  }
  for (int64_t y = 1; y < call->height; y++) {
    const uint8_t *row = room->tile + y * TILE;
    for (int64_t at = 0; at < width; at += 8)
      for (uint64_t left = differing(row + at, row - TILE + at); left; left &= left - 1) {
        const int64_t i = at + __builtin_ctzll(left) / 8;
        if (i >= width) break;
        call->starts[next[i]] = (first + i) * call->height + y;
        call->values[next[i]++] = row[i];
      }
  }
  return count;
}

int64_t NAME(const Labelling *call) {
  Room room;
  if (!alloc(&room, call)) {
    free_room(&room);
    return -1;
  }
  label_cells(call, &room);
  int64_t count = 0;
  for (int64_t first = 0; first < call->width; first += TILE) {
    const int64_t width = call->width - first < TILE ? call->width - first : TILE;
    for (int64_t begin = 0, end; begin < call->height; begin = end) {
      for (end = begin + 1; end < call->height && call->top[end] == call->top[begin] &&
                            call->bottom[end] == call->bottom[begin];)
        end++;
      label_strip(call, &room, first, width, begin, end);
    }
    if (call->labels)
      copy_rows(call, &room, first, width);
    else
      count = add_runs(call, &room, first, width, count);
  }
  free_room(&room);
  return count;
}
