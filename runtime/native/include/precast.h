/* SPDX-License-Identifier: Apache-2.0
 *
 * precast.h - run engines that Precast has built ahead of time.
 *
 * An engine directory goes in, token ids come out. The library maps the weights, opens ONNX Runtime's shared library,
 * and runs in-flight batching on a thread of its own: requests join and leave the running batch at every step.
 * Text is not its business: tokenizing, chat templates and stop strings belong to the caller.
 *
 * A program in five lines (examples/c_api has a whole one):
 *
 *     precast_engine_t *engine = NULL;
 *     precast_error_t *error = precast_engine_new("./engine", NULL, &engine);
 *     ... precast_engine_submit(engine, requests, num_requests);
 *     ... precast_engine_wait(engine, events, sizeof events[0], 64, timeout_ns, &num_events);
 *     precast_engine_delete(engine);
 *
 * OWNERSHIP. A function named _new gives the caller an object, which the matching _delete takes back; _delete(NULL) does
 * nothing. Every pointer's owner is said where it is declared; what is not said to be kept is only read during the call.
 *
 * ERRORS. A function that can fail returns NULL for success, or a precast_error_t that the caller owns. Out-parameters are
 * written only on success. A time-out, and nothing to report, are values and not errors. Bad input to one request never
 * disturbs another request or the engine.
 *
 * THREADS. A function that takes `const precast_engine_t *` may be called from any thread at any time, also while others are
 * inside the library on the same engine. One that takes `precast_engine_t *` must be the only call on that engine.
 * Several engines in one process are independent. After fork() the child may not use engines of its parent: every call but
 * _delete answers PRECAST_ERROR_FORKED, and _delete releases nothing but the handle's own memory.
 *
 * GROWTH. Structs that the caller fills start with struct_size, the sizeof that the caller was compiled with; their _init
 * functions set it and every default. Fields are only ever added at the end. Enumerations only ever gain values: treat an
 * unknown event kind or finish reason as something to skip or to log. Strings are UTF-8 and end with a NUL.
 *
 * The library installs no signal handlers, changes no locale, and writes nothing to stdout or stderr. It opens no network
 * connection. Of the process's environment it changes one variable: before it opens ONNX Runtime it sets
 * ORT_DISABLE_TELEMETRY=1 unless the variable is there already, because some builds of ONNX Runtime report usage.
 */
#ifndef PRECAST_H
#define PRECAST_H

#include <stddef.h>
#include <stdint.h>

#define PRECAST_VERSION_MAJOR 0
#define PRECAST_VERSION_MINOR 1
#define PRECAST_VERSION_PATCH 0
/* One number to compare: major * 1000000 + minor * 1000 + patch. */
#define PRECAST_VERSION \
  (PRECAST_VERSION_MAJOR * 1000000 + PRECAST_VERSION_MINOR * 1000 + PRECAST_VERSION_PATCH)

#if defined(__GNUC__)
#define PRECAST_API __attribute__((visibility("default")))
#else
#define PRECAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ version */

/* PRECAST_VERSION of the library that is loaded, which may be newer than this header. */
PRECAST_API uint32_t precast_version(void);

/* The same as text, "0.1.0". Static; never freed. */
PRECAST_API const char *precast_version_string(void);

/* ------------------------------------------------------------------- errors */

/* Stable numbers: a code never changes its meaning. */
typedef int32_t precast_error_code_t;
enum {
  PRECAST_ERROR_INVALID_ARGUMENT = 1,   /* the caller passed something that can never work: fix the call            */
  PRECAST_ERROR_NOT_FOUND = 2,          /* a file, or ONNX Runtime's library, is not where it was looked for        */
  PRECAST_ERROR_IO = 3,                 /* the operating system refused to read or map a file                       */
  PRECAST_ERROR_CORRUPT_ENGINE = 4,     /* the engine directory is damaged: wrong size, wrong checksum, bad JSON    */
  PRECAST_ERROR_UNSUPPORTED_ENGINE = 5, /* the directory is sound but needs another runtime, backend or processor   */
  PRECAST_ERROR_ONNXRUNTIME = 6,        /* ONNX Runtime reported an error; its text is in the message               */
  PRECAST_ERROR_RESOURCE_EXHAUSTED = 7, /* not enough memory, or the KV pool can never hold the request             */
  PRECAST_ERROR_SHUT_DOWN = 8,          /* the engine has been shut down                                            */
  PRECAST_ERROR_INTERNAL = 9,           /* a defect of this library; please report the message                      */
  PRECAST_ERROR_FORKED = 10             /* the engine was created by the parent of this process                     */
};

typedef struct precast_error precast_error_t;

/* One of PRECAST_ERROR_*. `error` must not be NULL. */
PRECAST_API precast_error_code_t precast_error_code(const precast_error_t *error);

/* One sentence that names the culprit, the values and the next step. Owned by `error`, valid until it is deleted. */
PRECAST_API const char *precast_error_message(const precast_error_t *error);

PRECAST_API void precast_error_delete(precast_error_t *error);

