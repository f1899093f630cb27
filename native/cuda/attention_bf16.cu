// Purpose: attention in bfloat16 on tensor cores.
//
// A block takes 128 queries of one head and walks over the keys they see, a tile at a time. Queries stay in shared
// memory; keys and values have a tile of shared memory each, and one is filled (cp.async) while the other is used.
// Scores, weights and sums stay in registers: a warp has 16 or 32 whole rows, so that no other warp is asked for a
// maximum, and its scores as they leave one product are the left factor of the next. With 32 rows each fragment of keys
// and values that a warp reads serves two products: reading them is what would bound it otherwise.
#include "cuda/attention.h"
#include "cuda/mma.h"

namespace alps {

namespace {

// ---- kernel --------------------------------------------------------------------------------------------------------

// For heads of at most `columns` dimensions; those that are missing are zeros.
template <int columns_>
struct Tiling {
  static constexpr int columns = columns_;
  static constexpr int rowTiles = columns <= 128 ? 2 : 1;  // of 16 rows, a warp
  static constexpr int warps = columns <= 128 ? 4 : 8;
  static constexpr int threads = 32 * warps;
  static constexpr int queries = 16 * rowTiles * warps;
  static constexpr int keys = columns <= 128 ? 64 : 32;
  static constexpr int stride =
      columns + 8;  // an odd number of 16 bytes: eight rows of a matrix in eight sets of banks
  static constexpr int threadsPerRow = columns <= 32    ? 4
                                       : columns <= 64  ? 8
                                       : columns <= 128 ? 16
                                                        : 32;  // that load it
  static constexpr size_t sharedBytes = sizeof(bf16_t) * stride * (queries + 2 * keys);
  static constexpr int blocksAtATime = columns <= 64 ? 3 : columns <= 128 ? 2 : 1;  // a multiprocessor
  // Steps of the scores' product side by side: all of them, but where registers are too few for what is then read
  // ahead.
  static constexpr int steps = columns == 64 ? 1 : columns == 128 ? 2 : columns / 16;
};

__device__ inline uint32_t elementOrZero(const bf16_t* from, int j, int count) {
  return j < count ? uint32_t{from[j].bits} : 0;
}

// The first `count` rows of `from`, and zeros for the rest, to a tile. Asynchronous where rows are aligned. A thread
// has one column, 16 bytes wide, of every few rows: addresses that differ by a constant need few registers.
template <typename Tile, int rows>
__device__ inline void loadTile(bf16_t* tile, const bf16_t* from, int stride, int count, int headDim, bool aligned) {
  constexpr int step = Tile::threads / Tile::threadsPerRow;
  int row = static_cast<int>(threadIdx.x) / Tile::threadsPerRow;
  int column = static_cast<int>(threadIdx.x) % Tile::threadsPerRow * 8;
  if (column >= Tile::columns) return;
  bf16_t* to = tile + row * Tile::stride + column;
  if (aligned) {
    if (column >= headDim) count = 0;
    int offset = row * stride + column;
#pragma unroll
    for (int i = 0; i < rows / step; i++) {
      bool valid = row + i * step < count;
      copyAsync(to + i * step * Tile::stride, from + (valid ? offset : 0), valid);
      offset += step * stride;
    }
    return;
  }
#pragma unroll 1
  for (; row < rows; row += step, to += step * Tile::stride) {
    int valid = row < count ? headDim - column : 0;
    const bf16_t* at = from + row * stride + column;
    uint32_t pairs[4];
    for (int i = 0; i < 4; i++) pairs[i] = elementOrZero(at, 2 * i, valid) | elementOrZero(at, 2 * i + 1, valid) << 16;
    *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

__device__ inline float quadMaximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// cap * tanh(x / cap), tanh |u| = (1 − e) / (1 + e) with e = exp(−2 |u|).
__device__ inline float capped(float x, float cap) {
  float e = fastExp2(fabsf(x) * (-2 * log2OfE / cap)), y = cap * __fdividef(1 - e, 1 + e);
  return x < 0 ? -y : y;
}

template <int columns>
__global__ void __launch_bounds__(Tiling<columns>::threads, Tiling<columns>::blocksAtATime)
    attentionBf16Kernel(AttentionProblem problem) {
  using Tile = Tiling<columns>;
  constexpr int rowTiles = Tile::rowTiles, keys = Tile::keys, stride = Tile::stride;
  DYNAMIC_SHARED(bf16_t, queryTile);
  bf16_t *keyTile = queryTile + Tile::queries * stride, *valueTile = keyTile + keys * stride;

  AttentionPlace place = placeOf(problem, blockIdx.x, Tile::queries);
  int headDim = problem.headDim, lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int64_t queryAt = (place.token + place.begin) * problem.queryStride + int64_t{place.head} * headDim;
  int64_t keyAt = place.token * problem.keyStride + int64_t{place.head / problem.group} * headDim;
  auto loadKeys = [&](bf16_t* tile, const void* from, int first) {
    loadTile<Tile, keys>(tile, static_cast<const bf16_t*>(from) + keyAt + first * problem.keyStride,
                         static_cast<int>(problem.keyStride), place.end - first, headDim, problem.aligned);
  };
  int start = firstKey(problem, place.begin);
  loadTile<Tile, Tile::queries>(queryTile, static_cast<const bf16_t*>(problem.q) + queryAt,
                                static_cast<int>(problem.queryStride), place.end - place.begin, headDim,
                                problem.aligned);
  loadKeys(keyTile, problem.k, start);

  // Rows of the products' left factor, and keys and columns of their right one, that this lane reads for its warp.
  bf16_t* warpQueries = queryTile + warp * rowTiles * 16 * stride;
  const bf16_t* queryRow = warpQueries + lane % 16 * stride + lane / 16 * 8;
  const bf16_t* keyRow = keyTile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
  const bf16_t* valueRow = valueTile + lane % 16 * stride + lane / 16 * 8;

  // Scores as they come are multiplied by scale and log₂ e where their exponentials are taken. A cap, or a scale that
  // turns the order round, goes first.
  bool direct = problem.softCap == 0 && problem.scale > 0;
  float factor = direct ? problem.scale * log2OfE : log2OfE;
  int warpBegin = place.begin + warp * rowTiles * 16, warpLast = warpBegin + rowTiles * 16 - 1;
  float sums[rowTiles][columns / 8][4] = {};  // Σ 2^(score − peak) v
  float peak[rowTiles][2], total[rowTiles][2];
#pragma unroll
  for (int r = 0; r < rowTiles; r++) peak[r][0] = peak[r][1] = -INFINITY, total[r][0] = total[r][1] = 0;

  for (int first = start; first < place.end; first += keys) {
    // A tile that none of the warp's queries sees.
    bool skipped = first > warpLast || (problem.window > 0 && first + keys <= warpBegin - problem.window + 1);
    waitForCopies();
    __syncthreads();  // the keys are there, and nobody needs the values before
    loadKeys(valueTile, problem.v, first);

    float scores[rowTiles][keys / 8][4] = {};
    if (!skipped) {
#pragma unroll Tile::steps
      for (int d = 0; d < columns; d += 16) {
        Fragment a[rowTiles];
#pragma unroll
        for (int r = 0; r < rowTiles; r++) a[r] = loadMatrices<false>(queryRow + r * 16 * stride + d);
#pragma unroll
        for (int n = 0; n < keys / 16; n++) {
          Fragment b = loadMatrices<false>(keyRow + n * 16 * stride + d);
#pragma unroll
          for (int r = 0; r < rowTiles; r++) {
            mma(scores[r][2 * n], a[r], b.x[0], b.x[1]);
            mma(scores[r][2 * n + 1], a[r], b.x[2], b.x[3]);
          }
        }
      }
    }
    waitForCopies();
    __syncthreads();  // the values are there, and nobody needs the keys
    if (first + keys < place.end) loadKeys(keyTile, problem.k, first + keys);
    if (skipped) continue;

    if (!direct) {
#pragma unroll
      for (int i = 0; i < rowTiles * keys / 2; i++) {
        float& score = scores[i / (keys / 2)][i / 4 % (keys / 8)][i % 4];
        score *= problem.scale;
        if (problem.softCap > 0) score = capped(score, problem.softCap);
      }
    }
    bool edge = first + keys - 1 > warpBegin || (problem.window > 0 && first <= warpLast - problem.window);
    if (edge) {
      // How far the lane's first query of a tile is past its first key: all others differ from it by constants.
      int past = warpBegin + lane / 4 - first - lane % 4 * 2;
      int reach = problem.window > 0 ? past - problem.window : INT32_MIN;
#pragma unroll
      for (int i = 0; i < rowTiles * keys / 2; i++) {
        int r = i / (keys / 2), n = i / 4 % (keys / 8), key = n * 8 + i % 2 - (r * 16 + i % 4 / 2 * 8);
        if (key > past || key <= reach) scores[r][n][i % 4] = -INFINITY;
      }
    }

    // Rows g and g + 8 of each tile of rows; a row is spread over the four lanes of a quad.
#pragma unroll
    for (int r = 0; r < rowTiles; r++) {
      float fall[2], shift[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float highest = peak[r][h];
#pragma unroll
        for (int n = 0; n < keys / 8; n++)
          highest = fmaxf(highest, fmaxf(scores[r][n][2 * h], scores[r][n][2 * h + 1]));
        highest = quadMaximum(highest);
        shift[h] = highest == -INFINITY ? 0 : highest * factor;  // no key seen yet: 2^(−∞ − 0)
        fall[h] = highest == peak[r][h] ? 1 : fastExp2(peak[r][h] * factor - shift[h]);
        peak[r][h] = highest;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < keys / 8; n++)
#pragma unroll
          for (int j = 2 * h; j < 2 * h + 2; j++)
            sum += scores[r][n][j] = fastExp2(fmaf(scores[r][n][j], factor, -shift[h]));
        total[r][h] = total[r][h] * fall[h] + sum;
      }
      // Peaks seldom rise after the first tiles.
      if (__any_sync(0xffffffffu, fall[0] != 1 || fall[1] != 1)) {
#pragma unroll
        for (int c = 0; c < columns / 8; c++)
#pragma unroll
          for (int j = 0; j < 4; j++) sums[r][c][j] *= fall[j / 2];
      }
    }

#pragma unroll
    for (int n = 0; n < keys / 16; n++) {
      Fragment a[rowTiles];
#pragma unroll
      for (int r = 0; r < rowTiles; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* pair = scores[r][2 * n + i / 2] + i % 2 * 2;
          a[r].x[i] = packBf16(pair[0], pair[1]);
        }
#pragma unroll
      for (int c = 0; c < columns / 16; c++) {
        Fragment b = loadMatrices<true>(valueRow + n * 16 * stride + c * 16);
#pragma unroll
        for (int r = 0; r < rowTiles; r++) {
          mma(sums[r][2 * c], a[r], b.x[0], b.x[1]);
          mma(sums[r][2 * c + 1], a[r], b.x[2], b.x[3]);
        }
      }
    }
  }

  // Out by way of the warp's own queries, so that whole rows are written 16 bytes at a time.
  __syncwarp();
#pragma unroll
  for (int r = 0; r < rowTiles; r++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float inverse = 1 / quadSum(total[r][h]);
      bf16_t* row = warpQueries + (r * 16 + h * 8 + lane / 4) * stride + lane % 4 * 2;
#pragma unroll
      for (int c = 0; c < columns / 8; c++)
        *reinterpret_cast<uint32_t*>(row + c * 8) =
            packBf16(sums[r][c][2 * h] * inverse, sums[r][c][2 * h + 1] * inverse);
    }
  __syncwarp();
  int count = min(rowTiles * 16, place.end - warpBegin), width = problem.aligned ? 8 : 1, steps = headDim / width;
  bf16_t* out = static_cast<bf16_t*>(problem.out) + queryAt + warp * rowTiles * 16 * problem.queryStride;
  for (int i = lane; i < count * steps; i += 32) {
    const bf16_t* from = warpQueries + i / steps * stride + i % steps * width;
    bf16_t* to = out + i / steps * problem.queryStride + i % steps * width;
    if (problem.aligned)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    else
      *to = *from;
  }
}

}  // namespace

// ---- launcher ------------------------------------------------------------------------------------------------------

namespace {
template <int columns>
void run(Queue queue, const AttentionProblem& problem) {
  using Tile = Tiling<columns>;
  launch(queue, attentionBf16Kernel<columns>, {attentionBlocks(problem, Tile::queries)}, Tile::threads,
         Tile::sharedBytes, problem);
}
}  // namespace

void attentionOnTensorCores(Queue queue, const AttentionProblem& problem) {
  int headDim = problem.headDim;
  if (headDim <= 32) return run<32>(queue, problem);
  if (headDim <= 64) return run<64>(queue, problem);
  if (headDim <= 80) return run<80>(queue, problem);
  if (headDim <= 96) return run<96>(queue, problem);
  if (headDim <= 112) return run<112>(queue, problem);
  if (headDim <= 128) return run<128>(queue, problem);
  if (headDim <= 192) return run<192>(queue, problem);
  run<256>(queue, problem);
}

}  // namespace alps
