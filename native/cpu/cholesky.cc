// Blocked Cholesky factor and inverse, in place, of the kernels' own products: what is multiplied is packed once a step
// and its tiles are small. Inverted diagonal blocks stand in place of triangular solves.
//
// All of it are loops over block columns k. A step packs a panel [block, n] and adds ± panelᵀ · panel to a triangle,
// tile by tile. The tiles of all steps are one list of tasks: a task waits for those that it needs, which stand before
// it in the list, so that no thread waits at the end of a step. Of several matrices the tasks take turns: the diagonal
// blocks, which all else waits for, are then no longer one behind the other. Bounds of tiles depend on n only.
#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <thread>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/lines.h"

namespace alps {

void mirrorTriangle(ThreadPool& pool, const Kernels& kernels, float* a, int64_t n, bool fromLower);  // cpu/gram.cc
void sumSquares(ThreadPool& pool, const Kernels& kernels, const float* x, int64_t rows, int64_t n,
                double* out);  // cpu/elementwise.cc

namespace {

constexpr int64_t group = panelColumns, lanes = 16;  // columns of a panel that lie together; of a cut on the diagonal

// Width of a panel: narrow ones leave less work outside the products, wide ones pass over the matrix less often.
constexpr int64_t largestBlock = 192;
int64_t blockFor(int64_t n) { return n <= 768 ? 48 : n <= 4096 ? 96 : largestBlock; }

constexpr int64_t rowsTogether = 16;  // of a task that moves rows

// out [rows, columns] = alpha x b for a lower triangle x [rows, rows] with zeros above and a panel b.
void multiplyTriangle(const FactorKernels& kernels, int64_t rows, int64_t columns, const float* x, int64_t ldx,
                      const float* panel, float alpha, float* out, int64_t ldOut) {
  constexpr int64_t step = 8;
  for (int64_t r = 0; r < rows; r += step) {
    int64_t height = std::min(step, rows - r);
    kernels.product(height, columns, r + height, x + r * ldx, ldx, 1, panel, alpha, false, out + r * ldOut, ldOut);
  }
}

// Row b of the inverse x of a lower triangle l(i, j) at l + i rowStride + j columnStride, left of its diagonal block
// [size, size], which is done: −x_bb Σ_p l_bp x_p. x has rows of ldx.
void completeRow(const FactorKernels& kernels, const float* l, int64_t rowStride, int64_t columnStride, float* x,
                 int64_t ldx, int64_t b, int64_t size, float* scratch) {
  float* sum = scratch + b * group;
  for (int64_t j = 0; j < b; j += group) {
    int64_t columns = std::min(group, b - j);
    kernels.pack(x + j * ldx + j, ldx, b - j, columns, scratch, false);
    kernels.product(size, columns, b - j, l + b * rowStride + j * columnStride, rowStride, columnStride, scratch, 1,
                    false, sum, group);
    multiplyTriangle(kernels, size, columns, x + b * ldx + b, ldx, sum, -1, x + b * ldx + j, ldx);
  }
}

// Blocks of a diagonal block: groups, and leaves in a group.
int64_t stepFor(int64_t n) { return n > group ? group : leafRows; }

// x [n, n], zero, := inverse of the lower triangular l. scratch holds n · group numbers, rounded up to whole groups.
void invertBlock(const FactorKernels& kernels, const float* l, int64_t ldl, float* x, int64_t ldx, int64_t n,
                 float* scratch) {
  if (n <= leafRows) {
    if (kernels.invertLeaf(l, ldl, 1, x, ldx, n))
      fail("NOT_POSITIVE_DEFINITE", "The Cholesky factor has a zero on its diagonal");
    return;
  }
  for (int64_t b = 0, step = stepFor(n); b < n; b += step) {
    int64_t size = std::min(step, n - b);
    invertBlock(kernels, l + b * ldl + b, ldl, x + b * ldx + b, ldx, size, scratch);
    completeRow(kernels, l, ldl, 1, x, ldx, b, size, scratch);
  }
}

// Upper triangle of u [n, n] := its upper factor, x [n, n], zero, := the inverse of that one's lower transpose; both
// have rows of ld. Returns the failing pivot, counted from 1, or 0.
int64_t factorBlock(const FactorKernels& kernels, float* u, float* x, int64_t ld, int64_t n, float* scratch) {
  if (n <= leafRows) {
    int64_t pivot = kernels.factorLeaf(u, ld, n);
    return pivot ? pivot : kernels.invertLeaf(u, 1, ld, x, ld, n);
  }
  for (int64_t b = 0, step = stepFor(n); b < n; b += step) {
    int64_t size = std::min(step, n - b), next = b + size;
    float *row = u + b * ld, *inverse = x + b * (ld + 1);
    if (int64_t pivot = factorBlock(kernels, row + b, inverse, ld, size, scratch)) return b + pivot;
    completeRow(kernels, u, 1, ld, x, ld, b, size, scratch);
    for (int64_t j = next; j < n; j += group) {
      int64_t columns = std::min(group, n - j);
      kernels.pack(row + j, ld, size, columns, scratch, false);
      multiplyTriangle(kernels, size, columns, inverse, ld, scratch, 1, row + j, ld);
      kernels.pack(row + j, ld, size, columns, scratch, false);
      for (int64_t i = next; i < j + columns; i += step) {
        int64_t skip = std::max<int64_t>(0, i - j);
        kernels.product(std::min(step, n - i), columns - skip, size, row + i, 1, ld, scratch + skip, -1, true,
                        u + i * ld + j + skip, ld);
      }
    }
  }
  return 0;
}

using Counter = std::atomic<int32_t>;

// A task of step k: a part of its panel, block columns [from, to), or those tiles of block row `row`.
struct Task {
  enum Kind : int32_t { diagonal, panel, update } kind;
  int32_t k, row, from, to;
};

// The tasks of all steps and how far they are. Each needs earlier ones only.
class Steps {
 public:
  virtual ~Steps() = default;

