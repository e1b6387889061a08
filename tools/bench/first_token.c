/* Loads an engine, continues a prompt of 8 tokens by one, prints it and ends: what W5 times from outside. */
#include <inttypes.h>
#include <precast.h>
#include <stdio.h>
#include <stdlib.h>

static void check(precast_error_t *error) {
  if (error == NULL) return;
  fprintf(stderr, "%s\n", precast_error_message(error));
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s ENGINE\n", argv[0]);
    return 2;
  }
  precast_engine_t *engine = NULL;
  check(precast_engine_new(argv[1], NULL, &engine));

  const int32_t prompt[8] = {1, 300, 301, 302, 303, 304, 305, 306};
  precast_sampling_t sampling;
  precast_sampling_init(&sampling, sizeof sampling);
  sampling.max_tokens = 1;
  sampling.temperature = 0;
  precast_request_t request;
  precast_request_init(&request, sizeof request);
  request.id = 1;
  request.prompt_token_ids = prompt;
  request.num_prompt_tokens = 8;
  request.sampling = &sampling;
  const precast_request_t *requests[] = {&request};
  check(precast_engine_submit(engine, requests, 1, NULL));

  precast_event_t event;
  size_t count = 0;
  check(precast_engine_wait(engine, &event, sizeof event, 1, -1, &count));
  check(event.error);
  printf("%" PRId32 "\n", event.token_id);
  fflush(stdout);
  precast_engine_delete(engine);
  return 0;
}
