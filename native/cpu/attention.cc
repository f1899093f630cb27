// Causal attention by blocks (the online softmax of FlashAttention): a task takes a block of queries of one head past
// its keys, a block at a time, and keeps one block of scores. Memory does not grow with the sequence.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/cpu_backend.h"
#include "cpu/pairs.h"
#include "cpu/sgemm.h"

namespace alps {

namespace {

// With packed pairs, of a block of queries some at a time: whole tiles of products whose scores are little more than
// the nearest cache holds.
constexpr int64_t stripRows = 24;
static_assert(stripRows % pairRows(pairColumns) == 0 && stripRows % pairRows(widePairColumns) == 0);
constexpr int64_t queryBlock = 5 * stripRows, keyBlock = 512;
constexpr int64_t keyColumns = widePairColumns;
constexpr int64_t scoreStride = keyBlock + 16;  // not a power of two: rows would share the same few cache sets

// The width of the values' panels: as few of them as there can be, of much the same width.
constexpr int64_t valueColumns(int64_t headDim) {
  int64_t panels = (headDim + widePairColumns - 1) / widePairColumns;
  return (headDim + 16 * panels - 1) / (16 * panels) * 16;
}

// Rows of one head, read in place with the token's row length as stride, or a float32 copy.
struct Operand {
  const void* data;
  int64_t stride;
};

// One key head's keys and values of a sequence in packed pairs (pairs.h): keys as columns over the head's dimensions,
// dimensions as columns over the keys.
struct PackedHead {
  RightPairs keys, values;
};

struct Scratch {
  Lines<float> scores = Lines<float>(queryBlock * scoreStride);  // [queries, keys], then exp of them
  Lines<bf16_t> scores16;
  Lines<float> sums;  // [queries, headDim]: Σ exp(score − peak) v
  std::vector<float> wideQ, wideK, wideV;
  float peak[queryBlock], total[queryBlock];  // per query: largest score so far, Σ exp(score − peak)
};

class Attention {
 public:
  Attention(const Kernels& kernels, const ProductKernels* products, bool bf16Products, const Tensor& q, const Tensor& k,
            const Tensor& v, int64_t headDim, double scale, int64_t window, double softCap)
      : kernels_(kernels),
        products_(products),
        q_(q),
        k_(k),
        v_(v),
        bf16Products_(bf16Products),
        headDim_(headDim),
        scale_(static_cast<float>(scale)),
        window_(window),
        softCap_(static_cast<float>(softCap)),
        group_(q.columns() / k.columns()) {}

  // Queries [begin, end) of the sequence that starts at token `base`. packed: its keys and values where they are.
  void run(int64_t base, int64_t head, int64_t begin, int64_t end, const PackedHead* packed, const Tensor& out) const {
    Scratch& scratch = ownScratch();
    int64_t together = packed ? stripRows : queryBlock;
    for (int64_t first = begin; first < end; first += together) {
      int64_t rows = std::min(together, end - first), at = (base + first) * q_.columns() + head * headDim_;
      if (packed)
        attendPacked(scratch, {q_.as<bf16_t>() + at, q_.columns(), nullptr, 0}, first, rows, *packed);
      else
        attend(scratch, {operand(q_, base + first, head, rows, scratch.wideQ), rows, first, 1}, base, head / group_);
      for (int64_t i = 0; i < rows; i++) finish(scratch, i, at + i * q_.columns(), out);
    }
  }

  // Keys and values of a part: a key head of a sequence.
  void pack(int64_t part, int64_t sequence, uint32_t* keys, uint32_t* values) const {
    int64_t width = k_.columns(), heads = width / headDim_,
            at = part / heads * sequence * width + part % heads * headDim_;
    for (int64_t j = 0; j < sequence; j += keyColumns)
      products_->packRows(k_.as<bf16_t>() + at + j * width, width, headDim_, std::min(keyColumns, sequence - j),
                          keys + j * pairsOf(headDim_), keyColumns);
    int64_t columns = valueColumns(headDim_);
    for (int64_t j = 0; j < headDim_; j += columns)
      products_->packColumns(v_.as<bf16_t>() + at + j, width, sequence, std::min(columns, headDim_ - j),
                             values + j * pairsOf(sequence), columns, 0);
  }