  int64_t tasks() const { return static_cast<int64_t>(tasks_.size()); }

  // Runs a task, or nothing after one that failed: the tasks of other matrices go on.
  void run(int64_t index) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      runTask(tasks_[static_cast<size_t>(index)]);
    } catch (...) {
      if (!taken_.test_and_set()) failure_ = std::current_exception();
      failed_ = true;
    }
  }

  // Throws what a task threw, when all have run.
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 protected:
  Steps(const FactorKernels& kernels, float* a, int64_t n, bool upper)
      : kernels_(kernels),
        a_(a),
        n_(n),
        upper_(upper),
        block_(std::min((n + group - 1) / group * group, blockFor(n))),
        count_((n + block_ - 1) / block_),
        panelSize_((n + group - 1) / group * group * block_),
        panels_(static_cast<size_t>(2 * panelSize_)),
        inverses_(static_cast<size_t>(count_ * block_ * block_)),
        diagonals_(static_cast<size_t>(count_)),
        columns_(static_cast<size_t>(count_)),
        updated_(static_cast<size_t>(count_)),
        tiles_(static_cast<size_t>(count_ * count_)),
        updates_(static_cast<size_t>(count_)) {}

  // Makes the inverse of diagonal block k.
  virtual void diagonal(int64_t k) = 0;
  // Makes the panel of step k at block column j.
  virtual void fill(int64_t k, int64_t j) = 0;

  int64_t block() const { return block_; }
  int64_t count() const { return count_; }
  int64_t widthOf(int64_t k) const { return std::min(block_, n_ - k * block_); }
  // Zero until the block is inverted.
  float* inverse(int64_t k) { return inverses_.data() + k * block_ * block_; }
  // Step k's panel from a column on that begins a group: [block, group] for each group.
  float* panel(int64_t k, int64_t column) { return panels_.data() + k % 2 * panelSize_ + column * block_; }

  void add(Task::Kind kind, int64_t k, int64_t row, int64_t from, int64_t to) {
    const int64_t most = std::max<int64_t>(1, 192 / block_);  // blocks that make up for a task's cost
    for (; from < to; from += most) {
      auto number = [](int64_t value) { return static_cast<int32_t>(value); };
      tasks_.push_back({kind, number(k), number(row), number(from), number(std::min(to, from + most))});
      if (kind == Task::update) updates_[static_cast<size_t>(k)]++;
    }
  }

