/* fathom.MsDeformAttn as a custom operator of ONNX Runtime (register_custom_ops_library).

   ONNX Runtime's wheels have no headers. Its C interface is one table of functions, to which
   versions only append, and one struct that an operator fills in. Here stand the members that we
   use, by their places in them, as of version 16: the first whose operators report errors. */
#include "deformable.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define ORT_VERSION 16
enum { /* places in the table */
  CREATE_STATUS = 0,
  CREATE_DOMAIN = 26,
  DOMAIN_ADD = 27,
  ADD_DOMAIN = 28,
  TENSOR_DATA = 51,
  DIMENSIONS_COUNT = 61,
  DIMENSIONS = 62,
  TENSOR_SHAPE = 65,
  ATTRIBUTE = 86,
  INPUT = 90,
  OUTPUT = 91,
  RELEASE_SHAPE = 99,
  ATTRIBUTES = 163,
};
enum { FLOAT = 1, REQUIRED = 0, ON_THE_CPU = 0, FAILED = 1, INVALID_ARGUMENT = 2 };

typedef void *Status; /* NULL: it went well */
typedef void *const *Table;
typedef struct {
  Table (*get)(uint32_t version);
  const char *(*version)(void);
} Base;

#define CALL(table, place, types) ((Status(*) types)(table)[place])
#define TRY(expression)                \
  do {                                 \
    Status status_ = (expression);     \
    if (status_ != NULL) return status_; \
  } while (0)

typedef struct Operator Operator;
struct Operator {
  uint32_t version;
  void *create_without_status;
  const char *(*name)(const Operator *);
  const char *(*provider)(const Operator *);
  int (*input_type)(const Operator *, size_t);
  size_t (*inputs)(const Operator *);
  int (*output_type)(const Operator *, size_t);
  size_t (*outputs)(const Operator *);
  void *compute_without_status;
  void (*destroy)(void *kernel);
  int (*input_is)(const Operator *, size_t);
  int (*output_is)(const Operator *, size_t);
  int (*input_memory)(const Operator *, size_t);
  void *variadic[4];
  Status (*create)(const Operator *, Table, const void *info, void **kernel);
  Status (*compute)(void *kernel, void *context);
};

static int thread_count = 1;
void fathom_threads(int count) { thread_count = count; }

#define MAX_LEVELS 8
typedef struct {
  Table table;
  int64_t points;
  int32_t levels, sizes[2 * MAX_LEVELS];
} Kernel;

static Status failure(Table table, int code, const char *message) {
  return CALL(table, CREATE_STATUS, (int, const char *))(code, message);
}

static Status create(const Operator *self, Table table, const void *info, void **kernel) {
  (void)self;
  Kernel made = {.table = table};
  int64_t sizes[2 * MAX_LEVELS];
  size_t count = 2 * MAX_LEVELS; /* becomes the number of sizes; more are an error */
  TRY(CALL(table, ATTRIBUTES, (const void *, const char *, int64_t *, size_t *))(
      info, "sizes", sizes, &count));
  TRY(CALL(table, ATTRIBUTE, (const void *, const char *, int64_t *))(info, "points",
                                                                       &made.points));
  made.levels = (int32_t)(count / 2);
  for (size_t i = 0; i < count; i++) made.sizes[i] = (int32_t)sizes[i];
  *kernel = malloc(sizeof made);
  if (*kernel == NULL) return failure(table, FAILED, "out of memory");
  memcpy(*kernel, &made, sizeof made);
  return NULL;
}

/* dims: room for `most`. Returns the number of dimensions in *rank. */
static Status shape_of(Table table, const void *tensor, int64_t *dims, size_t most, size_t *rank) {
  void *shape;
  TRY(CALL(table, TENSOR_SHAPE, (const void *, void **))(tensor, &shape));
  Status status = CALL(table, DIMENSIONS_COUNT, (const void *, size_t *))(shape, rank);
  if (status == NULL && *rank <= most)
    status = CALL(table, DIMENSIONS, (const void *, int64_t *, size_t))(shape, dims, *rank);
  ((void (*)(void *))table[RELEASE_SHAPE])(shape);
  return status;
}

