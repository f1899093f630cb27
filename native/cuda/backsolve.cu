// Purpose: exact refit of the weights on a support: a Cholesky factorisation and two triangular solves a row, one
// thread block each.
//
// A row's factor L lies in scratch memory as tiles of 64 × 64 of its lower triangle, block column by block column, each
// tile transposed (element (r, c) at c * 64 + r), with X = L⁻¹ of the block itself on the diagonal. It is made column
// by column: a tile of the Gram matrix on the support, less the products of the tiles to its left, times Xᵀ. The
// forward solve goes along. How large supports are only the device knows: it packs rows into waves that fit the scratch
// memory, one launch a wave.
#include <algorithm>

#include "cuda/cuda_backend.h"
#include "cuda/diagonal_block.h"

namespace alps {

namespace {

using Diagonal = DiagonalBlock<2>;
constexpr int tileSize = Diagonal::size;
constexpr int tileCount = tileSize * tileSize;
constexpr int solveThreads = diagonalThreads, solveWarps = solveThreads / 32;
constexpr int tileFours = tileCount / 4 / solveThreads;  // float4 a thread of a tile

// Shared memory: the diagonal block, X as a tile, two tiles, a piece of a vector.
constexpr size_t solveBytes = (Diagonal::count + 3 * tileCount + tileSize) * sizeof(float);

// Numbers of a row's scratch memory, for a support of so many tiles: L, the solution, the support.
__host__ __device__ constexpr int64_t factorNumbers(int64_t tiles) { return tiles * (tiles + 1) / 2 * tileCount; }
__host__ __device__ constexpr int64_t rowNumbers(int64_t tiles) { return factorNumbers(tiles) + tiles * 2 * tileSize; }

// Where a tile of L begins.
__device__ inline int64_t tileAt(int tiles, int row, int column) {
  return int64_t{column * tiles - column * (column - 1) / 2 + row - column} * tileCount;
}

// ---- plan ----------------------------------------------------------------------------------------------------------

// sizes[i] = kept weights of row i. A warp a row.
__global__ void sizesKernel(const uint8_t* mask, int64_t m, int64_t n, uint32_t* sizes) {
  int64_t warps = int64_t{gridDim.x} * (blockDim.x / 32);
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; i < m; i += warps) {
    uint32_t count = 0;
    for (int64_t j = threadIdx.x % 32; j < n; j += 32) count += mask[i * n + j] != 0;
    for (int by = 16; by > 0; by /= 2) count += __shfl_xor_sync(0xffffffffu, count, by);
    if (threadIdx.x % 32 == 0) sizes[i] = count;
  }
}

// One warp: rows into waves, in order. offsets[i]: where row i's memory begins; wave w has the rows from waveStarts[w]
// to waveStarts[w + 1]. A wave that has more rows than the `blocks` that solve it gives a multiple of them, as what is
// over would leave most blocks idle. Waves that are not needed are empty.
__global__ void planKernel(const uint32_t* sizes, int64_t m, int64_t budget, int64_t blocks, int64_t waves,
                           int64_t* offsets, int64_t* waveStarts) {
  int lane = static_cast<int>(threadIdx.x);
  int64_t wave = 0, start = 0, used = 0, loaded = -32;  // the lanes have the sizes of rows loaded ... loaded + 32
  uint32_t size = 0;
  if (lane == 0) waveStarts[0] = 0;
  for (int64_t i = 0; i < m;) {
    if (i < loaded || i >= loaded + 32) {
      loaded = i;
      size = i + lane < m ? sizes[i + lane] : 0;
    }
    uint32_t own = __shfl_sync(0xffffffffu, size, static_cast<int>(i - loaded));
    int64_t need = rowNumbers((own + tileSize - 1) / tileSize);
    if (used + need > budget) {
      if (i - start > blocks) i = start + (i - start) / blocks * blocks;
      start = i;
      used = 0;
      wave++;
      if (lane == 0) waveStarts[wave] = i;
      continue;
    }
    if (lane == 0) offsets[i] = used;
    used += need;
    i++;
  }
  for (int64_t w = wave + 1 + lane; w <= waves; w += 32) waveStarts[w] = m;
}

// ---- one row -------------------------------------------------------------------------------------------------------

struct RowSolver {
  const float* gram;
  int64_t n;
  float *factor, *solution;  // of this row, in scratch memory
  uint32_t* support;
  int size, tiles;

