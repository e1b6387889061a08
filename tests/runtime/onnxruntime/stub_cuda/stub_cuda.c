// A CUDA that computes nothing: what of it must answer, by hand. build.py adds functions that only return success, for
// every other symbol that a library needs, and links all of it into one library that bears all the names of CUDA's.
//
// There is one device, with the properties of an H100. Its memory is host memory, so copies and sets are real and done
// at once. Kernels, cuBLAS and host functions in streams do not run. Streams, events, handles are tokens.
//
// Each call is a line in the file that STUB_CUDA_LOG names: its name, then what may tell calls apart.
// While a stream is captured, calls behave as CUDA's do under cudaStreamCaptureModeGlobal: those that CUDA forbids
// answer with its error, spoil the capture, and bear " FORBIDDEN" in the log. A copy that touches memory that CUDA
// did not give, and work for another stream than the captured one, bear it too: a replay would not do what was meant.

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  illegal_state = 401,
  capture_unsupported = 900,
  capture_invalidated = 901,
};

typedef struct {
  unsigned x, y, z;
} Dim3;

// ---------------------------------------------------------------------------------------------------------------- log

void stub_cuda_log(const char* format, ...) {
  static _Atomic int file = -2;  // -2: not asked yet; -1: nobody wants a log
  if (file == -2) {
    const char* path = getenv("STUB_CUDA_LOG");
    file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  }
  if (file < 0) return;
  char line[4096];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (length < 0) return;
  if (length > (int)sizeof line - 2) length = sizeof line - 2;
  line[length] = '\n';
  if (write(file, line, length + 1) < 0) abort();
}

// ------------------------------------------------------------------------------------------------------------- tables

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
  const void* key;
  size_t num_bytes;  // of memory
  const char* text;  // a kernel's mangled name, or "device" or "pinned"
} Entry;

typedef struct {
  Entry* entries;
  size_t size, capacity;
} Table;

static Table kernels, memory;

static void insert(Table* table, Entry entry) {
  pthread_mutex_lock(&lock);
  if (table->size == table->capacity) {
    table->capacity = table->capacity ? 2 * table->capacity : 1024;
    table->entries = realloc(table->entries, table->capacity * sizeof(Entry));
    if (!table->entries) abort();
  }
  table->entries[table->size++] = entry;
  pthread_mutex_unlock(&lock);
}

