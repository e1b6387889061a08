#include "runtime/native/src/sampling/row_passes.h"

namespace precast {

constinit const RowKernels row_kernels_portable = row_passes;

}  // namespace precast