  Diagonal diagonal;
  float *inverse, *left, *right, *piece;  // tiles and a vector [tileSize] in shared memory

  // Threads' shares of a tile: rows 4 y ... and columns 4 x ...
  __device__ static int y() { return static_cast<int>(threadIdx.x) / 16; }
  __device__ static int x() { return static_cast<int>(threadIdx.x) % 16; }

  // The support and the right-hand side, filled up to whole tiles by the identity's.
  __device__ void collect(const uint8_t* mask, const float* rightSide) {
    SHARED(uint32_t, counts, solveWarps);
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    uint32_t found = 0;
    for (int64_t first = 0; first < n; first += solveThreads) {
      int64_t j = first + threadIdx.x;
      bool kept = j < n && mask[j];
      uint32_t votes = __ballot_sync(0xffffffffu, kept);
      if (lane == 0) counts[warp] = static_cast<uint32_t>(__popc(votes));
      __syncthreads();
      uint32_t at = found + static_cast<uint32_t>(__popc(votes & ((1u << lane) - 1)));
      for (int w = 0; w < solveWarps; w++) {
        if (w < warp) at += counts[w];
        found += counts[w];
      }
      if (kept) {
        support[at] = static_cast<uint32_t>(j);
        solution[at] = rightSide[j];
      }
      __syncthreads();
    }
    for (int r = size + static_cast<int>(threadIdx.x); r < tiles * tileSize; r += solveThreads) {
      support[r] = 0;
      solution[r] = 0;
    }
    __syncthreads();
  }

  __device__ void gather(int row, int column, float (&sums)[4][4]) const {
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) {
        int r = row * tileSize + 4 * y() + i, c = column * tileSize + 4 * x() + j;
        sums[i][j] = r < size && c < size ? gram[int64_t{support[r]} * n + support[c]] : r == c ? 1.0f : 0.0f;
      }
  }

  // sums += a b, or −= a b; tiles in shared memory: a transposed, b with rows as they are.
  template <bool minus>
  __device__ static void multiply(const float* a, const float* b, float (&sums)[4][4]) {
#pragma unroll 8
    for (int k = 0; k < tileSize; k++) {
      float4 p = *reinterpret_cast<const float4*>(a + k * tileSize + 4 * y());
      float4 q = *reinterpret_cast<const float4*>(b + k * tileSize + 4 * x());
      float rows[4] = {p.x, p.y, p.z, p.w}, columns[4] = {q.x, q.y, q.z, q.w};
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sums[i][j] += (minus ? -rows[i] : rows[i]) * columns[j];
    }
  }

  // sums −= Σ L[row, k] L[column, k]ᵀ over the block columns k to the left. While a pair of tiles is multiplied, the
  // next one is on its way to registers.
  __device__ void subtractLeft(int row, int column, float (&sums)[4][4]) {
    float4 a[tileFours], b[tileFours];
    auto fetch = [&](int k) {
      const float4* from = reinterpret_cast<const float4*>(factor + tileAt(tiles, row, k));
      const float4* other = reinterpret_cast<const float4*>(factor + tileAt(tiles, column, k));
      for (int i = 0; i < tileFours; i++) {
        a[i] = from[i * solveThreads + threadIdx.x];
        b[i] = other[i * solveThreads + threadIdx.x];
      }
    };
    if (column > 0) fetch(0);
    for (int k = 0; k < column; k++) {
      for (int i = 0; i < tileFours; i++) {
        reinterpret_cast<float4*>(left)[i * solveThreads + threadIdx.x] = a[i];
        reinterpret_cast<float4*>(right)[i * solveThreads + threadIdx.x] = b[i];
      }
      __syncthreads();
      if (k + 1 < column) fetch(k + 1);
      multiply<true>(left, right, sums);
      __syncthreads();
    }
  }