// The entry whose key is `key`, or whose memory holds it; `text` is null where there is none.
static Entry find(Table* table, const void* key) {
  Entry found = {0};
  pthread_mutex_lock(&lock);
  for (size_t i = table->size; i-- > 0 && !found.text;) {
    Entry entry = table->entries[i];
    if (entry.key == key || (size_t)((const char*)key - (const char*)entry.key) < entry.num_bytes) found = entry;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

static int erase(Table* table, const void* key) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < table->size && !found; ++i) {
    if (table->entries[i].key != key) continue;
    table->entries[i] = table->entries[--table->size];
    found = 1;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

static int token(void** to) {
  *to = calloc(1, 64);
  return *to ? success : out_of_memory;
}

// ------------------------------------------------------------------------------------------------------------ capture

static void* captured;         // the stream; null where none is captured
static int capture_is_spoilt;  // a forbidden call was made

static _Thread_local int last_error;  // as CUDA keeps it: until somebody asks

static int refuse_in_capture(void) {
  capture_is_spoilt = 1;
  return last_error = capture_unsupported;
}

int cudaPeekAtLastError(void) { return last_error; }

int cudaGetLastError(void) {
  int error = last_error;
  last_error = success;
  return error;
}

// For calls that CUDA forbids in a capture.
static int outside_captures(const char* name, const char* detail) {
  if (!captured) {
    stub_cuda_log("%s %s", name, detail);
    return success;
  }
  stub_cuda_log("%s %s FORBIDDEN", name, detail);
  return refuse_in_capture();
}

// For work that goes to `stream`, and is wrong in a capture of another one.
static int work(const char* name, const char* detail, const void* stream) {
  if (captured && stream != captured) {
    stub_cuda_log("%s %s stream=%p FORBIDDEN", name, detail, stream);
    return refuse_in_capture();
  }
  stub_cuda_log("%s %s stream=%p", name, detail, stream);
  return success;
}

int cudaStreamBeginCapture(void* stream, int mode) {
  stub_cuda_log("cudaStreamBeginCapture stream=%p mode=%d", stream, mode);
  if (captured || !stream) return illegal_state;
  captured = stream;
  capture_is_spoilt = 0;
  return success;
}

int cudaStreamEndCapture(void* stream, void** graph) {
  stub_cuda_log("cudaStreamEndCapture stream=%p", stream);
  if (!captured || stream != captured) return illegal_state;
  captured = NULL;
  *graph = NULL;
  return capture_is_spoilt ? capture_invalidated : token(graph);
}

int cudaStreamIsCapturing(void* stream, int* status) {
  stub_cuda_log("cudaStreamIsCapturing stream=%p", stream);
  *status = !captured || stream != captured ? 0 : capture_is_spoilt ? 2 : 1;
  return success;
}

int cudaGraphInstantiate(void** executable, void* graph, unsigned long long flags) {
  (void)graph, (void)flags;
  stub_cuda_log("cudaGraphInstantiate");
  return token(executable);
}

// ------------------------------------------------------------------------------------------------------------- device

int cudaGetDeviceCount(int* count) {
  stub_cuda_log("cudaGetDeviceCount");
  *count = 1;
  return success;
}

int cudaGetDevice(int* device) {
  stub_cuda_log("cudaGetDevice");
  *device = 0;
  return success;
}

int cudaSetDevice(int device) {
  stub_cuda_log("cudaSetDevice %d", device);
  return device == 0 ? success : invalid_value;
}

int cudaDriverGetVersion(int* version) {
  stub_cuda_log("cudaDriverGetVersion");
  *version = 13000;
  return success;
}

int cudaRuntimeGetVersion(int* version) {
  stub_cuda_log("cudaRuntimeGetVersion");
  *version = 13000;
  return success;
}

// cudaDeviceProp of CUDA 13, as far as anybody here reads it: offset in bytes, size of the field, value.
static const struct {
  size_t offset, size;
  uint64_t value;
} properties[] = {
    {288, 8, 80ull << 30},                           // totalGlobalMem
    {296, 8, 49152},                                 // sharedMemPerBlock
    {304, 4, 65536},                                 // regsPerBlock
    {308, 4, 32},                                    // warpSize
    {312, 8, 0x7fffffff},                            // memPitch
    {320, 4, 1024},                                  // maxThreadsPerBlock
    {324, 4, 1024},       {328, 4, 1024},  {332, 4, 64},     // maxThreadsDim
    {336, 4, 0x7fffffff}, {340, 4, 65535}, {344, 4, 65535},  // maxGridSize
    {352, 8, 65536},                                 // totalConstMem
    {360, 4, 9},          {364, 4, 0},               // major, minor
    {384, 4, 132},                                   // multiProcessorCount
    {596, 4, 50 << 20},                              // l2CacheSize
    {604, 4, 2048},                                  // maxThreadsPerMultiProcessor
    {624, 8, 233472},                                // sharedMemPerMultiprocessor
    {632, 4, 65536},                                 // regsPerMultiprocessor
    {656, 4, 1},                                     // concurrentManagedAccess
    {672, 8, 232448},                                // sharedMemPerBlockOptin
    {688, 4, 32},                                    // maxBlocksPerMultiProcessor
    {720, 4, 1},                                     // memoryPoolsSupported
};
enum { size_of_device_properties = 1008 };

int cudaGetDeviceProperties(void* to, int device) {
  stub_cuda_log("cudaGetDeviceProperties %d", device);
  if (device != 0) return invalid_value;
  memset(to, 0, size_of_device_properties);
  strcpy(to, "Stub GPU");
  for (size_t i = 0; i < sizeof properties / sizeof *properties; ++i)
    memcpy((char*)to + properties[i].offset, &properties[i].value, properties[i].size);
  return success;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  stub_cuda_log("cudaDeviceGetAttribute %d", attribute);
  switch (attribute) {
    case 1: *value = 1024; break;               // MaxThreadsPerBlock
    case 2: case 3: *value = 1024; break;       // MaxBlockDimX, Y
    case 4: *value = 64; break;                 // MaxBlockDimZ
    case 5: *value = 0x7fffffff; break;         // MaxGridDimX
    case 6: case 7: *value = 65535; break;      // MaxGridDimY, Z
    case 8: *value = 49152; break;              // MaxSharedMemoryPerBlock
    case 9: *value = 65536; break;              // TotalConstantMemory
    case 10: *value = 32; break;                // WarpSize
    case 12: case 82: *value = 65536; break;    // MaxRegistersPerBlock, PerMultiprocessor
    case 16: *value = 132; break;               // MultiProcessorCount
    case 38: *value = 50 << 20; break;          // L2CacheSize
    case 39: *value = 2048; break;              // MaxThreadsPerMultiProcessor
    case 41: *value = 1; break;                 // UnifiedAddressing
    case 75: *value = 9; break;                 // ComputeCapabilityMajor
    case 76: *value = 0; break;                 // ComputeCapabilityMinor
    case 81: *value = 233472; break;            // MaxSharedMemoryPerMultiprocessor
    case 95: case 115: case 120: *value = 1; break;  // CooperativeLaunch, MemoryPoolsSupported, ClusterLaunch
    case 97: *value = 232448; break;            // MaxSharedMemoryPerBlockOptin
    case 106: *value = 32; break;               // MaxBlocksPerMultiprocessor
    case 111: *value = 1024; break;             // ReservedSharedMemoryPerBlock
    default: *value = 0;
  }
  return device == 0 ? success : invalid_value;
}

int cudaDeviceSynchronize(void) { return outside_captures("cudaDeviceSynchronize", ""); }

const char* cudaGetErrorName(int error) { return error ? "cudaErrorStub" : "cudaSuccess"; }

const char* cudaGetErrorString(int error) {
  switch (error) {
    case success: return "no error";
    case out_of_memory: return "out of memory";
    case capture_unsupported: return "operation not permitted when stream is capturing";
    default: return "an error of the stub CUDA";
  }
}

int cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned long long flags,
                                     int* status) {
  (void)version, (void)flags;
  stub_cuda_log("cudaGetDriverEntryPointByVersion %s", name);
  *function = NULL;
  if (status) *status = 1;  // there is no such function
  return success;
}

// ------------------------------------------------------------------------------------------------------------- memory

static int allocate(void** to, size_t num_bytes, const char* kind) {
  *to = NULL;
  if (num_bytes == 0) return success;
  if (posix_memalign(to, 512, num_bytes)) return out_of_memory;
  memset(*to, 0, num_bytes);
  insert(&memory, (Entry){*to, num_bytes, kind});
  return success;
}

static int release(void* address) {
  if (address && !erase(&memory, address)) return invalid_value;
  free(address);
  return success;
}

static int allocate_outside(const char* name, void** to, size_t num_bytes, const char* kind) {
  char detail[32];
  snprintf(detail, sizeof detail, "%zu", num_bytes);
  int refused = outside_captures(name, detail);
  return refused ? refused : allocate(to, num_bytes, kind);
}

int cudaMalloc(void** to, size_t num_bytes) { return allocate_outside("cudaMalloc", to, num_bytes, "device"); }

int cudaMallocHost(void** to, size_t num_bytes) { return allocate_outside("cudaMallocHost", to, num_bytes, "pinned"); }

int cudaHostAlloc(void** to, size_t num_bytes, unsigned flags) {
  (void)flags;
  return allocate_outside("cudaHostAlloc", to, num_bytes, "pinned");
}

int cudaFree(void* address) {
  int refused = outside_captures("cudaFree", "");
  return refused ? refused : release(address);
}

int cudaFreeHost(void* address) {
  int refused = outside_captures("cudaFreeHost", "");
  return refused ? refused : release(address);
}

// CUDA allows these in a capture: the graph then has nodes that allocate.
int cudaMallocAsync(void** to, size_t num_bytes, void* stream) {
  int refused = work("cudaMallocAsync", "", stream);
  return refused ? refused : allocate(to, num_bytes, "device");
}

int cudaMallocFromPoolAsync(void** to, size_t num_bytes, void* pool, void* stream) {
  (void)pool;
  int refused = work("cudaMallocFromPoolAsync", "", stream);
  return refused ? refused : allocate(to, num_bytes, "device");
}

int cudaFreeAsync(void* address, void* stream) {
  int refused = work("cudaFreeAsync", "", stream);
  return refused ? refused : release(address);
}

int cudaMemPoolCreate(void** pool, const void* wanted) {
  (void)wanted;
  stub_cuda_log("cudaMemPoolCreate");
  return token(pool);
}

int cudaMemPoolGetAttribute(void* pool, int attribute, void* value) {
  (void)pool;
  stub_cuda_log("cudaMemPoolGetAttribute %d", attribute);
  memset(value, 0, attribute <= 3 ? sizeof(int) : sizeof(uint64_t));
  return success;
}

int cudaMemGetInfo(size_t* num_free, size_t* total) {
  stub_cuda_log("cudaMemGetInfo");
  *num_free = 79ull << 30;
  *total = 80ull << 30;
  return success;
}

int cudaPointerGetAttributes(void* to, const void* address) {
  struct {
    int type, device;
    const void *on_device, *on_host;
    long reserved[8];
  } attributes = {0};
  stub_cuda_log("cudaPointerGetAttributes");
  const char* kind = find(&memory, address).text;
  if (kind) {
    attributes.type = strcmp(kind, "device") ? 1 : 2;
    attributes.on_device = address;
    attributes.on_host = attributes.type == 1 ? address : NULL;
  }
  memcpy(to, &attributes, sizeof attributes);
  return success;
}

static int copy_at_once(const char* name, void* to, const void* from, size_t num_bytes) {
  int refused = outside_captures(name, "");
  if (!refused) memcpy(to, from, num_bytes);
  return refused;
}

int cudaMemcpy(void* to, const void* from, size_t num_bytes, int kind) {
  (void)kind;
  return copy_at_once("cudaMemcpy", to, from, num_bytes);
}

int cudaMemset(void* to, int value, size_t num_bytes) {
  int refused = outside_captures("cudaMemset", "");
  if (!refused) memset(to, value, num_bytes);
  return refused;
}

int cudaMemsetAsync(void* to, int value, size_t num_bytes, void* stream) {
  int refused = work("cudaMemsetAsync", "", stream);
  if (!refused) memset(to, value, num_bytes);
  return refused;
}

static int copy_in_stream(const char* name, void* to, const void* from, size_t num_bytes, void* stream) {
  const char *target = find(&memory, to).text, *source = find(&memory, from).text;
  char detail[80];
  snprintf(detail, sizeof detail, "%zu %s<-%s", num_bytes, target ? target : "pageable", source ? source : "pageable");
  if (captured && (!target || !source)) return outside_captures(name, detail);
  return work(name, detail, stream);
}

int cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, int kind, void* stream) {
  (void)kind;
  int refused = copy_in_stream("cudaMemcpyAsync", to, from, num_bytes, stream);
  if (!refused) memcpy(to, from, num_bytes);
  return refused;
}

int cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      int kind, void* stream) {
  (void)kind;
  int refused = copy_in_stream("cudaMemcpy2DAsync", to, from, width * height, stream);
  for (size_t row = 0; row < height && !refused; ++row)
    memcpy((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width);
  return refused;
}

int cudaMemcpyFromSymbol(void* to, const void* symbol, size_t num_bytes, size_t offset, int kind) {
  (void)symbol, (void)offset, (void)kind;
  int refused = outside_captures("cudaMemcpyFromSymbol", "");
  if (!refused) memset(to, 0, num_bytes);
  return refused;
}

// ------------------------------------------------------------------------------------------------- streams and events

int cudaStreamCreate(void** stream) {
  int error = token(stream);
  stub_cuda_log("cudaStreamCreate stream=%p", *stream);
  return error;
}

int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  int error = token(stream);
  stub_cuda_log("cudaStreamCreateWithFlags stream=%p flags=%u", *stream, flags);
  return error;
}

int cudaStreamSynchronize(void* stream) {
  char detail[32];
  snprintf(detail, sizeof detail, "stream=%p", stream);
  return outside_captures("cudaStreamSynchronize", detail);
}

int cudaStreamQuery(void* stream) {
  (void)stream;
  return outside_captures("cudaStreamQuery", "");
}

