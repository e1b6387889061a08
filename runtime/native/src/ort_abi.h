// The part of ONNX Runtime's stable C ABI that this library uses, declared here because no package ships the header.
//
// A type or function keeps the name it has in onnxruntime_c_api.h, without the prefix Ort; the same name there explains it.
// The function table only ever grows: version 17 of it is a prefix of every later one. An entry lies at a fixed slot,
// counted in pointers from the start, and a wrong slot is a crash: never guess one. tests/runtime/test_ort_abi.py compares
// every slot and signature with a real header where there is one.
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
  Slot unused_165[67];
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

#define PRECAST_ORT_SLOT(name, slot) static_assert(offsetof(Api, name) == (slot) * sizeof(Slot))
PRECAST_ORT_SLOT(CreateStatus, 0);
PRECAST_ORT_SLOT(GetErrorMessage, 2);
PRECAST_ORT_SLOT(CreateEnvWithCustomLogger, 4);
PRECAST_ORT_SLOT(CreateSessionFromArray, 8);
PRECAST_ORT_SLOT(CreateSessionOptions, 10);
PRECAST_ORT_SLOT(DisableMemPattern, 17);
PRECAST_ORT_SLOT(SetSessionGraphOptimizationLevel, 23);
PRECAST_ORT_SLOT(SetIntraOpNumThreads, 24);
PRECAST_ORT_SLOT(CreateCustomOpDomain, 26);
PRECAST_ORT_SLOT(CustomOpDomain_Add, 27);
PRECAST_ORT_SLOT(AddCustomOpDomain, 28);
PRECAST_ORT_SLOT(CreateTensorWithDataAsOrtValue, 49);
PRECAST_ORT_SLOT(GetTensorMutableData, 51);
PRECAST_ORT_SLOT(GetDimensionsCount, 61);
PRECAST_ORT_SLOT(GetDimensions, 62);
PRECAST_ORT_SLOT(GetTensorTypeAndShape, 65);
PRECAST_ORT_SLOT(CreateCpuMemoryInfo, 69);
PRECAST_ORT_SLOT(KernelInfoGetAttribute_float, 85);
PRECAST_ORT_SLOT(KernelInfoGetAttribute_int64, 86);
PRECAST_ORT_SLOT(KernelInfoGetAttribute_string, 87);
PRECAST_ORT_SLOT(KernelContext_GetInput, 90);
PRECAST_ORT_SLOT(KernelContext_GetOutput, 91);
PRECAST_ORT_SLOT(ReleaseEnv, 92);
PRECAST_ORT_SLOT(ReleaseStatus, 93);
PRECAST_ORT_SLOT(ReleaseMemoryInfo, 94);
PRECAST_ORT_SLOT(ReleaseSession, 95);
PRECAST_ORT_SLOT(ReleaseValue, 96);
PRECAST_ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
PRECAST_ORT_SLOT(ReleaseSessionOptions, 100);
PRECAST_ORT_SLOT(ReleaseCustomOpDomain, 101);
PRECAST_ORT_SLOT(AddSessionConfigEntry, 130);
PRECAST_ORT_SLOT(RunWithBinding, 133);
PRECAST_ORT_SLOT(CreateIoBinding, 134);
PRECAST_ORT_SLOT(ReleaseIoBinding, 135);
PRECAST_ORT_SLOT(BindInput, 136);
PRECAST_ORT_SLOT(BindOutput, 137);
PRECAST_ORT_SLOT(CreateAndRegisterAllocator, 144);
PRECAST_ORT_SLOT(AddInitializer, 150);
PRECAST_ORT_SLOT(ReleaseArenaCfg, 157);
PRECAST_ORT_SLOT(CreateArenaCfgV2, 164);
PRECAST_ORT_SLOT(KernelInfo_GetInputName, 232);
PRECAST_ORT_SLOT(KernelInfo_GetNodeName, 244);
PRECAST_ORT_SLOT(KernelContext_ParallelFor, 274);
#undef PRECAST_ORT_SLOT

}  // namespace precast::ort
