/* Deformable attention on the CPU, for any caller that has a function call and for ONNX Runtime as a
   custom operator: which build of sampling.c fits the processor, and the threads. */
#include "deformable.h"

#include "processor.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#define PIECE 64 /* queries that a thread takes at a time */
#define MAX_THREADS 64

static pthread_mutex_t one_call = PTHREAD_MUTEX_INITIALIZER, state = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static int workers, wanted; /* threads that were started; of them, those that the call wants */
static int working;         /* those that have not finished it */
static unsigned calls;
static const Attention *current;
static _Atomic int64_t next;

static Sample *fitting(void) {
#if defined(__x86_64__)
  Sample *const builds[] = {sample_base, sample_v3, sample_v4};
  return builds[processor_level()];
#else
  return sample_base;
#endif
}

static void take_pieces(const Attention *call) {
  const int64_t rows = call->batch * call->queries;
  Sample *sample = fitting();
  for (;;) {
    int64_t begin = atomic_fetch_add(&next, PIECE);
    if (begin >= rows) return;
    sample(call, begin, begin + PIECE < rows ? begin + PIECE : rows);
  }
}

static void *work(void *number) {
  unsigned seen = 0;
  pthread_mutex_lock(&state);
  for (;;) {
    while (seen == calls || (ptrdiff_t)number >= wanted) {
      seen = calls;
      pthread_cond_wait(&begun, &state);
    }
    seen = calls;
    const Attention *call = current;
    pthread_mutex_unlock(&state);
    take_pieces(call);
    pthread_mutex_lock(&state);
    if (--working == 0) pthread_cond_signal(&ended);
  }
  return NULL;
}

int fathom_attend(const Attention *call, int threads) {
  const int64_t points = (int64_t)call->heads * call->levels * call->points;
  if (points < 1 || points > MAX_POINTS || call->width < 1 ||
      call->tokens * call->heads * call->width > INT32_MAX)
    return 0;
  pthread_mutex_lock(&one_call);
  atomic_store(&next, 0);
  pthread_mutex_lock(&state);
  wanted = (threads < MAX_THREADS ? threads : MAX_THREADS) - 1;
  while (workers < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, (void *)(ptrdiff_t)workers) != 0) break;
    pthread_detach(thread);
    workers++;
  }
  if (wanted > workers) wanted = workers;
  current = call;
  working = wanted > 0 ? wanted : 0;
  calls++;
  if (working) pthread_cond_broadcast(&begun);
  pthread_mutex_unlock(&state);
  take_pieces(call);
  pthread_mutex_lock(&state);
  while (working) pthread_cond_wait(&ended, &state);
  pthread_mutex_unlock(&state);
  pthread_mutex_unlock(&one_call);
  return 1;
}