  const FactorKernels& kernels_;
  float* a_;
  int64_t n_;

 private:
  void runTask(const Task& task) {
    if (task.kind == Task::diagonal) {
      for (int64_t j = task.from; j < task.to; j++) {
        if (upper_ && !wait(tile(j, j), j)) return;
        diagonal(j);
        diagonals_[static_cast<size_t>(j)].store(1, std::memory_order_release);
      }
    } else if (task.kind == Task::panel) {
      if (!wait(diagonals_[static_cast<size_t>(task.k)], 1)) return;
      // The panel before the last lay here.
      if (task.k > 1 && !wait(updated_[static_cast<size_t>(task.k - 2)], updates_[static_cast<size_t>(task.k - 2)]))
        return;
      for (int64_t j = task.from; j < task.to; j++) {
        if (j != task.k && (upper_ || j < task.k) && !wait(tile(task.k, j), task.k)) return;
        // A later step's part must not pass for this one's.
        if (!wait(columns_[static_cast<size_t>(j)], task.k)) return;
        fill(task.k, j);
        columns_[static_cast<size_t>(j)].store(static_cast<int32_t>(task.k + 1), std::memory_order_release);
      }
    } else {
      if (!wait(columns_[static_cast<size_t>(task.row)], task.k + 1)) return;
      for (int64_t j = task.from; j < task.to; j++) {
        bool isFirst = !upper_ && (task.k == j || task.k == task.row);
        if (!wait(columns_[static_cast<size_t>(j)], task.k + 1)) return;
        if (!isFirst && !wait(tile(task.row, j), task.k)) return;
        update(task.k, task.row, j, !isFirst);
        tile(task.row, j).store(static_cast<int32_t>(task.k + 1), std::memory_order_release);
      }
      updated_[static_cast<size_t>(task.k)].fetch_add(1, std::memory_order_release);
    }
  }

  Counter& tile(int64_t i, int64_t j) { return tiles_[static_cast<size_t>(i * count_ + j)]; }

  // Whether it came to `least`; false after a failure.
  bool wait(const Counter& counter, int64_t least) const {
    for (int i = 0; counter.load(std::memory_order_acquire) < least; i++) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      throwIfCancelled();
      if (i > 1000) std::this_thread::yield();
    }
    return true;
  }

  // Tile (i, j) of the triangle: = panelᵀ panel, or += it, or −= it for the upper one. Of a tile on the diagonal, the
  // triangle and some more.
  void update(int64_t k, int64_t i, int64_t j, bool adds) {
    int64_t depth = widthOf(k), rowEnd = i * block_ + widthOf(i), columnEnd = j * block_ + widthOf(j);
    float alpha = upper_ ? -1 : 1;
    for (int64_t column = j * block_; column < columnEnd; column += group) {
      int64_t columns = std::min(group, columnEnd - column);
      const float* right = panel(k, column);
      int64_t begin = upper_ ? i * block_ : std::max(i * block_, column);
      int64_t end = upper_ ? std::min(rowEnd, column + group) : rowEnd;
      for (int64_t row = begin; row < end; row += group) {
        const float* left = panel(k, row);
        int64_t rows = std::min(group, rowEnd - row), step = row == column ? lanes : rows;
        for (int64_t r = 0; r < rows; r += step) {
          int64_t skip = row == column && upper_ ? r : 0, reach = row == column && !upper_ ? r + step : columns;
          kernels_.product(std::min(step, rows - r), std::min(reach, columns) - skip, depth, left + r, 1, group,
                           right + skip, alpha, adds, a_ + (row + r) * n_ + column + skip, n_);
        }
      }
    }
  }

  bool upper_;
  int64_t block_, count_, panelSize_;
  Lines<float> panels_, inverses_;
  std::vector<Counter> diagonals_, columns_, updated_, tiles_;  // steps done; of updated_, an update's tasks
  std::vector<int32_t> updates_;                                // tasks of an update
  std::vector<Task> tasks_;
  std::atomic<bool> failed_{false};
  std::atomic_flag taken_;      // whether failure_ is
  std::exception_ptr failure_;  // of the first task that threw
};

