// Conversions, vector updates, masks, dot products.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {
constexpr int64_t grain = 1 << 16;  // elements a task
int64_t rowGrain(int64_t columns) { return std::max<int64_t>(1, grain / std::max<int64_t>(1, columns)); }
}  // namespace

void CpuBackend::fill(Tensor out, double value) {
  pool_.ranges(out.size(), grain, [&](int64_t begin, int64_t end) {
    size_t n = static_cast<size_t>(end - begin);
    float f = static_cast<float>(value);
    switch (out.dtype) {
      case DType::f32:
        std::fill_n(out.as<float>() + begin, n, f);
        break;
      case DType::f64:
        std::fill_n(out.as<double>() + begin, n, value);
        break;
      case DType::u32:
        std::fill_n(out.as<uint32_t>() + begin, n, static_cast<uint32_t>(value));
        break;
      case DType::u8:
        std::fill_n(out.as<uint8_t>() + begin, n, static_cast<uint8_t>(value));
        break;
      case DType::bf16: {
        bf16_t bits;
        kernels_.bf16FromF32(&f, &bits, 1);
        std::fill_n(out.as<bf16_t>() + begin, n, bits);
        break;
      }
      case DType::f16: {
        f16_t bits;
        kernels_.f16FromF32(&f, &bits, 1);
        std::fill_n(out.as<f16_t>() + begin, n, bits);
        break;
      }
    }
  });
}

void CpuBackend::copy(Tensor from, Tensor out) {
  pool_.ranges(out.size(), grain, [&](int64_t begin, int64_t end) {
    size_t n = static_cast<size_t>(end - begin);
    if (from.dtype == out.dtype) {
      size_t width = sizeOf(out.dtype);
      std::memcpy(out.as<char>() + begin * width, from.as<char>() + begin * width, n * width);
      return;
    }
    constexpr size_t piece = 1024;  // through float32, in a piece of stack
    float buffer[piece];
    for (size_t done = 0; done < n; done += piece) {
      size_t count = std::min(piece, n - done), at = static_cast<size_t>(begin) + done;
      float* f = out.dtype == DType::f32 ? out.as<float>() + at : buffer;
      switch (from.dtype) {
        case DType::f32:
          f = from.as<float>() + at;
          break;
        case DType::bf16:
          kernels_.f32FromBf16(from.as<bf16_t>() + at, f, count);
          break;
        case DType::f16:
          kernels_.f32FromF16(from.as<f16_t>() + at, f, count);
          break;
        default:
          std::copy_n(from.as<double>() + at, count, f);
          break;
      }
      switch (out.dtype) {
        case DType::bf16:
          kernels_.bf16FromF32(f, out.as<bf16_t>() + at, count);
          break;
        case DType::f16:
          kernels_.f16FromF32(f, out.as<f16_t>() + at, count);
          break;
        case DType::f64:
          std::copy_n(f, count, out.as<double>() + at);
          break;
        default:
          break;
      }
    }
  });
}

void CpuBackend::axpby(Tensor x, Tensor y, double alpha, double beta) {
  float a = static_cast<float>(alpha), b = static_cast<float>(beta);
  pool_.ranges(y.size(), grain, [&](int64_t begin, int64_t end) {
    if (y.dtype == DType::f32)
      return kernels_.axpby(x.as() + begin, y.as() + begin, a, b, static_cast<size_t>(end - begin));
    float from[1024], to[1024];
    for (int64_t at = begin; at < end; at += 1024) {
      size_t count = static_cast<size_t>(std::min<int64_t>(1024, end - at));
      kernels_.f32FromBf16(x.as<bf16_t>() + at, from, count);
      kernels_.f32FromBf16(y.as<bf16_t>() + at, to, count);
      kernels_.axpby(from, to, a, b, count);
      kernels_.bf16FromF32(to, y.as<bf16_t>() + at, count);
    }
  });
}

void CpuBackend::addTo(Tensor y, Tensor x) {
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    if (y.dtype == DType::f32)
      return kernels_.addVector(y.as() + begin, x.as() + begin, static_cast<size_t>(end - begin));
    float buffer[1024];
    for (int64_t at = begin; at < end; at += 1024) {
      size_t count = static_cast<size_t>(std::min<int64_t>(1024, end - at));
      kernels_.f32FromBf16(y.as<bf16_t>() + at, buffer, count);
      kernels_.addVector(buffer, x.as() + at, count);
    }
  });
}

void CpuBackend::addBias(Tensor x, Tensor bias) {
  int64_t n = x.columns();
  pool_.ranges(x.rows(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      if (x.dtype == DType::f32) {
        kernels_.addVector(bias.as(), x.as() + i * n, static_cast<size_t>(n));
        continue;
      }
      float buffer[1024];
      for (int64_t at = 0; at < n; at += 1024) {
        size_t count = static_cast<size_t>(std::min<int64_t>(1024, n - at));
        bf16_t* row = x.as<bf16_t>() + i * n + at;
        kernels_.f32FromBf16(row, buffer, count);
        kernels_.addVector(bias.as() + at, buffer, count);
        kernels_.bf16FromF32(buffer, row, count);
      }
    }
  });
}

void CpuBackend::scaleRowsColumns(Tensor a, Tensor row, Tensor column, Tensor out) {
  int64_t n = a.columns();
  pool_.ranges(a.rows(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      kernels_.scale(a.as() + i * n, row.defined() ? row.as()[i] : 1.0f, column.defined() ? column.as() : nullptr,
                     out.as() + i * n, static_cast<size_t>(n));
  });
}

