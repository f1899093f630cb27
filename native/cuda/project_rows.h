// The mask of the largest magnitudes of each row, one block a row.
#pragma once
#include "cuda/platform.h"

namespace alps {

// mask[i, j] = 1 for the `keep` largest of |scores[i, :]|, ties to the lowest index, else 0. scores [rows, columns].
void maskRows(Queue queue, const float* scores, uint8_t* mask, int64_t rows, int64_t columns, int64_t keep);

}  // namespace alps