  // The block on the diagonal: factored, inverted, and this piece of the forward solve. Returns whether a pivot failed.
  __device__ bool factorDiagonal(int column) {
    float sums[4][4];
    gather(column, column, sums);
    subtractLeft(column, column, sums);
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) diagonal.lower[(4 * y() + i) * Diagonal::ld + 4 * x() + j] = sums[i][j];
    if (threadIdx.x < tileSize) piece[threadIdx.x] = solution[column * tileSize + threadIdx.x];
    __syncthreads();
    int failed = diagonal.factor();
    float* out = factor + tileAt(tiles, column, column);
    for (int i = static_cast<int>(threadIdx.x); i < tileCount; i += solveThreads)
      out[i] = inverse[i] = diagonal.inverse(i % tileSize, i / tileSize);
    __syncthreads();
    float sum = 0;
    if (threadIdx.x < tileSize)
      for (int k = 0; k < tileSize; k++) sum += inverse[k * tileSize + threadIdx.x] * piece[k];
    __syncthreads();
    if (threadIdx.x < tileSize) solution[column * tileSize + threadIdx.x] = piece[threadIdx.x] = sum;
    __syncthreads();
    return failed > 0;
  }

  // A tile below: L = (…) Xᵀ, and what the solution of this block column takes from the right-hand side.
  __device__ void factorTile(int row, int column) {
    float sums[4][4];
    gather(row, column, sums);
    subtractLeft(row, column, sums);
    for (int j = 0; j < 4; j++)
      *reinterpret_cast<float4*>(left + (4 * x() + j) * tileSize + 4 * y()) =
          make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
    __syncthreads();
    float out[4][4] = {};
    multiply<false>(left, inverse, out);
    float* to = factor + tileAt(tiles, row, column);
    for (int j = 0; j < 4; j++)
      *reinterpret_cast<float4*>(to + (4 * x() + j) * tileSize + 4 * y()) =
          make_float4(out[0][j], out[1][j], out[2][j], out[3][j]);
    for (int i = 0; i < 4; i++) {
      float sum = 0;
      for (int j = 0; j < 4; j++) sum += out[i][j] * piece[4 * x() + j];
      for (int by = 8; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
      if (x() == 0) solution[row * tileSize + 4 * y() + i] -= sum;
    }
    __syncthreads();
  }

  // sums[c] = Σ over rows of L[row, c] vector[row] for the warp's eight columns c, over `count` tiles of a block
  // column.
  __device__ void transposedProduct(const float* tile, const float* vector, int count, float (&sums)[8]) const {
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int c = 0; c < 8; c++) sums[c] = 0;
    for (int t = 0; t < count; t++) {
      float2 v = *reinterpret_cast<const float2*>(vector + t * tileSize + 2 * lane);
#pragma unroll
      for (int c = 0; c < 8; c++) {
        const float* at = tile + t * tileCount + (warp * 8 + c) * tileSize + 2 * lane;
        float2 l = *reinterpret_cast<const float2*>(at);
        sums[c] += l.x * v.x + l.y * v.y;
      }
    }
#pragma unroll
    for (int c = 0; c < 8; c++)
      for (int by = 16; by > 0; by /= 2) sums[c] += __shfl_xor_sync(0xffffffffu, sums[c], by);
  }

  // The backward solve: x = Xᵀ (y − Σ L[i]ᵀ x[i] over the blocks i below), from the last block up.
  __device__ void backward() {
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int column = tiles - 1; column >= 0; column--) {
      float sums[8];
      float *block = solution + column * tileSize, *tile = factor + tileAt(tiles, column, column);
      transposedProduct(tile + tileCount, block + tileSize, tiles - 1 - column, sums);
#pragma unroll
      for (int c = 0; c < 8; c++)
        if (lane == c) piece[warp * 8 + c] = block[warp * 8 + c] - sums[c];
      __syncthreads();
      transposedProduct(tile, piece, 1, sums);
#pragma unroll
      for (int c = 0; c < 8; c++)
        if (lane == c) block[warp * 8 + c] = sums[c];
      __syncthreads();
    }
  }
};