void CpuBackend::applyMask(Tensor x, Tensor mask) {
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    kernels_.applyMask(x.as() + begin, mask.as<uint8_t>() + begin, static_cast<size_t>(end - begin));
  });
}

void CpuBackend::nonZeroMask(Tensor x, Tensor mask) {
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    kernels_.nonZeroMask(x.as() + begin, mask.as<uint8_t>() + begin, static_cast<size_t>(end - begin));
  });
}

void CpuBackend::countNonFinite(Tensor x, Tensor out) {
  std::atomic<uint64_t> total{0};
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    size_t n = static_cast<size_t>(end - begin);
    if (x.dtype == DType::f32)
      total += kernels_.countNonFiniteF32(x.as() + begin, n);
    else
      total += kernels_.countNonFinite16(x.as<uint16_t>() + begin, x.dtype == DType::bf16 ? 0x7f80 : 0x7c00, n);
  });
  uint64_t sum = *out.as<uint32_t>() + total.load();
  *out.as<uint32_t>() = static_cast<uint32_t>(std::min<uint64_t>(sum, UINT32_MAX));
}

void CpuBackend::rowDots(Tensor a, Tensor b, Tensor out) {
  int64_t n = a.columns();
  pool_.ranges(a.rows(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      out.as<double>()[i] = kernels_.dot(a.as() + i * n, b.as() + i * n, static_cast<size_t>(n));
  });
}

namespace {
// out[j] += what addRows(begin, count, sums) adds up of all rows, strip by strip and then in their order.
template <typename Rows>
void sumStrips(ThreadPool& pool, int64_t rows, int64_t n, double* out, const Rows& addRows) {
  constexpr int64_t mostStrips = 64;
  int64_t strip = std::max<int64_t>(128, (rows + mostStrips - 1) / mostStrips), strips = (rows + strip - 1) / strip;
  std::vector<double> sums(static_cast<size_t>(strips * n));
  pool.ranges(rows, strip, [&](int64_t begin, int64_t end) {
    addRows(begin, static_cast<size_t>(end - begin), sums.data() + begin / strip * n);
  });
  for (int64_t i = 0; i < strips; i++)
    for (int64_t j = 0; j < n; j++) out[j] += sums[static_cast<size_t>(i * n + j)];
}
}  // namespace

// out[j] += Σᵢ x[i, j]².
void sumSquares(ThreadPool& pool, const Kernels& kernels, const float* x, int64_t rows, int64_t n, double* out) {
  sumStrips(pool, rows, n, out, [&](int64_t row, size_t count, double* sums) {
    kernels.columnSquares(x + row * n, count, static_cast<size_t>(n), sums);
  });
}

void CpuBackend::columnSums(Tensor x, bool squares, Tensor out) {
  int64_t n = x.columns();
  if (x.dtype == DType::f32 && squares) return sumSquares(pool_, kernels_, x.as(), x.rows(), n, out.as<double>());
  sumStrips(pool_, x.rows(), n, out.as<double>(), [&](int64_t row, size_t rows, double* sums) {
    auto width = static_cast<size_t>(n);
    if (x.dtype == DType::f32)
      kernels_.columnSums(x.as() + row * n, rows, width, sums);
    else
      (squares ? kernels_.columnSquares16 : kernels_.columnSums16)(x.as<bf16_t>() + row * n, rows, width, sums);
  });
}

void CpuBackend::differenceSquares(Tensor x, Tensor y, Tensor out) {
  if (x.dtype != DType::bf16) return Backend::differenceSquares(x, y, out);
  int64_t n = x.columns();
  sumStrips(pool_, x.rows(), n, out.as<double>(), [&](int64_t row, size_t rows, double* sums) {
    kernels_.differenceSquares16(x.as<bf16_t>() + row * n, y.as<bf16_t>() + row * n, rows, static_cast<size_t>(n),
                                 sums);
  });
}

namespace {
constexpr int64_t square = 64;  // rows and columns that are turned together

// Through a copy with rows of another distance: those a power of two apart fall into the same few lines of the cache.
template <typename T>
void transposeRows(const T* a, int64_t m, int64_t n, int64_t row, int64_t rows, T* out) {
  T rowsOf[square][square + 1];
  for (int64_t column = 0; column < n; column += square) {
    int64_t columns = std::min(square, n - column);
    for (int64_t i = 0; i < rows; i++) std::copy_n(a + (row + i) * n + column, columns, rowsOf[i]);
    for (int64_t j = 0; j < columns; j++)
      for (int64_t i = 0; i < rows; i++) out[(column + j) * m + row + i] = rowsOf[i][j];
  }
}
}  // namespace

void CpuBackend::transpose(Tensor a, Tensor out) {
  int64_t m = a.dim(0), n = a.dim(1);
  bool past = m * n >= int64_t{1} << 20;
  pool_.ranges(m, square, [&](int64_t begin, int64_t end) {
    size_t width = sizeOf(a.dtype);
    if (width == 1)
      transposeRows(a.as<uint8_t>(), m, n, begin, end - begin, out.as<uint8_t>());
    else if (width == 2)
      transposeRows(a.as<uint16_t>(), m, n, begin, end - begin, out.as<uint16_t>());
    else if (width == 8)
      transposeRows(a.as<uint64_t>(), m, n, begin, end - begin, out.as<uint64_t>());
    else
      for (int64_t column = 0; column < n; column += square)
        kernels_.factor.turn(a.as() + begin * n + column, n, end - begin, std::min(square, n - column),
                             out.as() + column * m + begin, m, past);
  });
}

}  // namespace alps