// Of the upper triangle, row by row of U = Lᵀ; each block of it is turned to its place below the diagonal when it is
// done. fromEnd: rows and columns are counted from the end in what is told of a failure.
class Factoring final : public Steps {
 public:
  Factoring(const FactorKernels& kernels, float* a, int64_t n, bool fromEnd)
      : Steps(kernels, a, n, true),
        fromEnd_(fromEnd),
        square_(static_cast<size_t>(block() * block())),
        scratch_(static_cast<size_t>(block() * group)) {
    for (int64_t k = 0; k < count(); k++) {
      if (k == 0) add(Task::diagonal, k, k, k, k + 1);
      add(Task::panel, k, k, k + 1, count());
      for (int64_t i = k + 1; i < count(); i++) {
        if (i == k + 1) {  // first what the next step waits for
          add(Task::update, k, i, i, i + 1);
          add(Task::diagonal, i, i, i, i + 1);
        }
        add(Task::update, k, i, i == k + 1 ? i + 1 : i, count());
      }
    }
  }

 private:
  void turnDown(const float* from, int64_t ld, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    kernels_.turn(from, ld, rows, columns, a_ + column * n_ + row, n_, false);
  }

  void diagonal(int64_t k) override {
    int64_t at = k * block(), width = widthOf(k);
    float *corner = a_ + at * (n_ + 1), *u = square_.data();
    for (int64_t i = 0; i < width; i++) std::copy_n(corner + i * n_, width, u + i * width);
    if (int64_t pivot = factorBlock(kernels_, u, inverse(k), width, width, scratch_.data()))
      fail("NOT_POSITIVE_DEFINITE", "The matrix [", n_, ", ", n_, "] is not positive definite: pivot ",
           fromEnd_ ? n_ + 1 - (at + pivot) : at + pivot);
    for (int64_t i = 0; i < width; i++) std::fill_n(u + i * width, i, 0.0f);
    turnDown(u, width, width, width, at, at);
  }

  void fill(int64_t k, int64_t j) override {
    int64_t at = k * block(), width = widthOf(k), end = j * block() + widthOf(j);
    alignas(64) float packed[largestBlock * group];
    for (int64_t column = j * block(); column < end; column += group) {
      int64_t columns = std::min(group, end - column);
      float *from = a_ + at * n_ + column, *out = panel(k, column);
      kernels_.pack(from, n_, width, columns, packed, true);
      multiplyTriangle(kernels_, width, columns, inverse(k), width, packed, 1, out, group);
      turnDown(out, group, width, columns, at, column);
    }
  }

  bool fromEnd_;
  Lines<float> square_, scratch_;  // of the one diagonal block at a time
};

// With X = L⁻¹, in place: before step k the rows from k on hold L, where block columns left of k hold M = L X (its sum
// over the rows done) instead, and the rows above k hold X, or the sum of XᵀX over the rows done. Row k of X, which is
// −Ldiag⁻¹ M left of the diagonal and Ldiag⁻¹ on it, then completes: it is stored, or its outer product with itself
// goes to the rows above, and its product with column k of L goes to the rows below.
class Inverting final : public Steps {
 public:
  Inverting(const FactorKernels& kernels, float* a, int64_t n, bool squares)
      : Steps(kernels, a, n, false), squares_(squares) {
    add(Task::diagonal, 0, 0, 0, count());
    for (int64_t k = 0; k < count(); k++) {
      add(Task::panel, k, k, 0, count());
      if (k + 1 < count()) add(Task::update, k, k + 1, 0, k + 1);  // first what the next step waits for
      for (int64_t i = squares ? 0 : k + 2; i < count(); i++)
        if (i != k + 1) add(Task::update, k, i, 0, std::min(i, k) + 1);
    }
  }

 private:
  void diagonal(int64_t k) override {
    alignas(64) float scratch[largestBlock * group];
    int64_t width = widthOf(k);
    invertBlock(kernels_, a_ + k * block() * (n_ + 1), n_, inverse(k), width, width, scratch);
  }

