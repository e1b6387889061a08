/* What libprecast needs of MPI: a handful of calls that never wait.
 *
 * Every MPI library has an ABI of its own, so this part is compiled where the MPI is (`precast build-mpi`, which calls mpicc)
 * and opened by path when an engine's ranks are to run under it. */
#ifndef PRECAST_MPI_H
#define PRECAST_MPI_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PRECAST_MPI_ABI 1

/* Functions return NULL, or an error's text, which the next call of one of them invalidates. */
typedef struct precast_mpi {
  int abi; /* PRECAST_MPI_ABI */
  /* Starts MPI, for calls from one thread at a time; an error where the program has done so. Collective. `num_local`: ranks on this host. */
  const char *(*init)(int *rank, int *num_ranks, int *num_local);
  /* What is sent must not change, and what is received is not there, until the request is done. */
  const char *(*start_send)(int to, int tag, const void *bytes, size_t num_bytes, void **request);
  const char *(*start_receive)(int from, int tag, void *bytes, size_t num_bytes, void **request);
  /* `is_done`: the request is NULL now, and of a receive `num_bytes` is known. */
  const char *(*test)(void **request, int *is_done, size_t *num_bytes);
  /* Whether a message has come that no receive was started for; `from` -1: of whichever rank. */
  const char *(*probe)(int from, int tag, int *is_there, int *source, size_t *num_bytes);
  /* Forgets a request. */
  void (*abandon)(void **request);
  /* Ends MPI. Collective. */
  const char *(*finalize)(void);
  /* Ends all ranks at once, this one included. */
  void (*abort)(int status);
} precast_mpi_t;

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const precast_mpi_t *precast_mpi_table(void);

#ifdef __cplusplus
}
#endif

#endif
