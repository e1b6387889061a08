/* Runs prompts of token ids through an engine, four at a time, and prints every token as it comes.
 *
 *     c_api ENGINE [PROMPT ...]        a prompt is a list of token ids, such as 1,15,7
 */
#include <errno.h>
#include <inttypes.h>
#include <precast.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_IN_FLIGHT = 4, MAX_EVENTS = 64, MAX_TOKENS = 16 };

typedef struct {
  int32_t *token_ids;
  size_t num_tokens;
} prompt_t;

typedef struct {
  uint64_t num_prompt_tokens;
  uint64_t num_output_tokens;
  int64_t first_ns; /* 0: no token yet */
  int64_t last_ns;
} totals_t;

static char *DEFAULT_PROMPTS[] = {"1,2,3,4", "10,20,30", "7,7,7,7,7,7,7,7", "42", "100,90,80,70,60", "5,6"};

/* Prints and releases an error. Returns whether there was one. */
static bool failed(precast_error_t *error, const char *doing) {
  if (error == NULL) return false;
  fprintf(stderr, "%s: %s (error %" PRId32 ")\n", doing, precast_error_message(error), precast_error_code(error));
  precast_error_delete(error);
  return true;
}

/* Reads "1,15,7". On success the caller frees prompt->token_ids. */
static bool parse_prompt(const char *text, prompt_t *prompt) {
  size_t capacity = 1;
  for (const char *c = text; *c != '\0'; ++c) capacity += *c == ',';
  int32_t *token_ids = malloc(capacity * sizeof *token_ids);
  if (token_ids == NULL) return false;
  size_t count = 0;
  for (const char *at = text; count < capacity; ++at) {
    char *end = NULL;
    errno = 0;
    const long value = strtol(at, &end, 10);
    if (end == at || errno != 0 || value < 0 || value > INT32_MAX || (*end != ',' && *end != '\0')) {
      fprintf(stderr, "\"%s\" is no list of token ids such as 1,15,7\n", text);
      free(token_ids);
      return false;
    }
    token_ids[count++] = (int32_t)value;
    at = end;
    if (*end == '\0') break;
  }
  prompt->token_ids = token_ids;
  prompt->num_tokens = count;
  return true;
}

/* Queues `count` prompts, at most MAX_IN_FLIGHT, in one call; the ids of the requests are the prompts' positions. */
static bool submit(const precast_engine_t *engine, const prompt_t *prompts, size_t first, size_t count) {
  precast_sampling_t sampling;
  precast_sampling_init(&sampling, sizeof sampling);
  sampling.max_tokens = MAX_TOKENS;
  sampling.temperature = 0.0F; /* greedy */

  precast_request_t requests[MAX_IN_FLIGHT];
  const precast_request_t *pointers[MAX_IN_FLIGHT];
  for (size_t i = 0; i < count; ++i) {
    precast_request_init(&requests[i], sizeof requests[i]);
    requests[i].id = first + i;
    requests[i].prompt_token_ids = prompts[first + i].token_ids;
    requests[i].num_prompt_tokens = prompts[first + i].num_tokens;
    requests[i].sampling = &sampling;
    pointers[i] = &requests[i];
  }
  return !failed(precast_engine_submit(engine, pointers, count, NULL), "submitting");
}

/* Returns whether the event is a request's last; `*ok` becomes false when the request ended with an error. */
static bool handle(const precast_event_t *event, totals_t *totals, bool *ok) {
  if (event->kind == PRECAST_EVENT_TOKEN) {
    printf("request %" PRIu64 ": token %" PRId32 "\n", event->request_id, event->token_id);
    if (totals->first_ns == 0) totals->first_ns = event->time_ns;
    totals->last_ns = event->time_ns;
    return false;
  }
  if (event->kind != PRECAST_EVENT_FINISHED) return false; /* of a newer library */
  if (event->error != NULL) {
    fprintf(stderr, "request %" PRIu64 ": %s\n", event->request_id, precast_error_message(event->error));
    *ok = false;
  }
  printf("request %" PRIu64 ": finished after %" PRIu32 " tokens%s\n", event->request_id, event->num_output_tokens,
         event->finish_reason == PRECAST_FINISH_STOP ? ", at the end of the text" : "");
  totals->num_prompt_tokens += event->num_prompt_tokens;
  totals->num_output_tokens += event->num_output_tokens;
  return true;
}

static bool run(const precast_engine_t *engine, const prompt_t *prompts, size_t num_prompts) {
  totals_t totals = {0, 0, 0, 0};
  size_t num_submitted = 0, num_in_flight = 0;
  bool ok = true;
  while (num_submitted < num_prompts || num_in_flight > 0) {
    const size_t num_left = num_prompts - num_submitted, room = MAX_IN_FLIGHT - num_in_flight;
    const size_t num_new = num_left < room ? num_left : room;
    if (num_new > 0 && !submit(engine, prompts, num_submitted, num_new)) return false;
    num_submitted += num_new;
    num_in_flight += num_new;

    precast_event_t events[MAX_EVENTS];
    size_t num_events = 0;
    const int64_t no_limit = -1;
    if (failed(precast_engine_wait(engine, events, sizeof events[0], MAX_EVENTS, no_limit, &num_events), "waiting")) {
      return false;
    }
    for (size_t i = 0; i < num_events; ++i) {
      if (handle(&events[i], &totals, &ok)) --num_in_flight;
      precast_event_clear(&events[i], sizeof events[i]);
    }
  }
  printf("%zu requests, %" PRIu64 " tokens in, %" PRIu64 " tokens out, %.3f s from the first token to the last\n",
         num_prompts, totals.num_prompt_tokens, totals.num_output_tokens,
         (double)(totals.last_ns - totals.first_ns) / 1e9);
  return ok;
}

static bool load_and_run(const char *path, const prompt_t *prompts, size_t num_prompts) {
  precast_engine_t *engine = NULL;
  if (failed(precast_engine_new(path, NULL, &engine), "loading")) return false;
  char *info = NULL;
  bool ok = !failed(precast_engine_info(engine, &info), "asking what was loaded");
  if (ok) {
    printf("precast %s: %s\n", precast_version_string(), info);
    precast_string_delete(info);
    ok = run(engine, prompts, num_prompts);
  }
  precast_engine_delete(engine);
  return ok;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s ENGINE [PROMPT ...]\n", argc > 0 ? argv[0] : "c_api");
    return 2;
  }
  char **texts = argc > 2 ? argv + 2 : DEFAULT_PROMPTS;
  const size_t num_prompts = argc > 2 ? (size_t)argc - 2 : sizeof DEFAULT_PROMPTS / sizeof DEFAULT_PROMPTS[0];

  prompt_t *prompts = calloc(num_prompts, sizeof *prompts);
  bool ok = prompts != NULL;
  for (size_t i = 0; ok && i < num_prompts; ++i) ok = parse_prompt(texts[i], &prompts[i]);
  if (ok) ok = load_and_run(argv[1], prompts, num_prompts);

  for (size_t i = 0; prompts != NULL && i < num_prompts; ++i) free(prompts[i].token_ids);
  free(prompts);
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
