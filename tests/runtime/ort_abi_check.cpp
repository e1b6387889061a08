// Compiles where runtime/native/src/ort_abi.h says of ONNX Runtime's ABI what its real header says. Never linked: every
// comparison is made by the compiler. test_ort_abi.py runs it.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "runtime/native/src/ort_abi.h"

namespace ort = precast::ort;

// Whether two types are the same to a caller: equal, enumerations of one size, an opaque type and its namesake, or
// pointers and functions made of such.
template <typename Ours, typename Theirs>
struct Same : std::is_same<Ours, Theirs> {};
template <typename Ours, typename Theirs>
  requires(std::is_enum_v<Ours> && std::is_enum_v<Theirs>)
struct Same<Ours, Theirs> : std::bool_constant<sizeof(Ours) == sizeof(Theirs)> {};
template <typename Ours, typename Theirs>
  requires(!std::is_same_v<Ours, Theirs>)
struct Same<Ours*, Theirs*> : Same<Ours, Theirs> {};
template <typename Ours, typename Theirs>
  requires(!std::is_same_v<Ours, Theirs> && !std::is_function_v<Ours>)
struct Same<const Ours, const Theirs> : Same<Ours, Theirs> {};
template <typename OurResult, typename... Ours, typename TheirResult, typename... Theirs, bool is_noexcept>
  requires(sizeof...(Ours) == sizeof...(Theirs))
struct Same<OurResult(Ours...), TheirResult(Theirs...) noexcept(is_noexcept)>
    : std::conjunction<Same<OurResult, TheirResult>, Same<Ours, Theirs>...> {};

#define NAMESAKE(name) \
  template <>          \
  struct Same<ort::name, Ort##name> : std::true_type {};
NAMESAKE(Api)
NAMESAKE(ArenaCfg)
NAMESAKE(CustomOp)
NAMESAKE(CustomOpDomain)
NAMESAKE(Env)
NAMESAKE(IoBinding)
NAMESAKE(KernelContext)
NAMESAKE(KernelInfo)
NAMESAKE(MemoryInfo)
NAMESAKE(RunOptions)
NAMESAKE(Session)
NAMESAKE(SessionOptions)
NAMESAKE(ShapeInferContext)
NAMESAKE(Status)
NAMESAKE(TensorTypeAndShapeInfo)
NAMESAKE(Value)

#define SAME_MEMBER(type, name)                                         \
  static_assert(offsetof(ort::type, name) == offsetof(Ort##type, name)); \
  static_assert(Same<decltype(ort::type::name), decltype(Ort##type::name)>::value);
#define SAME_FUNCTION(name, slot) SAME_MEMBER(Api, name)
PRECAST_ORT_SLOTS(SAME_FUNCTION)

SAME_MEMBER(ApiBase, GetApi)
SAME_MEMBER(ApiBase, GetVersionString)

static_assert(ort::api_version <= ORT_API_VERSION);
#if ORT_API_VERSION == 17
static_assert(sizeof(ort::CustomOp) == sizeof(OrtCustomOp));
#endif
SAME_MEMBER(CustomOp, version)
SAME_MEMBER(CustomOp, CreateKernel)
SAME_MEMBER(CustomOp, GetName)
SAME_MEMBER(CustomOp, GetExecutionProviderType)
SAME_MEMBER(CustomOp, GetInputType)
SAME_MEMBER(CustomOp, GetInputTypeCount)
SAME_MEMBER(CustomOp, GetOutputType)
SAME_MEMBER(CustomOp, GetOutputTypeCount)
SAME_MEMBER(CustomOp, KernelCompute)
SAME_MEMBER(CustomOp, KernelDestroy)
SAME_MEMBER(CustomOp, GetInputCharacteristic)
SAME_MEMBER(CustomOp, GetOutputCharacteristic)
SAME_MEMBER(CustomOp, GetInputMemoryType)
SAME_MEMBER(CustomOp, GetVariadicInputMinArity)
SAME_MEMBER(CustomOp, GetVariadicInputHomogeneity)
SAME_MEMBER(CustomOp, GetVariadicOutputMinArity)
SAME_MEMBER(CustomOp, GetVariadicOutputHomogeneity)
SAME_MEMBER(CustomOp, CreateKernelV2)
SAME_MEMBER(CustomOp, KernelComputeV2)
SAME_MEMBER(CustomOp, InferOutputShapeFn)
SAME_MEMBER(CustomOp, GetStartVersion)
SAME_MEMBER(CustomOp, GetEndVersion)

#define SAME_VALUE(ours, theirs) static_assert(static_cast<int>(ort::ours) == static_cast<int>(theirs));
SAME_VALUE(AllocatorType::arena, OrtArenaAllocator)
SAME_VALUE(ArgumentCharacteristic::required, INPUT_OUTPUT_REQUIRED)
SAME_VALUE(ArgumentCharacteristic::optional, INPUT_OUTPUT_OPTIONAL)
SAME_VALUE(ElementType::float32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
SAME_VALUE(ElementType::uint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
SAME_VALUE(ElementType::int8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
SAME_VALUE(ElementType::int32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
SAME_VALUE(ElementType::int64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
SAME_VALUE(ElementType::float16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
SAME_VALUE(ElementType::bfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
SAME_VALUE(ErrorCode::fail, ORT_FAIL)
SAME_VALUE(GraphOptimizationLevel::disable_all, ORT_DISABLE_ALL)
SAME_VALUE(LoggingLevel::fatal, ORT_LOGGING_LEVEL_FATAL)
SAME_VALUE(MemType::default_memory, OrtMemTypeDefault)
