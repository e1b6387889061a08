// The passes that row_kernels.h declares, written once and compiled for each level: row_kernels_<level>.cpp includes this with
// the level's compiler options. So nothing in these headers calls inline functions of the standard library, and their inner
// namespace has no name (plugins/cpu/bf16.h says why).
#pragma once

#include "runtime/native/src/sampling/row_draw.h"
#include "runtime/native/src/sampling/row_kernels.h"
#include "runtime/native/src/sampling/row_scan.h"
#include "runtime/native/src/sampling/row_search.h"

namespace precast {
namespace {

constexpr RowKernels row_passes{
    .scan = &scan_row,
    .draw = &draw_from_row,
    .mass_before = &mass_before_place,
    .count_before = &count_before_place,
    .collect = &collect_from_row,
};

}  // namespace
}  // namespace precast
