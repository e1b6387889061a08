// The part of ONNX Runtime's stable C ABI that this library uses, declared here because no package ships the header.
//
// A type or function keeps the name it has in onnxruntime_c_api.h, without the prefix Ort; the same name there explains it.
// The function table only ever grows: version 17 of it is a prefix of every later one. An entry lies at a fixed slot,
// counted in pointers from the start, and a wrong slot is a crash: never guess one. tests/runtime/test_ort_abi.py compares
// slots, signatures and values with a real header where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace precast::ort {

inline constexpr std::uint32_t api_version = 17;

// Opaque. What a Create function makes is released by the Release function of the same type.
struct ArenaCfg;
struct CustomOpDomain;
struct Env;
struct IoBinding;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct RunOptions;
struct Session;
struct SessionOptions;
struct ShapeInferContext;
struct Status;
struct TensorTypeAndShapeInfo;
struct Value;

// Enumerations have the size of a C int. Only what is used is listed.
enum class AllocatorType : int { arena = 1 };
enum class ArgumentCharacteristic : int { required = 0, optional = 1 };
enum class ElementType : int { float32 = 1, uint8 = 2, int8 = 3, int32 = 6, int64 = 7, float16 = 10, bfloat16 = 16 };
enum class ErrorCode : int { fail = 1 };
enum class GraphOptimizationLevel : int { disable_all = 0 };
enum class LoggingLevel : int { fatal = 4 };
enum class MemType : int { default_memory = 0 };

using LoggingFunction = void (*)(void* param, LoggingLevel severity, const char* category, const char* logid,
                                 const char* code_location, const char* message);

struct CustomOp;
using Slot = void (*)();  // an entry that is not used

// Functions that return a Status* return null for success; the caller releases what is not null.
struct Api {
  Status* (*CreateStatus)(ErrorCode code, const char* message);
  Slot unused_1[1];
  const char* (*GetErrorMessage)(const Status* status);
  Slot unused_3[1];
  Status* (*CreateEnvWithCustomLogger)(LoggingFunction logging_function, void* logger_param, LoggingLevel severity,
                                       const char* logid, Env** out);
  Slot unused_5[3];
  Status* (*CreateSessionFromArray)(const Env* env, const void* model_data, std::size_t model_data_length,
                                    const SessionOptions* options, Session** out);
  Slot unused_9[1];
  Status* (*CreateSessionOptions)(SessionOptions** options);
  Slot unused_11[6];
  Status* (*DisableMemPattern)(SessionOptions* options);
  Slot unused_18[5];
  Status* (*SetSessionGraphOptimizationLevel)(SessionOptions* options, GraphOptimizationLevel level);
  Status* (*SetIntraOpNumThreads)(SessionOptions* options, int num_threads);
  Slot unused_25[1];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const CustomOp* op);
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
  Slot unused_29[20];
  Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo* info, void* data, std::size_t size_bytes,
                                            const std::int64_t* shape, std::size_t rank, ElementType type, Value** out);
  Slot unused_50[1];
  Status* (*GetTensorMutableData)(Value* value, void** out);
  Slot unused_52[9];
  Status* (*GetDimensionsCount)(const TensorTypeAndShapeInfo* info, std::size_t* out);
  Status* (*GetDimensions)(const TensorTypeAndShapeInfo* info, std::int64_t* values, std::size_t count);
  Slot unused_63[2];
  Status* (*GetTensorTypeAndShape)(const Value* value, TensorTypeAndShapeInfo** out);
  Slot unused_66[3];
  Status* (*CreateCpuMemoryInfo)(AllocatorType type, MemType mem_type, MemoryInfo** out);
  Slot unused_70[15];
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo* info, const char* name, float* out);
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name, std::int64_t* out);
  Status* (*KernelInfoGetAttribute_string)(const KernelInfo* info, const char* name, char* out, std::size_t* size);
  Slot unused_88[2];
  Status* (*KernelContext_GetInput)(const KernelContext* context, std::size_t index, const Value** out);
  Status* (*KernelContext_GetOutput)(KernelContext* context, std::size_t index, const std::int64_t* shape,
                                     std::size_t rank, Value** out);
  void (*ReleaseEnv)(Env* env);
  void (*ReleaseStatus)(Status* status);
  void (*ReleaseMemoryInfo)(MemoryInfo* info);
  void (*ReleaseSession)(Session* session);
  void (*ReleaseValue)(Value* value);
  Slot unused_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo* info);
  void (*ReleaseSessionOptions)(SessionOptions* options);
  void (*ReleaseCustomOpDomain)(CustomOpDomain* domain);
  Slot unused_102[28];
  Status* (*AddSessionConfigEntry)(SessionOptions* options, const char* key, const char* value);
  Slot unused_131[2];
  Status* (*RunWithBinding)(Session* session, const RunOptions* options, const IoBinding* binding);
  Status* (*CreateIoBinding)(Session* session, IoBinding** out);
  void (*ReleaseIoBinding)(IoBinding* binding);
  Status* (*BindInput)(IoBinding* binding, const char* name, const Value* value);
  Status* (*BindOutput)(IoBinding* binding, const char* name, const Value* value);
  Slot unused_138[6];
  Status* (*CreateAndRegisterAllocator)(Env* env, const MemoryInfo* info, const ArenaCfg* arena_cfg);
  Slot unused_145[5];
  Status* (*AddInitializer)(SessionOptions* options, const char* name, const Value* value);
  Slot unused_151[6];
  void (*ReleaseArenaCfg)(ArenaCfg* arena_cfg);
  Slot unused_158[6];
  Status* (*CreateArenaCfgV2)(const char* const* keys, const std::size_t* values, std::size_t count, ArenaCfg** out);
  Slot unused_165[65];
  Status* (*KernelInfo_GetInputCount)(const KernelInfo* info, std::size_t* out);
  Slot unused_231[1];
  Status* (*KernelInfo_GetInputName)(const KernelInfo* info, std::size_t index, char* out, std::size_t* size);
  Slot unused_233[11];
  Status* (*KernelInfo_GetNodeName)(const KernelInfo* info, char* out, std::size_t* size);
  Slot unused_245[29];
  Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*task)(void* user_data, std::size_t index),
                                       std::size_t total, std::size_t num_batch, void* user_data);
};

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

