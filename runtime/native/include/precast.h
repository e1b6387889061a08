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
 * CALLBACKS. A function pointer that the caller gives is called from the engine's own thread unless its description says
 * otherwise, and never while the library holds a lock: it may call any function that takes a `const precast_engine_t *`.
 * It must not throw or jump out. What it is slow at, every request waits for.
 *
 * AUDITS. With the environment variable PRECAST_AUDIT=1, read when an engine is loaded, the engine checks after every step that
 * its requests and KV blocks add up. Should they not, it stops: every unfinished request ends with PRECAST_ERROR_INTERNAL and
 * what was found, which the log callback hears too. That costs time for every block of the pool in every step, and is meant for
 * tests. Only rank 0 of an engine of several ranks schedules, so only it audits. Unset, empty or 0: no audits.
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
  PRECAST_ERROR_FORKED = 10,            /* the engine was created by the parent of this process                     */
  PRECAST_ERROR_RANK_FAILED = 11        /* a rank of the engine ended or hangs; the message names it. Load it again  */
};

typedef struct precast_error precast_error_t;

/* One of PRECAST_ERROR_*. `error` must not be NULL. */
PRECAST_API precast_error_code_t precast_error_code(const precast_error_t *error);

/* One sentence that names the culprit, the values and the next step. Owned by `error`, valid until it is deleted. */
PRECAST_API const char *precast_error_message(const precast_error_t *error);

PRECAST_API void precast_error_delete(precast_error_t *error);

/* For callbacks that report an error: the library takes it. `message` is copied; NULL stands for "". A code that is not one
 * of PRECAST_ERROR_* becomes PRECAST_ERROR_INTERNAL. */
PRECAST_API precast_error_t *precast_error_new(precast_error_code_t code, const char *message);

/* ------------------------------------------------------------------ strings */

/* Takes back a string that a function of this library returned through a `char **`. */
PRECAST_API void precast_string_delete(char *string);

/* ------------------------------------------------------------------- engine */

typedef struct precast_engine precast_engine_t;

/* Who gets KV blocks when there are not enough for everybody. */
typedef uint32_t precast_capacity_policy_t;
enum {
  /* A request starts when the blocks that it may need until its end can be promised to it; it never waits again. */
  PRECAST_CAPACITY_GUARANTEED_NO_EVICT = 0,
  /* A request starts when its prompt has room. Where blocks run out, the least important request (lowest priority, then
   * youngest) gives its blocks back and is computed again later, from the first token that is no longer cached: more
   * requests run at once, some work is done twice. Its output is the same, bit for bit. */
  PRECAST_CAPACITY_MAX_UTILIZATION = 1,
  /* As many requests as fit start together, and the next ones when all of those have ended. */
  PRECAST_CAPACITY_STATIC_BATCH = 2
};

typedef uint32_t precast_log_level_t;
enum { PRECAST_LOG_INFO = 1, PRECAST_LOG_WARNING = 2, PRECAST_LOG_ERROR = 3 };

/* `message` is one line without a newline, valid during the call. */
typedef void (*precast_log_callback_t)(void *user_data, precast_log_level_t level, const char *message);

struct precast_logits_processor;
struct precast_session_table;

/* How to load an engine. Every limit is a matter of loading, never of building. 0 and NULL mean the default. What pointers
 * point to is only read during the call that takes the options, unless the field says otherwise. */