  // The query heads of one key head, of token `row` of q, which stands at `position` of the sequence that starts at row
  // `base` of the keys.
  void step(int64_t row, int64_t kvHead, int64_t base, int64_t position, const Tensor& out) const {
    Scratch& scratch = ownScratch();
    for (int64_t first = 0; first < group_; first += queryBlock) {
      int64_t rows = std::min(queryBlock, group_ - first), head = kvHead * group_ + first;
      Operand queries = operand(q_, row, head, rows, scratch.wideQ, headDim_);
      attend(scratch, {queries, rows, position, 0}, base, kvHead);
      for (int64_t i = 0; i < rows; i++) finish(scratch, i, row * q_.columns() + (head + i) * headDim_, out);
    }
  }

 private:
  static Scratch& ownScratch() {
    thread_local Scratch scratch;
    return scratch;
  }

  // Rows of queries, the first at position `begin`, each `step` behind the one before.
  struct Queries {
    Operand operand;
    int64_t rows, begin, step;
  };

  void prepare(Scratch& scratch, int64_t rows) const {
    scratch.sums.resize(static_cast<size_t>(queryBlock * headDim_));
    if (bf16Products_) scratch.scores16.resize(scratch.scores.size());
    std::fill_n(scratch.peak, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(scratch.total, rows, 0.0f);
  }

  // As attend(), for queries from position `begin` on. Blocks on the diagonal are multiplied as far as a query sees.
  void attendPacked(Scratch& scratch, const LeftPairs& queries, int64_t begin, int64_t rows,
                    const PackedHead& packed) const {
    prepare(scratch, rows);
    int64_t end = begin + rows;
    int64_t start = window_ > 0 ? std::max<int64_t>(0, begin - window_ + 1) / keyColumns * keyColumns : 0;
    for (int64_t first = start; first < end; first += keyBlock) {
      int64_t count = std::min(keyBlock, end - first);
      for (int64_t j = 0; j < count; j += keyColumns) {
        int64_t i = std::max<int64_t>(0, first + j - begin);  // queries before it see none of these
        multiplyPairs(*products_, queries, i, rows - i, {packed.keys.at(first + j, 0), packed.keys.pairs, keyColumns},
                      std::min(keyColumns, count - j), headDim_,
                      {scratch.scores.data() + i * scoreStride + j, nullptr, scoreStride, scale_, 0});
      }
      for (int64_t i = 0; i < rows; i++) softmaxRow(scratch, i, begin + i, first, count, first == start);
      LeftPairs weights{scratch.scores16.data(), scoreStride, nullptr, 0};
      RightPairs values{packed.values.at(0, first / 2), packed.values.pairs, packed.values.width};
      for (int64_t i = 0, height; i < rows; i += height) {
        height = std::min(pairRows(values.width), rows - i);
        int64_t seen = std::min(count, begin + i + height - first);
        if (seen > 0)
          multiplyPairs(*products_, weights, i, height, values, headDim_, seen,
                        {scratch.sums.data() + i * headDim_, nullptr, headDim_, 1, first == start ? 0.0f : 1.0f});
      }
    }
  }

  // Leaves in the scratch what every query attends to, not yet divided by its total.
  void attend(Scratch& scratch, const Queries& queries, int64_t base, int64_t kvHead) const {
    auto [operandOfQ, rows, begin, step] = queries;
    int64_t end = begin + (rows - 1) * step + 1;
    prepare(scratch, rows);
    int64_t start = window_ > 0 ? std::max<int64_t>(0, begin - window_ + 1) : 0;
    for (int64_t first = start; first < end; first += keyBlock) {
      int64_t count = std::min(keyBlock, end - first);
      Operand keys = operand(k_, base + first, kvHead, count, scratch.wideK);
      Operand values = operand(v_, base + first, kvHead, count, scratch.wideV);
      product(true, rows, count, headDim_, operandOfQ, keys, 0, scratch.scores.data(), scoreStride);
      // Not by the product, see gemm.cc.
      for (int64_t i = 0; i < rows; i++) {
        float* row = scratch.scores.data() + i * scoreStride;
        kernels_.scale(row, scale_, nullptr, row, static_cast<size_t>(count));
        softmaxRow(scratch, i, begin + i * step, first, count, first == start);
      }
      Operand weights{scratch.scores.data(), scoreStride};
      if (bf16Products_) weights.data = scratch.scores16.data();
      product(false, rows, headDim_, count, weights, values, first == start ? 0 : 1, scratch.sums.data(), headDim_);
    }
  }

  // Query i's result to out, from element `at` on.
  void finish(Scratch& scratch, int64_t i, int64_t at, const Tensor& out) const {
    float* sums = scratch.sums.data() + i * headDim_;
    size_t n = static_cast<size_t>(headDim_);
    float factor = 1 / scratch.total[i];
    if (products_) return products_->scaleTo16(sums, factor, out.as<bf16_t>() + at, n);
    bool narrow = out.dtype == DType::bf16;
    kernels_.scale(sums, factor, nullptr, narrow ? sums : out.as() + at, n);
    if (narrow) kernels_.bf16FromF32(sums, out.as<bf16_t>() + at, n);
  }

  // `rows` rows from a head of a token on, a token or `stride` elements apart.
  Operand operand(const Tensor& x, int64_t token, int64_t head, int64_t rows, std::vector<float>& wide,
                  int64_t stride = 0) const {
    int64_t at = token * x.columns() + head * headDim_;
    if (stride == 0) stride = x.columns();
    if (x.dtype == DType::f32) return {x.as() + at, stride};
    if (bf16Products_) return {x.as<bf16_t>() + at, stride};
    wide.resize(static_cast<size_t>(rows * headDim_));
    for (int64_t i = 0; i < rows; i++)
      kernels_.f32FromBf16(x.as<bf16_t>() + at + i * stride, wide.data() + i * headDim_, static_cast<size_t>(headDim_));
    return {wide.data(), headDim_};
  }

  void product(bool transposeB, int64_t m, int64_t n, int64_t k, Operand a, Operand b, float beta, float* c,
               int64_t ldc) const {
    if (bf16Products_)
      bgemm(false, transposeB, m, n, k, 1, static_cast<const bf16_t*>(a.data), a.stride,
            static_cast<const bf16_t*>(b.data), b.stride, beta, c, ldc);
    else
      sgemm(false, transposeB, m, n, k, 1, static_cast<const float*>(a.data), a.stride,
            static_cast<const float*>(b.data), b.stride, beta, c, ldc);
  }

  // Row i of the scores, of query t against keys [first, first + count), becomes exp(score − peak), 0 for the keys that
  // the query does not see. Where the peak has risen, what is summed so far is scaled down to it.
  void softmaxRow(Scratch& scratch, int64_t i, int64_t t, int64_t first, int64_t count, bool isFirst) const {
    int64_t low = window_ > 0 ? std::max<int64_t>(0, t - window_ + 1 - first) : 0;
    int64_t high = std::min(count, t + 1 - first);
    if (high <= low) low = high = 0;
    float* row = scratch.scores.data() + i * scoreStride;
    size_t seen = static_cast<size_t>(high - low);
    if (seen > 0) {
      if (softCap_ > 0) kernels_.transformer.softCap(row + low, softCap_, seen);
      float before = scratch.peak[i], peak = before, sum;
      if (products_) {
        sum = products_->exponentials(row + low, &peak, row16(scratch, i) + low, seen);
      } else {
        peak = std::max(before, kernels_.transformer.maximum(row + low, seen));
        sum = bf16Products_ ? kernels_.transformer.exponentials16(row + low, peak, row16(scratch, i) + low, seen)
                            : kernels_.transformer.exponentials(row + low, peak, row + low, seen);
      }
      float factor = before == peak ? 1.0f : std::exp(before - peak);
      float* sums = scratch.sums.data() + i * headDim_;
      if (factor != 1 && !isFirst) kernels_.scale(sums, factor, nullptr, sums, static_cast<size_t>(headDim_));
      scratch.total[i] = scratch.total[i] * factor + sum;
      scratch.peak[i] = peak;
    }
    if (bf16Products_) {
      std::fill(row16(scratch, i), row16(scratch, i) + low, bf16_t{0});
      std::fill(row16(scratch, i) + high, row16(scratch, i) + count, bf16_t{0});
    } else {
      std::fill(row, row + low, 0.0f);
      std::fill(row + high, row + count, 0.0f);
    }
  }

  static bf16_t* row16(Scratch& scratch, int64_t i) { return scratch.scores16.data() + i * scoreStride; }

  const Kernels& kernels_;
  const ProductKernels* products_;
  const Tensor &q_, &k_, &v_;
  bool bf16Products_;
  int64_t headDim_;
  float scale_;
  int64_t window_;
  float softCap_;
  int64_t group_;
};

}  // namespace

void CpuBackend::attention(Tensor q, Tensor k, Tensor v, Tensor out, int64_t headDim, int64_t sequence, double scale,
                           int64_t window, double softCap) {
  if (q.size() == 0) return;
  bool pairs = q.dtype == DType::bf16 && products_;
  Attention attention(kernels_, pairs ? products_ : nullptr, pairs || (q.dtype == DType::bf16 && bf16InHardware()), q,
                      k, v, headDim, scale, window, softCap);
  int64_t kvHeads = k.columns() / headDim, group = q.columns() / k.columns(), parts = q.rows() / sequence * kvHeads;
  int64_t blocks = (sequence + queryBlock - 1) / queryBlock;
  // A part is a key head of a sequence; with packed keys and values some at a time.
  int64_t keySize = packedSize(sequence, headDim, keyColumns),
          valueSize = packedSize(headDim, sequence, valueColumns(headDim));
  int64_t together = pairs ? std::clamp<int64_t>(mostPacked / (keySize + valueSize) / 4, 1, parts) : parts;
  for (int64_t first = 0; first < parts; first += together) {
    int64_t count = std::min(together, parts - first);
    if (pairs) {
      makeRoom(leftPairs_, count * keySize), makeRoom(rightPairs_, count * valueSize);
      pool_.run(count, [&](int64_t i) {
        attention.pack(first + i, sequence, leftPairs_.data() + i * keySize, rightPairs_.data() + i * valueSize);
      });
    }
    int64_t heads = count * group;
    pool_.run(heads * blocks, [&](int64_t task) {
      int64_t block = blocks - 1 - task / heads, begin = block * queryBlock;  // the longest first
      int64_t i = task % heads / group, part = first + i, head = part % kvHeads * group + task % group;
      PackedHead packed{};
      if (pairs)
        packed = {{leftPairs_.data() + i * keySize, pairsOf(headDim), keyColumns},
                  {rightPairs_.data() + i * valueSize, pairsOf(sequence), valueColumns(headDim)}};
      attention.run(part / kvHeads * sequence, head, begin, std::min(sequence, begin + queryBlock),
                    pairs ? &packed : nullptr, out);
    });
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

void CpuBackend::attentionStep(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor out, int64_t headDim,
                               int64_t position, double scale, int64_t window, double softCap) {
  if (q.size() == 0) return;
  int64_t sequences = q.rows(), length = keys.rows() / sequences, kvHeads = k.columns() / headDim;
  size_t bytes = static_cast<size_t>(k.columns()) * sizeOf(k.dtype);
  Attention attention(kernels_, nullptr, q.dtype == DType::bf16 && bf16InHardware(), q, keys, values, headDim, scale,
                      window, softCap);
  pool_.run(sequences * kvHeads, [&](int64_t task) {
    int64_t i = task / kvHeads, kvHead = task % kvHeads, row = i * length + position;
    size_t headBytes = bytes / static_cast<size_t>(kvHeads);
    auto keep = [&](const Tensor& from, const Tensor& to) {
      std::memcpy(to.as<char>() + static_cast<size_t>(row) * bytes + static_cast<size_t>(kvHead) * headBytes,
                  from.as<char>() + static_cast<size_t>(i) * bytes + static_cast<size_t>(kvHead) * headBytes,
                  headBytes);
    };
    keep(k, keys), keep(v, values);
    attention.step(i, kvHead, i * length, position, out);
  });
}

}  // namespace alps
