#include "runtime/native/src/sampling/row_passes.h"

namespace precast {

constinit const RowKernels row_kernels_avx2 = row_passes;

}  // namespace precast