/* ------------------------------------------------------------------ strings */

/* Takes back a string that a function of this library returned through a `char **`. */
PRECAST_API void precast_string_delete(char *string);

/* ------------------------------------------------------------------- engine */

typedef struct precast_engine precast_engine_t;

/* How to load an engine. Every limit is a matter of loading, never of building. 0 and NULL mean the default. */
typedef struct precast_engine_options {
  size_t struct_size;
  /* ONNX Runtime's shared library (libonnxruntime.so, 1.23 or newer). NULL: the environment variable
   * PRECAST_ONNXRUNTIME, else beside libprecast, else the loader's search path. */
  const char *onnxruntime_path;
  /* Threads that compute, the engine's own among them. 0: the processors this process may run on. */
  uint32_t num_threads;
  /* Sequences that may advance in one step. Default 64. */
  uint32_t max_batch_size;
  /* Tokens computed in one step, over all sequences; longer prompts are computed in chunks. Default 2048. At least
   * max_batch_size, so that no running sequence ever waits for another's prompt. */
  uint32_t max_num_tokens;
  /* Prompt and output of one request together, in tokens. 0, or more than the engine was built for: the engine's own. */
  uint32_t max_seq_len;
  /* Bytes of KV cache over all layers. 0: half of the memory that is available, at most what max_batch_size sequences of
   * max_seq_len tokens can fill. Memory is reserved at once and occupied as it is used. */
  uint64_t kv_cache_bytes;
  /* "portable", "avx2" or "avx512"; NULL: the environment variable PRECAST_KERNEL_LEVEL, else the best of the processor. */
  const char *kernel_level;
} precast_engine_options_t;

/* Writes the defaults. `struct_size` is sizeof(precast_engine_options_t) of the caller. */
PRECAST_API void precast_engine_options_init(precast_engine_options_t *options, size_t struct_size);

/* Loads the engine directory `path` and starts its thread. `options` may be NULL. On success the caller owns `*engine`.
 * The files must not be changed while the engine lives (Precast itself never modifies an engine in place). */
PRECAST_API precast_error_t *precast_engine_new(const char *path, const precast_engine_options_t *options,
                                                precast_engine_t **engine);

/* Ends the engine: every unfinished request is dropped, waiting calls return. Blocks until the step that is being computed,
 * if any, is over. Calls precast_engine_shutdown first when that has not been done. */
PRECAST_API void precast_engine_delete(precast_engine_t *engine);

/* Stops accepting requests and cancels the unfinished ones, whose PRECAST_EVENT_FINISHED can still be collected with
 * precast_engine_wait. Wakes every waiting call. Doing it again changes nothing. */
PRECAST_API precast_error_t *precast_engine_shutdown(const precast_engine_t *engine);

/* What was loaded, as JSON: precast_version, path, architecture, vocab_size, max_seq_len, bos_token_id (or null),
 * eos_token_ids, dtype, kv_cache_dtype, tokens_per_block, num_blocks, kv_cache_bytes, max_batch_size, max_num_tokens,
 * num_threads, kernel_level, onnxruntime_version, weights_bytes, and weights_huge_page_bytes: how much of the weights is
 * mapped by huge pages at this moment, which grows with the first steps. The caller owns `*json` (precast_string_delete). */
PRECAST_API precast_error_t *precast_engine_info(const precast_engine_t *engine, char **json);

/* Counters of this moment, as JSON: steps, num_active_requests, num_queued_requests, num_completed_requests, num_blocks,
 * num_free_blocks, tokens_per_block, prompt_tokens_computed, output_tokens, last_step_ns, last_step_num_tokens,
 * last_step_num_sequences. The caller owns `*json`. */
PRECAST_API precast_error_t *precast_engine_stats(const precast_engine_t *engine, char **json);

/* ----------------------------------------------------------------- requests */

/* How tokens are chosen. The draw is the largest of log-probability plus Gumbel noise over the kept tokens; the noise is a
 * pure function of (seed, position, token id), so a request's tokens depend on nothing that runs beside it. */
typedef struct precast_sampling {
  size_t struct_size;
  /* Output tokens, at least 1; 0: as many as fit in max_seq_len. More than fit are cut to that. Default 32. */
  uint32_t max_tokens;
  /* 0 (and anything below 1e-5) is greedy: the largest logit, the smallest id among equals. Finite, not negative. Default 1. */
  float temperature;
  /* Keep the k most likely tokens; 0: all. Default 0. */
  uint32_t top_k;
  /* Keep the smallest set of most likely tokens that holds at least this much probability, after temperature and top_k.
   * In (0, 1]. Default 1. */
  float top_p;
  /* Default 0. Callers who want variety pass a fresh one each time. */
  uint64_t seed;
  /* Ids that end the request besides the engine's own end-of-sequence ids. Only read during the call. */
  const int32_t *stop_token_ids;
  size_t num_stop_token_ids;
  /* Not 0: go on after the engine's own end-of-sequence ids. stop_token_ids still stop. Default 0. */
  uint32_t ignore_eos;
} precast_sampling_t;

PRECAST_API void precast_sampling_init(precast_sampling_t *sampling, size_t struct_size);

typedef struct precast_request {
  size_t struct_size;
  /* The caller's name for the request in events. Unique among unfinished requests. */
  uint64_t id;
  /* At least 1 and at most max_seq_len - 1 token ids in [0, vocab_size). Only read during the call. */
  const int32_t *prompt_token_ids;
  size_t num_prompt_tokens;
  /* NULL: the defaults of precast_sampling_init. Only read during the call. */
  const precast_sampling_t *sampling;
} precast_request_t;

PRECAST_API void precast_request_init(precast_request_t *request, size_t struct_size);

/* Queues `count` requests: all of them, or, when one is invalid, none. The message of an error says which and why.
 * `requests` is an array of pointers so that the structs may grow. Requests are served first come, first served. */
PRECAST_API precast_error_t *precast_engine_submit(const precast_engine_t *engine,
                                                   const precast_request_t *const *requests, size_t count);

/* Ends a request early. It answers with PRECAST_EVENT_FINISHED and PRECAST_FINISH_CANCELLED like every other end; tokens
 * already produced come before it. An id that is unknown, or already finished, is not an error: `*found` is then 0.
 * `found` may be NULL. */
PRECAST_API precast_error_t *precast_engine_cancel(const precast_engine_t *engine, uint64_t id, uint32_t *found);

/* ------------------------------------------------------------------- events */

typedef uint32_t precast_event_kind_t;
enum {
  PRECAST_EVENT_TOKEN = 1,   /* token_id is the request's next output token                               */
  PRECAST_EVENT_FINISHED = 2 /* the last event of a request; every submitted request gets exactly one     */
};

typedef uint32_t precast_finish_reason_t;
enum {
  PRECAST_FINISH_NONE = 0,      /* not finished                                                            */
  PRECAST_FINISH_STOP = 1,      /* an end-of-sequence id or stop token id; it is the last token reported   */
  PRECAST_FINISH_LENGTH = 2,    /* max_tokens or max_seq_len reached                                       */
  PRECAST_FINISH_CANCELLED = 3, /* precast_engine_cancel, or the engine was shut down                      */
  PRECAST_FINISH_ERROR = 4      /* see error                                                               */
};

/* An event. The order of one request's events is the order of its tokens; events of different requests interleave. */
typedef struct precast_event {
  uint64_t request_id;
  precast_event_kind_t kind;
  precast_finish_reason_t finish_reason; /* of PRECAST_EVENT_FINISHED, else PRECAST_FINISH_NONE                    */
  int32_t token_id;                      /* of PRECAST_EVENT_TOKEN, else -1                                        */
  int32_t stop_token_id;                 /* with PRECAST_FINISH_STOP the id that stopped the request, else -1      */
  uint32_t num_prompt_tokens;            /* of PRECAST_EVENT_FINISHED: tokens in                                   */
  uint32_t num_output_tokens;            /* of PRECAST_EVENT_FINISHED: tokens out                                  */
  int64_t time_ns;                       /* CLOCK_MONOTONIC when it happened                                       */
  precast_error_t *error;                /* with PRECAST_FINISH_ERROR: owned by the caller, else NULL              */
} precast_event_t;

/* Moves up to `capacity` events into the caller's array and writes their number to `*count`. Waits up to `timeout_ns` for
 * the first one: 0 polls, a negative value waits without limit. `*count` is 0 when the time is over. `event_size` is
 * sizeof(precast_event_t) of the caller. Several threads may wait; each event is given once.
 * After shutdown the remaining events are given first, then PRECAST_ERROR_SHUT_DOWN. */
PRECAST_API precast_error_t *precast_engine_wait(const precast_engine_t *engine, precast_event_t *events,
                                                 size_t event_size, size_t capacity, int64_t timeout_ns, size_t *count);

/* -------------------------------------------------------------------- model */

/* The forward pass alone, for checking an engine against a reference: no batching, no sampling, no thread. */
typedef struct precast_model precast_model_t;

/* Loads the engine directory `path`. Of `options`, which may be NULL, max_batch_size counts for nothing. On success the
 * caller owns `*model`. */
PRECAST_API precast_error_t *precast_model_new(const char *path, const precast_engine_options_t *options,
                                               precast_model_t **model);

PRECAST_API void precast_model_delete(precast_model_t *model);

/* What was loaded, as precast_engine_info gives it. The caller owns `*json`. */
PRECAST_API precast_error_t *precast_model_info(const precast_model_t *model, char **json);

/* Computes the logits after each of `num_tokens` token ids, max_num_tokens at a time, and writes them to `logits`, which
 * has room for num_logits = num_tokens * vocab_size floats, row by row. At most max_seq_len tokens. */
PRECAST_API precast_error_t *precast_model_logits(precast_model_t *model, const int32_t *token_ids, size_t num_tokens,
                                                  float *logits, size_t num_logits);

#ifdef __cplusplus
}
#endif

#endif /* PRECAST_H */
