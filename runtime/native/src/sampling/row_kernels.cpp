#include "runtime/native/src/sampling/row_kernels.h"

namespace precast {

const RowKernels& row_kernels([[maybe_unused]] KernelLevel level) noexcept {
#ifdef PRECAST_X86
  if (level == KernelLevel::avx512) return row_kernels_avx512;
  if (level == KernelLevel::avx2) return row_kernels_avx2;
#endif
  return row_kernels_portable;
}

}  // namespace precast
