// Products of 8-bit integers, for corrections that need no more: the search for a support (docs/algorithm.md, "ADMM").
#include <algorithm>
#include <bit>
#include <limits>
#include <mutex>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {

constexpr int64_t quadsOf(int64_t k) { return (k + 3) / 4; }

// Quads that are summed in one go. A column of at most wholeRows numbers has one scale; a longer one has one for each
// piece of it, since what rounding costs adds up over the sum.
constexpr int64_t wholeRows = 2048;
constexpr int64_t pieceOf(int64_t k) { return k <= wholeRows ? std::max<int64_t>(1, quadsOf(k)) : 128; }

constexpr int64_t piecesOf(int64_t k) { return (quadsOf(k) + pieceOf(k) - 1) / pieceOf(k); }

float number(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Bytes from one row of integers to the next: an odd number of half lines of the cache.
constexpr int64_t apartOf(int64_t n) { return (4 * quadsOf(n) + 31) / 64 * 64 + 32; }

// What turns numbers of at most this magnitude into integers up to 127, and back. Of what is not finite nothing comes
// out but NaN.
struct Scale {
  float to = 0, from = 0;
  explicit Scale(uint16_t bits) : Scale(number(bits)) {}
  explicit Scale(float magnitude) {
    constexpr float least = 0x1p-118f;  // 127 divided by less may be infinite
    if (!(magnitude < std::numeric_limits<float>::infinity()))
      from = std::numeric_limits<float>::quiet_NaN();
    else if (magnitude >= least)
      to = 127 / magnitude, from = magnitude / 127;
  }
};

}  // namespace

// Columns of a right factor of so many rows that are packed at a time.
int64_t CpuBackend::int8Columns(int64_t k) {
  return std::max(mostPacked / (4 * quadsOf(k) * quadColumns), int64_t{8}) * quadColumns;
}

// Columns of b [k, n] as integers, each piece of one by its own scale, the diagonal aside.
void CpuBackend::packInt8(const Tensor& b, int64_t column, int64_t columns) {
  constexpr int64_t rowsTogether = 64;  // in one piece
  int64_t k = b.dim(0), n = b.dim(1), apart = quadsOf(k) * quadColumns, pieces = piecesOf(k);
  const bf16_t* x = b.as<bf16_t>() + column;
  auto pieceAt = [&](int64_t l) { return static_cast<size_t>(l / 4 / pieceOf(k) * columns); };
  std::vector<uint16_t> peaks(static_cast<size_t>(pieces * columns), 0);
  std::mutex merging;
  pool_.ranges(k, rowsTogether, [&](int64_t begin, int64_t end) {
    thread_local std::vector<uint16_t> found;
    found.assign(static_cast<size_t>(columns), 0);
    for (int64_t l = begin; l < end; l++) {  // a row without its entry of the diagonal
      int64_t before = std::clamp<int64_t>(l - column, 0, columns),
              after = std::clamp<int64_t>(l + 1 - column, 0, columns);
      const bf16_t* row = x + l * n;
      int8_->raisePeaks(row, static_cast<size_t>(before), found.data());
      int8_->raisePeaks(row + after, static_cast<size_t>(columns - after), found.data() + after);
    }
    uint16_t* of = peaks.data() + pieceAt(begin);
    std::lock_guard lock(merging);
    for (size_t j = 0; j < found.size(); j++) of[j] = std::max(of[j], found[j]);
  });
  makeRoom(columnScales_, 2 * pieces * columns);
  makeRoom(diagonal_, columns);
  float *from = columnScales_.data(), *to = from + pieces * columns;
  for (size_t j = 0; j < peaks.size(); j++) {
    Scale scale(peaks[j]);
    from[j] = scale.from, to[j] = scale.to;
  }
  for (int64_t j = 0; j < columns; j++) diagonal_[static_cast<size_t>(j)] = number(x[(column + j) * n + j].bits);
  makeRoom(rightPairs_, (columns + quadColumns - 1) / quadColumns * apart);
  pool_.ranges(quadsOf(k), rowsTogether / 4, [&](int64_t begin, int64_t end) {
    int8_->packColumns(x + 4 * begin * n, n, std::min(4 * end, k) - 4 * begin, columns, to + pieceAt(4 * begin),
                       rightPairs_.data() + begin * quadColumns, apart);
    for (int64_t l = std::max(4 * begin, column); l < std::min(4 * end, column + columns); l++) {
      int64_t j = l - column;
      uint32_t& quad =
          rightPairs_[static_cast<size_t>(j / quadColumns * apart + l / 4 * quadColumns + j % quadColumns)];
      int64_t shift = 8 * (l % 4);
      quad = (quad & ~(0xffu << shift)) | 128u << shift;
    }
  });
}

