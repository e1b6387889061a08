#include "runtime/native/src/sampling/row_passes.h"

namespace precast {

const RowKernels row_kernels_avx2{
    .scan = &scan_row,
    .draw = &draw_from_row,
    .mass_before = &mass_before_place,
    .count_before = &count_before_place,
    .collect = &collect_from_row,
};

}  // namespace precast