  // The panel is row k of X, then column k of L turned.
  void fill(int64_t k, int64_t j) override {
    int64_t at = k * block(), width = widthOf(k), end = j * block() + widthOf(j);
    alignas(64) float packed[largestBlock * group];
    for (int64_t column = j * block(); column < end; column += group) {
      int64_t columns = std::min(group, end - column);
      float* out = panel(k, column);
      if (j < k) {
        kernels_.pack(a_ + at * n_ + column, n_, width, columns, packed, false);
        multiplyTriangle(kernels_, width, columns, inverse(k), width, packed, -1, out, group);
      } else if (j == k) {
        kernels_.pack(inverse(k) + column - at, width, width, columns, out, false);
      } else {
        kernels_.turn(a_ + column * n_ + at, n_, columns, width, out, group, false);
      }
      if (squares_ || j > k) continue;
      for (int64_t r = 0; r < width; r++) std::copy_n(out + r * group, columns, a_ + (at + r) * n_ + column);
    }
  }

  bool squares_;
};

constexpr int64_t mostTogether = 4;  // matrices; each has panels of its own

// Work (Factoring or Inverting) of matrices [count, n, n], which lie one behind the other; their tasks take turns. Of
// several that fail the first is told.
template <typename Work>
void runTogether(ThreadPool& pool, const FactorKernels& kernels, float* a, int64_t count, int64_t n, bool how) {
  if (n == 0) return;
  for (int64_t first = 0; first < count; first += mostTogether) {
    const int64_t together = std::min(mostTogether, count - first);
    std::deque<Work> works;
    for (int64_t i = first; i < first + together; i++) works.emplace_back(kernels, a + i * n * n, n, how);
    pool.run(together * works.front().tasks(),
             [&](int64_t index) { works[static_cast<size_t>(index % together)].run(index / together); });
    for (const Work& work : works) work.rethrow();
  }
}

}  // namespace

void CpuBackend::cholesky(Tensor matrices) {
  runTogether<Factoring>(pool_, kernels_.factor, matrices.as(), matrices.matrices(), matrices.columns(), false);
}

void CpuBackend::choleskyInverse(Tensor factors, bool /* split */) {
  const int64_t n = factors.columns();
  if (n == 0) return;
  runTogether<Inverting>(pool_, kernels_.factor, factors.as(), factors.matrices(), n, true);
  for (int64_t i = 0; i < factors.matrices(); i++) mirrorTriangle(pool_, kernels_, factors.as() + i * n * n, n, true);
}

// With J the turn of rows and columns, J a J = C Cᵀ gives a⁻¹ = L Lᵀ for L = J C⁻ᵀ J, which is lower as C is: half the
// operations of an inverse with its own factor.
void CpuBackend::inverseFactor(Tensor matrix) {
  float* a = matrix.as();
  int64_t n = matrix.dim(0);
  if (n == 0) return;
  auto turn = [&] {  // row i and row n − 1 − i change places, each from its end
    pool_.ranges((n + 1) / 2, rowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        float *row = a + i * n, *other = a + (n - 1 - i) * n;
        if (row == other)
          std::reverse(row, row + n);
        else
          for (int64_t j = 0; j < n; j++) std::swap(row[j], other[n - 1 - j]);
      }
    });
  };
  turn();
  runTogether<Factoring>(pool_, kernels_.factor, a, 1, n, true);
  runTogether<Inverting>(pool_, kernels_.factor, a, 1, n, false);
  turn();
  mirrorTriangle(pool_, kernels_, a, n, false);
  pool_.ranges(n, rowsTogether, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::fill(a + i * (n + 1) + 1, a + (i + 1) * n, 0.0f);
  });
}

// The sums of the squares of L⁻¹'s columns.
void CpuBackend::inverseDiagonal(Tensor matrix, Tensor out) {
  int64_t n = matrix.dim(0);
  if (n == 0) return;
  runTogether<Factoring>(pool_, kernels_.factor, matrix.as(), 1, n, false);
  runTogether<Inverting>(pool_, kernels_.factor, matrix.as(), 1, n, false);
  std::vector<double> sums(static_cast<size_t>(n));
  sumSquares(pool_, kernels_, matrix.as(), n, n, sums.data());
  std::transform(sums.begin(), sums.end(), out.as(), [](double sum) { return static_cast<float>(sum); });
}

}  // namespace alps