// What a custom op is to ONNX Runtime, in the form of api_version. CreateKernel and KernelCompute are never called where
// their second forms, which return a status, are given.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, std::size_t index);
  std::size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  ArgumentCharacteristic (*GetInputCharacteristic)(const CustomOp* op, std::size_t index);
  ArgumentCharacteristic (*GetOutputCharacteristic)(const CustomOp* op, std::size_t index);
  MemType (*GetInputMemoryType)(const CustomOp* op, std::size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInferContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
};

static_assert(sizeof(CustomOp) == 176);
static_assert(sizeof(void*) == 8 && sizeof(Slot) == 8, "the slots are counted in pointers of 8 bytes");

// Every function above and its slot, for the check below and for tests.
#define PRECAST_ORT_SLOTS(CHECK) \
  CHECK(CreateStatus, 0)                      \
  CHECK(GetErrorMessage, 2)                   \
  CHECK(CreateEnvWithCustomLogger, 4)         \
  CHECK(CreateSessionFromArray, 8)            \
  CHECK(CreateSessionOptions, 10)             \
  CHECK(DisableMemPattern, 17)                \
  CHECK(SetSessionGraphOptimizationLevel, 23) \
  CHECK(SetIntraOpNumThreads, 24)             \
  CHECK(CreateCustomOpDomain, 26)             \
  CHECK(CustomOpDomain_Add, 27)               \
  CHECK(AddCustomOpDomain, 28)                \
  CHECK(CreateTensorWithDataAsOrtValue, 49)   \
  CHECK(GetTensorMutableData, 51)             \
  CHECK(GetDimensionsCount, 61)               \
  CHECK(GetDimensions, 62)                    \
  CHECK(GetTensorTypeAndShape, 65)            \
  CHECK(CreateCpuMemoryInfo, 69)              \
  CHECK(KernelInfoGetAttribute_float, 85)     \
  CHECK(KernelInfoGetAttribute_int64, 86)     \
  CHECK(KernelInfoGetAttribute_string, 87)    \
  CHECK(KernelContext_GetInput, 90)           \
  CHECK(KernelContext_GetOutput, 91)          \
  CHECK(ReleaseEnv, 92)                       \
  CHECK(ReleaseStatus, 93)                    \
  CHECK(ReleaseMemoryInfo, 94)                \
  CHECK(ReleaseSession, 95)                   \
  CHECK(ReleaseValue, 96)                     \
  CHECK(ReleaseTensorTypeAndShapeInfo, 99)    \
  CHECK(ReleaseSessionOptions, 100)           \
  CHECK(ReleaseCustomOpDomain, 101)           \
  CHECK(AddSessionConfigEntry, 130)           \
  CHECK(RunWithBinding, 133)                  \
  CHECK(CreateIoBinding, 134)                 \
  CHECK(ReleaseIoBinding, 135)                \
  CHECK(BindInput, 136)                       \
  CHECK(BindOutput, 137)                      \
  CHECK(CreateAndRegisterAllocator, 144)      \
  CHECK(AddInitializer, 150)                  \
  CHECK(ReleaseArenaCfg, 157)                 \
  CHECK(CreateArenaCfgV2, 164)                \
  CHECK(KernelInfo_GetInputCount, 230)        \
  CHECK(KernelInfo_GetInputName, 232)         \
  CHECK(KernelInfo_GetNodeName, 244)          \
  CHECK(KernelContext_ParallelFor, 274)

#define PRECAST_ORT_CHECK_SLOT(name, slot) static_assert(offsetof(Api, name) == (slot) * sizeof(Slot));
PRECAST_ORT_SLOTS(PRECAST_ORT_CHECK_SLOT)
#undef PRECAST_ORT_CHECK_SLOT

}  // namespace precast::ort