int cudaEventCreate(void** event) {
  stub_cuda_log("cudaEventCreate");
  return token(event);
}

int cudaEventCreateWithFlags(void** event, unsigned flags) {
  stub_cuda_log("cudaEventCreateWithFlags %u", flags);
  return token(event);
}

int cudaEventRecord(void* event, void* stream) {
  (void)event;
  return work("cudaEventRecord", "", stream);
}

int cudaEventSynchronize(void* event) {
  (void)event;
  return outside_captures("cudaEventSynchronize", "");
}

int cudaEventQuery(void* event) {
  (void)event;
  return outside_captures("cudaEventQuery", "");
}

int cudaEventElapsedTime(float* milliseconds, void* begin, void* end) {
  (void)begin, (void)end;
  *milliseconds = 1;
  return outside_captures("cudaEventElapsedTime", "");
}

// ------------------------------------------------------------------------------------------------------------ kernels

void** __cudaRegisterFatBinary(void* binary) {
  (void)binary;
  static void* handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }
void __cudaRegisterVar(void) {}

void __cudaRegisterFunction(void** handle, const void* function, char* device_function, const char* name) {
  (void)handle, (void)device_function;
  insert(&kernels, (Entry){function, 0, name});
}

static int launch(const char* name, const void* function, const void* stream) {
  const char* kernel = find(&kernels, function).text;
  return work(name, kernel ? kernel : "unknown", stream);
}