typedef struct precast_engine_options {
  size_t struct_size;
  /* ONNX Runtime's shared library (libonnxruntime.so, 1.23 or newer). NULL: the environment variable
   * PRECAST_ONNXRUNTIME, else beside libprecast, else the loader's search path. */
  const char *onnxruntime_path;
  /* Threads that compute, the engine's own among them. 0: the processors this process may run on. The ranks of an engine
   * share them out, and have at least one each. */
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
  /* Default PRECAST_CAPACITY_GUARANTEED_NO_EVICT. */
  precast_capacity_policy_t capacity_policy;
  /* Not 0: no request uses KV blocks that another one has computed, and none are kept for later ones. Default 0. */
  uint32_t disable_block_reuse;
  /* Requests that may wait for their first step, over all calls of precast_engine_submit. 0: no limit. */
  uint64_t max_queue_size;
  /* Iterations whose statistics are kept for precast_engine_iteration_stats; older ones are dropped. Default 0: none. */
  uint32_t iteration_stats_size;
  /* Events about cached KV blocks that are kept for precast_engine_kv_events; older ones are dropped. Default 0: none. */
  uint32_t kv_events_size;
  /* Called with what an operator should know, also of what the processes of other ranks say ("rank 1 (process 7): ..."), from
   * threads of the engine. NULL: nobody is told. Must stay valid until precast_engine_delete returns. */
  precast_log_callback_t log;
  void *log_user_data;
  /* Changes the logits of requests that ask for it (precast_request_t.use_logits_processor). Copied; what it points to must
   * stay valid until precast_engine_delete returns. */
  const struct precast_logits_processor *logits_processor;
  /* Computes the steps in place of ONNX Runtime. Copied, as logits_processor. onnxruntime_path, num_threads and kernel_level
   * must then be left at their defaults. */
  const struct precast_session_table *session;
  /* The program precast-worker, which runs ranks 1, 2, ... of an engine of several ranks, each in a process of its own. NULL:
   * the environment variable PRECAST_WORKER, else beside libprecast or in ../bin from there. Not used where the environment
   * variable PRECAST_MPI names what `precast build-mpi` has made: then ranks are the processes of this MPI job, which run
   * `precast-worker --mpi` in all ranks but 0, and threads are shared out between those of a host. */
  const char *worker_path;
  /* Seconds without any progress after which a rank that others wait for counts as hung. A long prompt is progress. On a
   * device a step must be computed within it; handing it over, which may compile kernels, may take ten times as long. 0: 60. */
  uint32_t rank_timeout_s;
  /* The Python that runs the ranks of an engine for GPUs, each in a process of its own; precast[tensorrt-runtime] or
   * precast[cuda-runtime] is installed there, whichever the engine's backend needs. NULL: the environment variable
   * PRECAST_PYTHON, else python3 on the PATH. */
  const char *python_path;
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
 * eos_token_ids, backend, device ("cpu", or what a session says of itself), dtype, kv_cache_dtype, tokens_per_block,
 * tensor_parallel_size, pipeline_parallel_size, num_blocks, kv_cache_bytes (of all ranks), max_batch_size, max_num_tokens,
 * and with ONNX Runtime, of rank 0: num_threads, kernel_level, onnxruntime_version, weights_bytes, and
 * weights_huge_page_bytes: how much of the weights is mapped by huge pages at this moment, which grows with the first steps.
 * The caller owns `*json` (precast_string_delete). */
PRECAST_API precast_error_t *precast_engine_info(const precast_engine_t *engine, char **json);

/* Counters of this moment, as JSON: steps, num_active_requests, num_queued_requests, num_completed_requests,
 * num_preemptions, num_blocks, num_free_blocks (cached ones that nobody uses among them), num_cached_blocks (those alone),
 * tokens_per_block, prompt_tokens_computed, prompt_tokens_reused, output_tokens, allocated_blocks, reused_blocks,
 * missed_blocks (full blocks that were computed, not found), last_step_ns, last_step_num_tokens,
 * last_step_num_sequences. Requests are counted by their sequences (precast_request_t.n). The caller owns `*json`. */
PRECAST_API precast_error_t *precast_engine_stats(const precast_engine_t *engine, char **json);

/* Takes the statistics of the iterations since the last call, oldest first, as a JSON array of objects: iter, timestamp_ns
 * (CLOCK_MONOTONIC at its end), latency_ns, num_new_active_requests, new_active_requests_queue_latency_ns (their time in the
 * queue, summed), num_active_requests, num_queued_requests, num_completed_requests, num_paused_requests (preempted and
 * waiting), num_scheduled_requests, num_context_requests, num_generation_requests, num_context_tokens, used_blocks,
 * free_blocks, max_blocks, tokens_per_block, allocated_blocks, reused_blocks, missed_blocks. The last three and
 * num_completed_requests count from the start. See precast_engine_options_t.iteration_stats_size. The caller owns `*json`. */
PRECAST_API precast_error_t *precast_engine_iteration_stats(const precast_engine_t *engine, char **json);

/* Takes the events about cached KV blocks since the last call, oldest first, as a JSON array of objects, each with event_id
 * (ascending by 1; a gap means that events were dropped), type, and what belongs to the type:
 *     "created"  num_blocks                                                      the first event
 *     "stored"   parent_hash (or null), blocks: [{block_hash, tokens, priority}]  can be reused from now on
 *     "removed"  block_hashes                                                    no longer
 *     "updated"  block_hash, priority
 * Hashes are strings of 32 hexadecimal digits, equal for equal tokens, parents and salts within one engine. See
 * precast_engine_options_t.kv_events_size. The caller owns `*json`. */
PRECAST_API precast_error_t *precast_engine_kv_events(const precast_engine_t *engine, char **json);

/* Forgets every cached KV block that no request is using. Blocks in use are forgotten when their requests end. */
PRECAST_API precast_error_t *precast_engine_reset_prefix_cache(const precast_engine_t *engine);

/* ----------------------------------------------------------------- requests */

typedef struct precast_logit_bias {
  int32_t token_id;
  float bias; /* added to the logit; finite */
} precast_logit_bias_t;

typedef struct precast_token_sequence {
  const int32_t *token_ids; /* only read during the call */
  size_t num_token_ids;     /* at least 1 */
} precast_token_sequence_t;

/* How tokens are chosen, in this order: log probabilities are taken from the raw logits; allowed_token_ids, bad_words,
 * min_tokens and logit_bias change logits; then a logits processor; then the repetition, frequency and presence penalties;
 * then greedy, or temperature, min_p, top_k, top_p and a draw. The draw is the largest of log-probability plus Gumbel noise
 * over the kept tokens; the noise is a pure function of (seed, sequence, position, token id), so a request's tokens depend on
 * nothing that runs beside it. Every pointer is only read during the call. */
typedef struct precast_sampling {
  size_t struct_size;
  /* Output tokens, at least 1; 0: as many as fit in max_seq_len. More than fit are cut to that. Default 32. */
  uint32_t max_tokens;
  /* 0 (and anything below 1e-5) is greedy: the largest logit, the smallest id among equals. Finite, not negative. Default 1. */
  float temperature;
  /* Keep the k most likely tokens; 0: all. Default 0. */
  uint32_t top_k;
  /* Keep the smallest set of most likely tokens that holds at least this much probability, after temperature, min_p and
   * top_k. In (0, 1]. Default 1. */
  float top_p;
  /* Default 0. Callers who want variety pass a fresh one each time. */
  uint64_t seed;
  /* Ids that end the request besides the engine's own end-of-sequence ids. */
  const int32_t *stop_token_ids;
  size_t num_stop_token_ids;
  /* Not 0: go on after the engine's own end-of-sequence ids. stop_token_ids still stop. Default 0. */
  uint32_t ignore_eos;
  /* No end-of-sequence id and no stop token id before this many output tokens. At most max_tokens. Default 0. */
  uint32_t min_tokens;
  /* Keep tokens that are at least min_p times as likely as the most likely one, after temperature. In [0, 1]. Default 0. */
  float min_p;
  /* Divides positive logits, multiplies negative ones, of tokens in prompt or output. Above 0, finite. Default 1. */
  float repetition_penalty;
  /* Subtracted from the logits of tokens in the output, once, and once per occurrence. In [-2, 2]. Default 0. */
  float presence_penalty;
  float frequency_penalty;
  /* Log probabilities of the raw logits with each token: -1: none; 0: of the token itself; k: also of the k most likely.
   * Default -1. */
  int32_t num_logprobs;
  /* Sequences of tokens that the output never completes. */
  const precast_token_sequence_t *bad_words;
  size_t num_bad_words;
  /* The only tokens that may be chosen; none given: all. */
  const int32_t *allowed_token_ids;
  size_t num_allowed_token_ids;
  const precast_logit_bias_t *logit_bias;
  size_t num_logit_bias;
} precast_sampling_t;

PRECAST_API void precast_sampling_init(precast_sampling_t *sampling, size_t struct_size);

/* How long the KV blocks of a part of a request are worth keeping for other requests: lower priorities are given up first,
 * among equals the ones that were not used for longest. A block has the priority of its first token, at least that of every
 * block that continues it, and the highest that any request gave it. Without any, that is 35. */
typedef struct precast_retention {
  uint32_t start_token; /* positions start_token .. end_token - 1; end_token 0: without end, so output too      */
  uint32_t end_token;
  uint32_t priority;    /* 0 to 100                                                                             */
  uint64_t duration_ns; /* the priority holds for so long after the last use, then it is 35 again; 0: for ever  */
} precast_retention_t;

/* A prompt to continue, and how. Its pointers are only read during the call. */
typedef struct precast_request {
  size_t struct_size;
  /* The caller's name for the request in events. Unique among unfinished requests. */
  uint64_t id;
  /* At least 1 and at most max_seq_len - 1 token ids in [0, vocab_size). Only read during the call. */
  const int32_t *prompt_token_ids;
  size_t num_prompt_tokens;
  /* NULL: the defaults of precast_sampling_init. Only read during the call. */
  const precast_sampling_t *sampling;
  /* Sequences to generate from the prompt, 1 to 1024; sequence i draws with its own noise. Default 1. */
  uint32_t n;
  /* Higher ones start first, and are preempted last. Finite. Default 0.5. */
  float priority;
  /* CLOCK_MONOTONIC; an unfinished request ends then with PRECAST_FINISH_TIMEOUT. 0: never. Default 0. */
  int64_t deadline_ns;
  /* Requests share KV blocks only with requests of the same salt. Bytes, only read during the call. Default none. */
  const void *cache_salt;
  size_t cache_salt_size;
  /* Not 0: compute the whole prompt, whatever is cached. Default 0. */
  uint32_t skip_block_reuse;
  /* Not 0: the engine's logits processor sees this request. Default 0. */
  uint32_t use_logits_processor;
  /* Where ranges overlap, the later one counts. Only read during the call. */
  const precast_retention_t *retention;
  size_t num_retention;
} precast_request_t;

PRECAST_API void precast_request_init(precast_request_t *request, size_t struct_size);

/* Queues `count` requests: all of them, or none. When one is invalid, the message of the error says which and why. When they
 * would exceed max_queue_size, `*queued` is 0, else 1; with `queued` NULL that is PRECAST_ERROR_RESOURCE_EXHAUSTED.
 * `requests` is an array of pointers so that the structs may grow. Requests of equal priority are served first come, first
 * served. */
PRECAST_API precast_error_t *precast_engine_submit(const precast_engine_t *engine,
                                                   const precast_request_t *const *requests, size_t count,
                                                   uint32_t *queued);

/* Ends a request early, all its sequences. It answers with PRECAST_EVENT_FINISHED and PRECAST_FINISH_CANCELLED like every
 * other end; tokens already produced come before it. An id that is unknown, or already finished, is not an error: `*found` is then 0.
 * `found` may be NULL. */
PRECAST_API precast_error_t *precast_engine_cancel(const precast_engine_t *engine, uint64_t id, uint32_t *found);

/* ------------------------------------------------------------------- events */

typedef uint32_t precast_event_kind_t;
enum {
  PRECAST_EVENT_TOKEN = 1,   /* token_id is the sequence's next output token                                  */
  PRECAST_EVENT_FINISHED = 2 /* the last event of a sequence; every sequence of a request gets exactly one    */
};

typedef uint32_t precast_finish_reason_t;
enum {
  PRECAST_FINISH_NONE = 0,      /* not finished                                                            */
  PRECAST_FINISH_STOP = 1,      /* an end-of-sequence id or stop token id; it is the last token reported   */
  PRECAST_FINISH_LENGTH = 2,    /* max_tokens or max_seq_len reached                                       */
  PRECAST_FINISH_CANCELLED = 3, /* precast_engine_cancel, or the engine was shut down                      */
  PRECAST_FINISH_ERROR = 4,     /* see error                                                               */
  PRECAST_FINISH_TIMEOUT = 5    /* the request's deadline                                                  */
};

/* A token, and how likely the model found it. */
typedef struct precast_logprob {
  int32_t token_id;
  float logprob; /* natural logarithm of the token's probability                    */
  uint32_t rank; /* 1: the most likely token; the smaller id among equals comes first */
} precast_logprob_t;

/* An event. The order of one sequence's events is the order of its tokens; events of different sequences interleave. The
 * caller owns what an event points to and gives it back with precast_event_clear. */
typedef struct precast_event {
  uint64_t request_id;
  uint32_t sequence;                     /* 0 to n - 1                                                            */
  precast_event_kind_t kind;
  precast_finish_reason_t finish_reason; /* of PRECAST_EVENT_FINISHED, else PRECAST_FINISH_NONE                   */
  int32_t token_id;                      /* of PRECAST_EVENT_TOKEN, else -1                                       */
  int32_t stop_token_id;                 /* with PRECAST_FINISH_STOP the id that stopped the sequence, else -1    */
  uint32_t is_last;                      /* 1: no event of this request follows                                   */
  uint32_t num_prompt_tokens;            /* of PRECAST_EVENT_FINISHED: tokens in                                  */
  uint32_t num_output_tokens;            /* of PRECAST_EVENT_FINISHED: tokens out                                 */
  uint32_t num_cached_tokens;            /* of PRECAST_EVENT_FINISHED: prompt tokens that were not computed for it */
  uint32_t num_preemptions;              /* of PRECAST_EVENT_FINISHED                                             */
  int64_t time_ns;                       /* CLOCK_MONOTONIC when it happened                                      */
  int64_t first_scheduled_ns;            /* of PRECAST_EVENT_FINISHED: when it left the queue; 0: never           */
  precast_error_t *error;                /* with PRECAST_FINISH_ERROR, else NULL                                  */
  precast_logprob_t *logprobs;           /* of PRECAST_EVENT_TOKEN with num_logprobs >= 0: first the token, then
                                          * the most likely ones in the order of rank; else NULL                  */
  size_t num_logprobs;
} precast_event_t;

/* Releases what `event` points to and sets those pointers to NULL. `event_size` is sizeof(precast_event_t) of the caller. */
PRECAST_API void precast_event_clear(precast_event_t *event, size_t event_size);

/* Moves up to `capacity` events into the caller's array and writes their number to `*count`. Waits up to `timeout_ns` for
 * the first one: 0 polls, a negative value waits without limit. `*count` is 0 when the time is over. `event_size` is
 * sizeof(precast_event_t) of the caller. Several threads may wait; each event is given once.
 * After shutdown the remaining events are given first, then PRECAST_ERROR_SHUT_DOWN. */
PRECAST_API precast_error_t *precast_engine_wait(const precast_engine_t *engine, precast_event_t *events,
                                                 size_t event_size, size_t capacity, int64_t timeout_ns, size_t *count);

/* A descriptor for poll, select and epoll, readable exactly while precast_engine_wait would not block. Owned by the engine:
 * do not read, write or close it. */
PRECAST_API precast_error_t *precast_engine_event_fd(const precast_engine_t *engine, int *fd);

/* --------------------------------------------------------- logits processor */

/* One row that is about to be sampled. All pointers are valid during the call only. */
typedef struct precast_logits_row {
  uint64_t request_id;
  uint32_t sequence;
  uint32_t num_prompt_tokens;
  const int32_t *token_ids; /* prompt and output so far */
  size_t num_token_ids;
  float *logits;            /* [vocab_size], to be changed in place; minus infinity forbids a token. NaN is an error of
                             * this request                                                                             */
  uint32_t *allowed;        /* [(vocab_size + 31) / 32] bits, all ones at first: token t is bit t % 32 of word t / 32; a
                             * token whose bit is cleared is forbidden, its logit need not be changed                    */
  precast_error_t *error;   /* NULL at first; set it, by precast_error_new, to end this sequence with an error           */
} precast_logits_row_t;

/* Changes logits before penalties, temperature and the draw. Grammars need only clear bits. user_data stays the caller's own
 * and is passed back to the functions; rows are the library's and valid during the call. */
typedef struct precast_logits_processor {
  size_t struct_size;
  void *user_data;
  /* The step that gives these rows has just been enqueued, and process will be called with the same rows, in the same order,
   * when it is done: work that needs no logits can begin on another thread. Of each row logits and allowed are NULL.
   * Sequences that end in the meantime are missing from process. May be NULL. */
  void (*start)(void *user_data, const precast_logits_row_t *rows, size_t row_size, size_t num_rows);
  /* All rows of a step that ask for it at once. `row_size` is sizeof(precast_logits_row_t) of the library. */
  void (*process)(void *user_data, precast_logits_row_t *rows, size_t row_size, size_t num_rows, size_t vocab_size);
} precast_logits_processor_t;

/* --------------------------------------------------------- external session */

/* A token of a step that is not known yet: row `row` of this step is the token that row `source_row` of the logit_rows of
 * step `source_step`, which is in flight, will choose by itself (the largest logit). */
typedef struct precast_token_source {
  int32_t row;
  int32_t source_row;
  uint64_t source_step;
} precast_token_source_t;

/* One forward pass, described completely. T tokens of S sequences lie behind one another. Its arrays are owned by the library
 * and valid, unchanged, until the step has been collected. */
typedef struct precast_step {
  size_t struct_size;
  uint64_t id;                     /* 1, 2, 3, ... */
  const int32_t *token_ids;        /* [T]; -1 where token_sources has the row */
  size_t num_tokens;               /* T, at least 1 */
  const int32_t *query_starts;     /* [S + 1]; sequence s owns rows query_starts[s] .. query_starts[s + 1] - 1 */
  const int32_t *context_lengths;  /* [S], tokens in the KV cache after this step */
  size_t num_sequences;            /* S */
  const int32_t *const *block_tables; /* for each KV group [S, its width], row-major; -1 where there is no block */
  const int32_t *block_table_widths;
  size_t num_kv_groups;
  const int32_t *logit_rows;       /* [R], ascending rows of [0, T) */
  const uint8_t *needs_logits;     /* [R]; 1: the whole row; 0: what num_candidates says */
  size_t num_logit_rows;           /* R, may be 0 */
  const precast_token_source_t *token_sources;
  size_t num_token_sources;
  /* [R]; so many of the most likely tokens of the row, at most the session's max_candidates. 0: none; then, without
   * needs_logits, the session's own choice of a token will do. Never both. */
  const int32_t *num_candidates;
} precast_step_t;

/* What a step gave. The arrays are owned by the session and valid until its next call. Of several ranks only tensor rank 0 of
 * the last stage has a result that anybody reads. C are the rows with num_candidates
 * above 0, K is the session's max_candidates; of a row's K places only the first num_candidates are looked at. */
typedef struct precast_step_result {
  size_t struct_size;
  /* [rows with needs_logits, vocab_size], in the order of logit_rows. */
  const float *logits;
  /* [R], the largest logit of each row, the smallest id among equals; -1 where there is none, for NaN: it ends its own request
   * with an error. Required where chooses_tokens is set. */
  const int32_t *token_ids;
  /* [C, K], in the order of logit_rows: the most likely tokens of each row, in descending order of their logits. Equals may
   * come in any order, and where some of them are beyond the last place, it is the session's to say which. One that takes the
   * smaller id first gives requests exactly the tokens of whole rows. */
  const int32_t *candidate_ids;
  /* [C, K], the logits of these tokens, the very numbers that whole rows hold. */
  const float *candidate_logits;
  /* [C], the natural logarithm of the sum of exp(logit) over the whole row. Where a row holds NaN, plus infinity or nothing
   * but minus infinity, this or its first logit must not be finite: its request then ends with an error, and no other. */
  const float *log_sums;
} precast_step_result_t;

/* What the engine tells a session at the start. Valid during the call. */
typedef struct precast_session_config {
  size_t struct_size;
  const char *engine_path;
  uint64_t kv_cache_bytes; /* 0: decide by what memory there is */
  uint32_t max_batch_size;
  uint32_t max_num_tokens;
  uint32_t max_seq_len;    /* 0: the engine's own */
  uint32_t tokens_per_block;
  uint32_t num_kv_groups;
  uint32_t vocab_size;
  uint32_t rank;           /* which part of the engine this session computes; more than one: precast_worker_run */
  uint32_t world_size;
  /* Shows the sessions of all ranks `size` bytes, at most 4096, and gives what they show, rank after rank, in `all`
   * [world_size * size]. All ranks call it equally often, with the same size. It waits for them. NULL where there is one. */
  precast_error_t *(*exchange)(void *exchange_data, const void *mine, size_t size, void *all);
  void *exchange_data;
} precast_session_config_t;

/* What a session answers. */
typedef struct precast_session_properties {
  size_t struct_size;
  uint32_t num_blocks;     /* KV blocks, over all KV groups together; at least 1 */
  uint32_t max_in_flight;  /* steps that may be enqueued and not yet collected; 1 to 64 */
  uint32_t chooses_tokens; /* not 0: it computes precast_step_result_t.token_ids, and understands token_sources */
  uint32_t max_candidates; /* most likely tokens that it can give of a row, 0 to 1024, at most vocab_size; 0: none */
  const char *device;      /* what computes, for people; the session's own until destroy. NULL: not told */
} precast_session_properties_t;

/* A session that is not built in, such as one on a GPU. All functions are called from one thread at a time (create from the
 * thread in precast_engine_new, the others from the engine's), with what create has written to `*session`. Each returns NULL
 * or an error, which the library takes. An error of enqueue or collect fails the requests of that step and no others, in a
 * process of precast_worker_run all of its engine's. Steps are collected in the order in which they were enqueued, at most max_in_flight at a time. user_data stays the caller's own
 * and is passed back to create; what create writes to `*session` is the session's own until destroy. */
typedef struct precast_session_table {
  size_t struct_size;
  uint32_t version; /* 1 */
  void *user_data;
  precast_error_t *(*create)(void *user_data, const precast_session_config_t *config,
                             precast_session_properties_t *properties, void **session);
  precast_error_t *(*enqueue)(void *session, const precast_step_t *step);
  precast_error_t *(*collect)(void *session, uint64_t step_id, precast_step_result_t *result);
  /* A hint that nobody waits for the result of this step any more; it is collected all the same. May be NULL. */
  void (*cancel)(void *session, uint64_t step_id);
  void (*destroy)(void *session);
  /* Whether collect of this step, the oldest in flight, would not wait; writes 0 or 1 to `*done`. Called often. NULL: nobody
   * can tell, and a next step may come to the session later than it could. */
  precast_error_t *(*is_done)(void *session, uint64_t step_id, uint32_t *done);
} precast_session_table_t;

/* Runs a rank of an engine for devices in this process: the main function of what precast starts for each rank. `arguments`
 * are those behind the program's own on its command line. Returns when the engine ends, with the status to exit with; ends
 * the process when the one that has started it ends. */
PRECAST_API precast_error_t *precast_worker_run(const char *const *arguments, size_t num_arguments,
                                                const precast_session_table_t *session, int32_t *exit_status);

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
