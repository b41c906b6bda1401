// Where the slots of a run of tokens begin in the order of experts: inside an expert, slots ascend.
#pragma once

#include "common.h"

namespace {

// First place of expert e whose slot is not below a given one.
__device__ inline int64_t first_place(const int64_t *order, const int64_t *offset, int e, int64_t slot) {
  int64_t low = offset[e], high = offset[e + 1];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (order[middle] < slot)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace
