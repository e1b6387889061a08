/* precast_mpi.h in terms of MPI 3. C99. */
#include "precast_mpi.h"

#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  MPI_Request request;
  int is_receive;
} transfer_t;

static MPI_Comm communicator = MPI_COMM_NULL; /* apart from the program's own messages */
static char error_text[MPI_MAX_ERROR_STRING + 64];

static const char *describe(const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (code == MPI_SUCCESS) return NULL;
  MPI_Error_string(code, text, &length);
  snprintf(error_text, sizeof error_text, "%s: %s", what, text);
  return error_text;
}

static const char *refuse(const char *why) {
  snprintf(error_text, sizeof error_text, "%s", why);
  return error_text;
}

static const char *count_local(int *num_local) {
  MPI_Comm host = MPI_COMM_NULL;
  int code = MPI_Comm_split_type(communicator, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(host, num_local);
  if (code == MPI_SUCCESS) code = MPI_Comm_free(&host);
  return describe("cannot count the ranks of this host", code);
}

static const char *mpi_init(int *rank, int *num_ranks, int *num_local) {
  int is_initialized = 0;
  int level = MPI_THREAD_SINGLE;
  int code = MPI_Initialized(&is_initialized);
  if (code == MPI_SUCCESS && is_initialized) {
    /* Its own MPI_Finalize would wait for ranks that wait for orders. */
    return refuse("the program has started MPI itself, and precast has to start and end it");
  }
  if (code == MPI_SUCCESS) code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level);
  if (code != MPI_SUCCESS) return describe("cannot start MPI", code);
  if (level < MPI_THREAD_SERIALIZED) {
    return refuse("this MPI serves one thread alone, and precast needs MPI_THREAD_SERIALIZED");
  }
  code = MPI_Comm_dup(MPI_COMM_WORLD, &communicator);
  if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN);
  if (code == MPI_SUCCESS) code = MPI_Comm_rank(communicator, rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(communicator, num_ranks);
  if (code != MPI_SUCCESS) return describe("cannot start MPI", code);
  return count_local(num_local);
}

static const char *start(int is_receive, int other, int tag, void *bytes, size_t num_bytes, void **request) {
  transfer_t *transfer = NULL;
  int code = MPI_SUCCESS;
  *request = NULL;
  if (num_bytes > INT_MAX) return refuse("a message of 2 GiB or more");
  transfer = malloc(sizeof *transfer);
  if (transfer == NULL) return refuse("no memory for a message");
  transfer->is_receive = is_receive;
  if (is_receive) {
    code = MPI_Irecv(bytes, (int)num_bytes, MPI_BYTE, other, tag, communicator, &transfer->request);
  } else {
    code = MPI_Isend(bytes, (int)num_bytes, MPI_BYTE, other, tag, communicator, &transfer->request);
  }
  if (code != MPI_SUCCESS) {
    free(transfer);
    return describe(is_receive ? "cannot receive" : "cannot send", code);
  }
  *request = transfer;
  return NULL;
}

static const char *mpi_start_send(int to, int tag, const void *bytes, size_t num_bytes, void **request) {
  return start(0, to, tag, (void *)bytes, num_bytes, request);
}

static const char *mpi_start_receive(int from, int tag, void *bytes, size_t num_bytes, void **request) {
  return start(1, from, tag, bytes, num_bytes, request);
}

static const char *mpi_test(void **request, int *is_done, size_t *num_bytes) {
  transfer_t *transfer = *request;
  const int is_receive = transfer->is_receive;
  MPI_Status status;
  int count = 0;
  int code = MPI_Test(&transfer->request, is_done, &status);
  if (code != MPI_SUCCESS) {
    *is_done = 1; /* MPI has given the request up */
  } else if (*is_done && is_receive) {
    code = MPI_Get_count(&status, MPI_BYTE, &count);
  }
  *num_bytes = (size_t)count;
  if (*is_done) {
    free(transfer);
    *request = NULL;
  }
  return describe(is_receive ? "cannot receive" : "cannot send", code);
}

static const char *mpi_probe(int from, int tag, int *is_there, int *source, size_t *num_bytes) {
  MPI_Status status;
  int count = 0;
  int code = MPI_Iprobe(from < 0 ? MPI_ANY_SOURCE : from, tag, communicator, is_there, &status);
  if (code == MPI_SUCCESS && *is_there) {
    *source = status.MPI_SOURCE;
    code = MPI_Get_count(&status, MPI_BYTE, &count);
  }
  *num_bytes = (size_t)count;
  return describe("cannot look for messages", code);
}

static void mpi_abandon(void **request) {
  transfer_t *transfer = *request;
  if (transfer == NULL) return;
  if (transfer->is_receive) MPI_Cancel(&transfer->request);
  MPI_Request_free(&transfer->request);
  free(transfer);
  *request = NULL;
}

static const char *mpi_finalize(void) {
  /* The communicator is not freed: ranks that were told to end have not read all that others said of themselves, and that is
   * an error to MPI_Comm_free. */
  return MPI_Finalize() == MPI_SUCCESS ? NULL : "cannot end MPI";
}

static void mpi_abort(int status) { MPI_Abort(MPI_COMM_WORLD, status); }

const precast_mpi_t *precast_mpi_table(void) {
  static const precast_mpi_t table = {
      PRECAST_MPI_ABI, mpi_init,    mpi_start_send, mpi_start_receive, mpi_test,
      mpi_probe,       mpi_abandon, mpi_finalize,   mpi_abort,
  };
  return &table;
}