// The rows of a wave. firstFailed: the lowest row whose matrix is not positive definite.
__global__ void __launch_bounds__(solveThreads, 2)
    solveKernel(const float* gram, int64_t n, const float* right, const uint8_t* mask, const uint32_t* sizes,
                const int64_t* offsets, const int64_t* waveStarts, int64_t wave, float* memory, float* x,
                uint32_t* firstFailed) {
  DYNAMIC_SHARED(float, shared);
  // Tiles first: they are read by fours.
  float *inverse = shared, *left = inverse + tileCount, *other = left + tileCount, *piece = other + tileCount;
  for (int64_t i = waveStarts[wave] + blockIdx.x; i < waveStarts[wave + 1]; i += gridDim.x) {
    int size = static_cast<int>(sizes[i]), tiles = (size + tileSize - 1) / tileSize;
    float *factor = memory + offsets[i], *solution = factor + factorNumbers(tiles);
    uint32_t* support = reinterpret_cast<uint32_t*>(solution + tiles * tileSize);
    RowSolver row{gram,    n,    factor, solution, support, size, tiles, Diagonal(piece + tileSize),
                  inverse, left, other,  piece};
    row.collect(mask + i * n, right + i * n);
    for (int column = 0; column < tiles; column++) {
      if (row.factorDiagonal(column) && threadIdx.x == 0) atomicMin(firstFailed, static_cast<uint32_t>(i));
      for (int below = column + 1; below < tiles; below++) row.factorTile(below, column);
    }
    row.backward();
    float* out = x + i * n;
    for (int64_t j = threadIdx.x; j < n; j += solveThreads) out[j] = 0;
    __syncthreads();
    for (int r = static_cast<int>(threadIdx.x); r < size; r += solveThreads) out[support[r]] = solution[r];
    __syncthreads();
  }
}

__global__ void reportKernel(const uint32_t* firstFailed, Failure* failure) {
  if (threadIdx.x == 0 && *firstFailed != UINT32_MAX) report(failure, supportNotPositive, *firstFailed);
}

__global__ void startKernel(uint32_t* firstFailed) {
  if (threadIdx.x == 0) *firstFailed = UINT32_MAX;
}

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

void CudaBackend::backsolve(Tensor gram, Tensor right, Tensor mask, Tensor x) {
  int64_t m = right.dim(0), n = gram.dim(0);
  if (m == 0 || n == 0) return;
  const DeviceProperties& device = runtime_->properties();
  // Enough for supports of a usual size on all multiprocessors at once, a small part of the device's memory, and in any
  // case one row.
  int64_t most = rowNumbers((n + tileSize - 1) / tileSize);
  int64_t bound = static_cast<int64_t>(std::max<uint64_t>(device.memory / 32, 256 << 20) / sizeof(float));
  int64_t budget = std::max(most, std::min(bound, m * most));
  Grid blocks{std::min<int64_t>(m, int64_t{device.multiprocessors} * 2)};
  int64_t fewest = budget / most;  // rows of a wave but the last one
  if (fewest > blocks.x) fewest = fewest / blocks.x * blocks.x;
  int64_t waves = (m + fewest - 1) / fewest;
  auto memory = scratch<float>(budget);
  auto sizes = scratch<uint32_t>(m), firstFailed = scratch<uint32_t>(1);
  auto offsets = scratch<int64_t>(m), waveStarts = scratch<int64_t>(waves + 1);
  launch(queue(), startKernel, {}, 32, 0, firstFailed.data());
  launch(queue(), sizesKernel, blocksFor(m * 32), blockSize_, 0, mask.as<uint8_t>(), m, n, sizes.data());
  launch(queue(), planKernel, {}, 32, 0, sizes.data(), m, budget, blocks.x, waves, offsets.data(), waveStarts.data());
  for (int64_t wave = 0; wave < waves; wave++) {
    throwIfCancelled();
    launch(queue(), solveKernel, blocks, solveThreads, solveBytes, gram.as(), n, right.as(), mask.as<uint8_t>(),
           sizes.data(), offsets.data(), waveStarts.data(), wave, memory.data(), x.as(), firstFailed.data());
  }
  launch(queue(), reportKernel, {}, 32, 0, firstFailed.data(), failure());
}

}  // namespace alps