bool CpuBackend::goesByInt8(const Tensor& a) const {
  return int8_ && a.dtype == DType::bf16 && a.dim(0) >= enoughRows && a.dim(1) > 0;
}

void CpuBackend::int8Gemm(Tensor a, Tensor b, Tensor out) {
  if (!goesByInt8(a)) return gemm(a, b, out, false, false, 1, 0);
  int8Product(a, b, out, false);
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

// again: by the b of the last product.
void CpuBackend::int8Product(const Tensor& a, const Tensor& b, const Tensor& out, bool again) {
  int64_t n = b.dim(1), part = int8Columns(n);
  for (int64_t column = 0; column < n; column += part) {
    int64_t columns = std::min(part, n - column);
    if (!again || n > part) packInt8(b, column, columns);
    multiplyInt8(a, out, column, columns);
  }
}

// A row of n numbers as integers, with the sum of each piece; returns what turns them back.
float CpuBackend::roundRow(const bf16_t* x, int64_t n, int8_t* out, int32_t* sums) const {
  Scale scale(int8_->peak(x, static_cast<size_t>(n)));
  int64_t piece = 4 * pieceOf(n);
  for (int64_t l = 0; l < n; l += piece)
    *sums++ = int8_->integers(x + l, scale.to, static_cast<size_t>(std::min(piece, n - l)), out + l);
  return scale.from;
}

// Columns of out = y b, which are packed.
void CpuBackend::multiplyInt8(const Tensor& y, const Tensor& out, int64_t column, int64_t columns) {
  int64_t m = y.dim(0), n = y.dim(1), pieces = piecesOf(n), together = pieceOf(n);
  int64_t apart = apartOf(n);
  int64_t part = std::max(mostPacked / apart / 8 * 8, int64_t{512});
  for (int64_t row = 0; row < m; row += part) {
    int64_t rows = std::min(part, m - row);
    makeRoom(leftPairs_, rows * apart / 4);
    makeRoom(rowScales_, rows), makeRoom(rowSums_, rows * pieces);
    int8_t* left = reinterpret_cast<int8_t*>(leftPairs_.data());
    const bf16_t* x = y.as<bf16_t>() + row * n;
    pool_.ranges(rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        rowScales_[static_cast<size_t>(i)] = roundRow(x + i * n, n, left + i * apart, rowSums_.data() + i * pieces);
      }
    });
    int64_t at = row * n + column;
    QuadOutput whole{out.as() + at,        y.as<bf16_t>() + at, n,    rowScales_.data(),
                     columnScales_.data(), diagonal_.data(),    false};
    forTiles(pool_, rows, columns, quadColumns, [&](int64_t i, int64_t j, int64_t height, int64_t width) {
      for (int64_t p = 0; p < pieces; p++) {
        int64_t first = p * together, quads = std::min(together, quadsOf(n) - first);
        for (int64_t c = j; c < j + width; c += quadColumns) {
          const uint32_t* panel = rightPairs_.data() + (c / quadColumns * quadsOf(n) + first) * quadColumns;
          for (int64_t r = i; r < i + height; r += quadRows) {
            QuadOutput block = whole.at(r, c);
            block.columnScale += p * columns;
            block.adds = p > 0;
            int8_->quads(std::min(quadRows, i + height - r), std::min(quadColumns, j + width - c), quads,
                         left + r * apart + 4 * first, apart, 4, rowSums_.data() + r * pieces + p, pieces, panel,
                         block);
          }
        }
      }
    });
  }
}