static Status compute(void *given, void *context) {
  const Kernel *kernel = given;
  Table table = kernel->table;
  const void *data[4], *tensors[4];
  int64_t dims[4][6];
  size_t rank[4];
  for (size_t i = 0; i < 4; i++) {
    TRY(CALL(table, INPUT, (const void *, size_t, const void **))(context, i, &tensors[i]));
    TRY(CALL(table, TENSOR_DATA, (const void *, const void **))(tensors[i], &data[i]));
    TRY(shape_of(table, tensors[i], dims[i], 6, &rank[i]));
  }
  const int64_t *value = dims[0], *offsets = dims[1], *logits = dims[2];
  int64_t tokens = 0;
  for (int32_t i = 0; i < kernel->levels; i++)
    tokens += (int64_t)kernel->sizes[2 * i] * kernel->sizes[2 * i + 1];
  if (rank[0] != 4 || rank[1] != 6 || rank[2] != 5 || rank[3] < 2 || rank[3] > 3 ||
      value[1] != tokens || logits[0] != value[0] || logits[2] != value[2] ||
      logits[3] != kernel->levels || logits[4] != kernel->points ||
      memcmp(offsets, logits, 5 * sizeof *logits) != 0 || offsets[5] != 2 ||
      dims[3][rank[3] - 2] != logits[1] || (rank[3] == 3 && dims[3][0] != value[0]))
    return failure(table, INVALID_ARGUMENT, "MsDeformAttn: shapes that do not fit");
  const int64_t result[3] = {value[0], logits[1], value[2] * value[3]};
  void *output, *out;
  TRY(CALL(table, OUTPUT, (void *, size_t, const int64_t *, size_t, void **))(context, 0, result, 3,
                                                                              &output));
  TRY(CALL(table, TENSOR_DATA, (void *, void **))(output, &out));
  const Attention call = {
      .value = data[0],
      .offsets = data[1],
      .logits = data[2],
      .reference = data[3],
      .out = out,
      .sizes = kernel->sizes,
      .batch = value[0],
      .tokens = tokens,
      .queries = logits[1],
      .heads = (int32_t)value[2],
      .width = (int32_t)value[3],
      .levels = kernel->levels,
      .points = (int32_t)kernel->points,
      .per_image = rank[3] == 3,
  };
  return fathom_attend(&call, thread_count)
             ? NULL
             : failure(table, INVALID_ARGUMENT, "MsDeformAttn: too large");
}

static const char *name(const Operator *self) { return (void)self, "MsDeformAttn"; }
static const char *provider(const Operator *self) { return (void)self, NULL; } /* the CPU's */
static int type(const Operator *self, size_t i) { return (void)self, (void)i, FLOAT; }
static int required(const Operator *self, size_t i) { return (void)self, (void)i, REQUIRED; }
static int memory(const Operator *self, size_t i) { return (void)self, (void)i, ON_THE_CPU; }
static size_t four(const Operator *self) { return (void)self, 4; }
static size_t one(const Operator *self) { return (void)self, 1; }

static const Operator the_operator = {
    .version = ORT_VERSION,
    .name = name,
    .provider = provider,
    .input_type = type,
    .inputs = four,
    .output_type = type,
    .outputs = one,
    .destroy = free,
    .input_is = required,
    .output_is = required,
    .input_memory = memory,
    .create = create,
    .compute = compute,
};

/* ONNX Runtime calls this. The domain lives as long as the process. */
Status RegisterCustomOps(void *options, const Base *base) {
  Table table = base->get(ORT_VERSION);
  static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER; /* sessions are opened by several threads */
  static void *domain;
  Status failed = NULL;
  pthread_mutex_lock(&once);
  if (domain == NULL) {
    void *made = NULL;
    failed = CALL(table, CREATE_DOMAIN, (const char *, void **))("fathom", &made);
    if (failed == NULL)
      failed = CALL(table, DOMAIN_ADD, (void *, const Operator *))(made, &the_operator);
    if (failed == NULL) domain = made;
  }
  pthread_mutex_unlock(&once);
  if (failed != NULL) return failed;
  return CALL(table, ADD_DOMAIN, (void *, void *))(options, domain);
}