int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared, void* stream) {
  (void)grid, (void)block, (void)arguments, (void)shared;
  return launch("cudaLaunchKernel", function, stream);
}

int __cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared, void* stream) {
  (void)grid, (void)block, (void)arguments, (void)shared;
  return launch("cudaLaunchKernel", function, stream);
}

int cudaLaunchCooperativeKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                                void* stream) {
  (void)grid, (void)block, (void)arguments, (void)shared;
  return launch("cudaLaunchCooperativeKernel", function, stream);
}

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
} LaunchConfig;

int cudaLaunchKernelExC(const LaunchConfig* config, const void* function, void** arguments) {
  (void)arguments;
  return launch("cudaLaunchKernelExC", function, config->stream);
}

int cudaLaunchHostFunc(void* stream, void* function, void* data) {
  (void)function, (void)data;
  return work("cudaLaunchHostFunc", "", stream);
}

int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return success;
}

static _Thread_local LaunchConfig pushed;

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  pushed = (LaunchConfig){grid, block, shared, stream};
  return 0;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *stream = pushed.stream;
  return success;
}

int cudaFuncGetAttributes(void* to, const void* function) {
  struct {
    size_t shared, constant, local;
    int max_threads_per_block, num_registers, ptx_version, binary_version, rest[26];
  } attributes = {0};
  (void)function;
  stub_cuda_log("cudaFuncGetAttributes");
  attributes.max_threads_per_block = 1024;
  attributes.num_registers = 32;
  attributes.ptx_version = attributes.binary_version = 90;
  memcpy(to, &attributes, sizeof attributes);
  return success;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* num_blocks) {
  stub_cuda_log("cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags");
  *num_blocks = 2;
  return success;
}

int cudaLibraryLoadData(void** library) {
  stub_cuda_log("cudaLibraryLoadData");
  return token(library);
}

int cudaLibraryGetKernel(void** kernel, void* library, const char* name) {
  (void)library;
  stub_cuda_log("cudaLibraryGetKernel %s", name);
  int error = token(kernel);
  if (!error) insert(&kernels, (Entry){*kernel, 0, strdup(name)});
  return error;
}

// ------------------------------------------------------------------------------------------------------------- cuBLAS

// Where cuBLAS's own kernels would go is checked here: cublasSetStream says which stream. One handle's is enough.
int cublasCreate_v2(void** handle) {
  stub_cuda_log("cublasCreate_v2");
  return token(handle);
}

int cublasSetStream_v2(void* handle, void* stream) {
  memcpy(handle, &stream, sizeof stream);
  return work("cublasSetStream_v2", "", stream);
}

#define CUBLAS_WORK(name) \
  int name(void* handle) { return work(#name, "", *(void**)handle); }
CUBLAS_WORK(cublasSgemm_v2)
CUBLAS_WORK(cublasGemmEx)
CUBLAS_WORK(cublasGemmStridedBatchedEx)
CUBLAS_WORK(cublasSgemmStridedBatched)
CUBLAS_WORK(cublasScopy_v2)

int cublasGetMathMode(void* handle, int* mode) {
  (void)handle;
  stub_cuda_log("cublasGetMathMode");
  *mode = 0;
  return success;
}

const char* cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_STUB" : "CUBLAS_STATUS_SUCCESS"; }
const char* cublasGetStatusString(int status) { return status ? "an error of the stub cuBLAS" : "success"; }

#define CREATES(name) \
  int name(void** handle) { \
    stub_cuda_log(#name); \
    return token(handle); \
  }
CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatrixTransformDescCreate)

typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Heuristic;

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference,
                                   int num_wanted, Heuristic* results, int* num_results) {
  (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
  stub_cuda_log("cublasLtMatmulAlgoGetHeuristic");
  *num_results = num_wanted > 0;
  if (*num_results) memset(results, 0, sizeof *results);
  return success;
}

int cublasLtMatmul(void* handle, void* operation, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const void* algorithm, void* workspace, size_t workspace_size, void* stream) {
  (void)handle, (void)operation, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta, (void)c;
  (void)c_layout, (void)d, (void)d_layout, (void)algorithm, (void)workspace, (void)workspace_size;
  return work("cublasLtMatmul", "", stream);
}