// The columns of x and of d = y − x [tokens, n] as integers, by a scale for each piece of a column, and with them
// cross += xᵀ d and, of the upper triangle, gram += dᵀ d. Sums over a piece are exact.
void CpuBackend::differenceSumsInt8(Tensor x, Tensor y, Tensor cross, Tensor gram) {
  if (x.dtype != DType::bf16 || !int8_ || x.size() == 0) return differenceSums(x, y, cross, gram);
  constexpr int64_t quadsTogether = 128, tokensTogether = 4 * quadsTogether;
  int64_t tokens = x.dim(0), n = x.dim(1), panels = panelsOf(n), padded = panels * quadColumns;
  int64_t depth = std::max<int64_t>(mostPacked / (3 * padded) / tokensTogether, 1) * tokensTogether;
  for (int64_t first = 0; first < tokens; first += depth) {
    int64_t length = std::min(depth, tokens - first), quads = quadsOf(length), size = padded * quads;
    int64_t pieces = (length + tokensTogether - 1) / tokensTogether, scales = pieces * padded;
    makeRoom(leftPairs_, 2 * size), makeRoom(rightPairs_, size);  // x and d; d with 128 added
    makeRoom(rowScales_, scales), makeRoom(columnScales_, scales), makeRoom(rowSums_, 2 * scales);
    auto at = [&](int64_t column, int64_t quad) {
      return (column / quadColumns * quads + quad) * quadColumns + column % quadColumns;
    };
    pool_.run(panels * pieces, [&](int64_t task) {
      int64_t column = task / pieces * quadColumns, columns = std::min(quadColumns, n - column);
      int64_t piece = task % pieces, token = piece * tokensTogether, k = std::min(tokensTogether, length - token);
      int64_t from = (first + token) * n + column, scale = piece * padded + column;
      const bf16_t *own = x.as<bf16_t>() + from, *other = y.as<bf16_t>() + from;
      uint32_t peaks[2 * quadColumns];
      float factors[2 * quadColumns];
      int8_->differencePeaks(own, other, n, k, columns, peaks, peaks + quadColumns);
      for (int64_t side : {0, 1})
        for (int64_t j = 0; j < columns; j++) {
          Scale found(std::bit_cast<float>(peaks[side * quadColumns + j]));
          factors[side * quadColumns + j] = found.to;
          (side == 0 ? rowScales_ : columnScales_)[static_cast<size_t>(scale + j)] = found.from;
        }
      uint32_t* left = leftPairs_.data() + at(column, piece * quadsTogether);
      int8_->packDifferences(own, other, n, k, columns,
                             {factors, factors + quadColumns, left, gram.defined() ? left + size : nullptr,
                              rightPairs_.data() + at(column, piece * quadsTogether), rowSums_.data() + scale,
                              rowSums_.data() + scales + scale});
    });
    auto multiply = [&](const Tensor& out, bool squares, int64_t i, int64_t rows, int64_t j, int64_t columns) {
      const uint32_t* left = leftPairs_.data() + (squares ? size : 0);
      const int32_t* sums = rowSums_.data() + (squares ? scales : 0);
      const float *rowScales = (squares ? columnScales_ : rowScales_).data(), *columnScales = columnScales_.data();
      for (int64_t piece = 0, quad = 0; piece < pieces; piece++, quad += quadsTogether)
        for (int64_t c = j, width; c < j + columns; c += width) {
          width = std::min(quadColumns - c % quadColumns, j + columns - c);
          for (int64_t r = i; r < i + rows; r += quadRows)
            int8_->quads(std::min(quadRows, i + rows - r), width, std::min(quadsTogether, quads - quad),
                         reinterpret_cast<const int8_t*>(left + at(r, quad)), sizeof *left, quadColumns * sizeof *left,
                         sums + piece * padded + r, 1, rightPairs_.data() + at(c, quad),
                         {out.as() + r * n + c, nullptr, n, rowScales + piece * padded + r,
                          columnScales + piece * padded + c, nullptr, true});
        }
    };
    if (cross.defined())
      forTiles(pool_, n, n, quadColumns, [&](int64_t i, int64_t j, int64_t rows, int64_t columns) {
        multiply(cross, false, i, rows, j, columns);
      });
    if (gram.defined())
      forTriangle(pool_, n, quadColumns, [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
        multiply(gram, true, i, rows, j, columns);
      });
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

// Of a layer's rows: many enough to read packed columns seldom, few enough for all threads.
int64_t CpuBackend::stripeRows(int64_t rows) const {
  int64_t height = 48;
  while (height > quadRows && (rows + height - 1) / height < pool_.enoughTasks()) height -= quadRows;
  return height;
}

// One iteration of ADMM on rows of [rows, n], to which all of `out` points: but for y and the scales, which are made
// here, and those of the packed operator. The mask stays.
void CpuBackend::updateStripe(int64_t rows, int64_t n, QuadUpdate out) {
  thread_local Lines<bf16_t> y;
  thread_local Lines<int8_t> left;
  thread_local Lines<float> scales;
  thread_local Lines<int32_t> sums;
  int64_t apart = apartOf(n);
  makeRoom(y, rows * n), makeRoom(left, rows * apart), makeRoom(scales, rows), makeRoom(sums, rows);
  for (int64_t i = 0; i < rows; i++) {
    bf16_t* row = y.data() + i * n;
    size_t count = static_cast<size_t>(n), at = static_cast<size_t>(i);
    kernels_.pruning.admmY16(out.base + i * n, out.state + i * n, out.mask + i * n, row, count);
    scales[at] = roundRow(row, n, left.data() + i * apart, sums.data() + i);
  }
  out.y = y.data(), out.yLd = n;
  out.rowScale = scales.data(), out.columnScale = columnScales_.data(), out.diagonal = diagonal_.data();
  for (int64_t j = 0; j < n; j += quadColumns) {
    const uint32_t* panel = rightPairs_.data() + j * quadsOf(n);
    for (int64_t i = 0; i < rows; i += quadRows)
      int8_->update(std::min(quadRows, rows - i), std::min(quadColumns, n - j), quadsOf(n), left.data() + i * apart,
                    apart, sums.data() + i, panel, out.at(i, j));
  }
}

}  // namespace alps
