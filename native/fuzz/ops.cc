// Every op with its signature (arguments.cc), and what must hold behind those that choose or count.
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace alps::fuzz {

namespace {

void insist(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "A result is wrong: expected that %s\n", what);
  std::abort();
}

int64_t kept(const Tensor& mask, int64_t begin, int64_t end) {
  return std::count_if(mask.as<uint8_t>() + begin, mask.as<uint8_t>() + end, [](uint8_t bit) { return bit != 0; });
}

void isMask(const Tensor& mask) {
  insist(std::all_of(mask.as<uint8_t>(), mask.as<uint8_t>() + mask.size(), [](uint8_t bit) { return bit <= 1; }),
         "a mask is 0 or 1");
}

void keepsExactly(const Tensor& mask, const Pattern& pattern, const Counts& rowEnds, const Counts& keep) {
  isMask(mask);
  int64_t begin = 0;
  for (int64_t at = 0; pattern.group > 0 && at < mask.size(); at += pattern.group)
    insist(kept(mask, at, at + pattern.group) == pattern.kept, "a group keeps its share");
  for (size_t s = 0; pattern.group == 0 && s < rowEnds.size(); s++) {
    int64_t end = static_cast<int64_t>(rowEnds[s]) * mask.dim(1);
    insist(kept(mask, begin, end) == static_cast<int64_t>(keep[s]), "a segment keeps what it was told to");
    begin = end;
  }
}

bool apart(std::initializer_list<Tensor> tensors) {
  for (auto a = tensors.begin(); a != tensors.end(); a++)
    for (auto b = a + 1; b != tensors.end(); b++)
      if (a->storage == b->storage) return false;
  return true;
}

// Σ |a| |b| of float32 products can be told from a wrong result only where the numbers are tame.
bool tame(const Tensor& tensor) {
  test::Numbers numbers = test::numbersOf(tensor);
  return std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::fabs(x) <= 1000; });
}

using Call = void (*)(Backend&, Arguments&);

// Calls an op; `verify` gets its arguments where it has worked.
template <auto Method, auto Check, typename Verify>
void call(Backend& backend, Arguments& from, const char* signature, const Verify& verify) {
  Op<Method, Check> op;
  if (op.read(from, signature) && op.run(backend)) std::apply(verify, op.arguments);
}

template <auto Method, auto Check>
void call(Backend& backend, Arguments& from, const char* signature) {
  call<Method, Check>(backend, from, signature, [](const auto&...) {});
}

void project(Backend& backend, Arguments& from) {
  call<&Backend::project, check::project>(
      backend, from, "f:m,n b:m,n",
      [](const Tensor&, const Tensor& mask, const Pattern& pattern, const Counts& rowEnds, const Counts& keep) {
        keepsExactly(mask, pattern, rowEnds, keep);
      });
}

void projectRows(Backend& backend, Arguments& from) {
  call<&Backend::projectRows, check::projectRows>(
      backend, from, "f:m,n b:m,n #n", [](const Tensor&, const Tensor& mask, int64_t keep) {
        for (int64_t i = 0; i < mask.dim(0); i++)
          insist(kept(mask, i * mask.dim(1), (i + 1) * mask.dim(1)) == keep, "a row keeps what it was told to");
      });
}

// Any finite number to one that is allowed.
void toRelaxation(double& number) { number = 1 + 0.9 * std::sin(number); }

void admmUpdate(Backend& backend, Arguments& from) {
  Op<&Backend::admmUpdate, check::admmUpdate> op;
  if (!op.read(from, "f:m,n f:m,n f:m,n b:m,n h:m,n")) return;
  toRelaxation(std::get<5>(op.arguments));
  if (!op.run(backend)) return;
  std::apply(
      [](const Tensor& b, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y, double,
         const Pattern& pattern, const Counts& rowEnds, const Counts& keep) {
        if (apart({b, base, state, y})) keepsExactly(mask, pattern, rowEnds, keep);
      },
      op.arguments);
}

template <auto Method, auto Check>
void admmIterate(Backend& backend, Arguments& from) {
  Op<Method, Check> op;
  bool right = op.read(from, "h:n,n f:m,n f:m,n f:m,n b:m,n h:m,n #w");
  toRelaxation(std::get<6>(op.arguments));
  std::get<10>(op.arguments) %= 4;  // any number of iterations is allowed: time is what it takes
  if (right) op.run(backend);
}

void sparseGpt(Backend& backend, Arguments& from) {
  call<&Backend::sparseGpt, check::sparseGpt>(
      backend, from, "f:m,n f:n,n b:m,n #n",
      [](const Tensor& weight, const Tensor& factor, const Tensor& mask, const Pattern& pattern, const Counts& rowEnds,
         const Counts& keep, int64_t) {
        if (apart({weight, factor})) keepsExactly(mask, pattern, rowEnds, keep);
      });
}

void dsnot(Backend& backend, Arguments& from) {
  Op<&Backend::dsnot, check::dsnot> op;
  if (!op.read(from, "f:m,n f:m,n f:n f:n b:m,n #w")) return;
  const Tensor& mask = std::get<4>(op.arguments);
  std::vector<int64_t> before;
  auto rowKeeps = [&](int64_t i) { return kept(mask, i * mask.dim(1), (i + 1) * mask.dim(1)); };
  for (int64_t i = 0; i < mask.dim(0); i++) before.push_back(rowKeeps(i));
  if (!op.run(backend)) return;
  for (int64_t i = 0; i < mask.dim(0); i++)
    insist(rowKeeps(i) == before[static_cast<size_t>(i)], "a row keeps as many weights as before");
}

void gemm(Backend& backend, Arguments& from) {
  call<&Backend::gemm, check::gemm>(
      backend, from, "h:m,k h:k,n o:m,n",
      [](const Tensor& a, const Tensor& b, const Tensor& out, bool transposeA, bool transposeB, double alpha,
         double beta, bool) {
        if (out.dtype != DType::f32 || beta != 0 || !apart({a, b, out}) || !tame(a) || !tame(b)) return;
        if (!(std::fabs(alpha) <= 100)) return;
        int64_t m = out.dim(0), n = out.dim(1), k = a.dim(transposeA ? 0 : 1);
        if (m * n * k > 4096) return;
        test::Numbers left = test::numbersOf(a), right = test::numbersOf(b), got = test::numbersOf(out);
        test::Numbers expected = test::product(left, right, m, n, k, transposeA, transposeB);
        for (double& x : left) x = std::fabs(x);
        for (double& x : right) x = std::fabs(x);
        test::Numbers bound = test::product(left, right, m, n, k, transposeA, transposeB);
        for (size_t i = 0; i < got.size(); i++)
          insist(std::fabs(got[i] - alpha * expected[i]) <= 1e-5 * std::fabs(alpha) * bound[i] + 1e-30,
                 "a product is that of float64");
      });
}

void transpose(Backend& backend, Arguments& from) {
  call<&Backend::transpose, check::transpose>(backend, from, "x:m,n x:n,m", [](const Tensor& a, const Tensor& out) {
    size_t width = alps::sizeOf(a.dtype);
    for (int64_t i = 0; a.storage != out.storage && i < a.dim(0); i++)
      for (int64_t j = 0; j < a.dim(1); j++)
        insist(std::memcmp(a.as<char>() + static_cast<size_t>(i * a.dim(1) + j) * width,
                           out.as<char>() + static_cast<size_t>(j * a.dim(0) + i) * width, width) == 0,
               "a transposed element is the same");
  });
}

void maskChanges(Backend& backend, Arguments& from) {
  call<&Backend::maskChanges, check::maskChanges>(
      backend, from, "b:m,n b:m,n u:s", [](const Tensor& mask, const Tensor& previous, const Counts&, const Tensor&) {
        insist(test::bytesOf(mask) == test::bytesOf(previous), "the previous mask is the new one");
      });
}

void topExperts(Backend& backend, Arguments& from) {
  call<&Backend::topExperts, check::topExperts>(
      backend, from, "f:t,n u:t,e f:t,e", [](const Tensor& logits, const Tensor& ids, const Tensor&, bool) {
        int64_t k = ids.dim(1);
        for (int64_t t = 0; t < ids.dim(0); t++) {
          std::vector<uint32_t> row(ids.as<uint32_t>() + t * k, ids.as<uint32_t>() + (t + 1) * k);
          std::sort(row.begin(), row.end());
          insist(row.back() < logits.dim(1), "an expert is one of them");
          insist(std::adjacent_find(row.begin(), row.end()) == row.end(), "no expert is taken twice");
        }
      });
}

void attentionStep(Backend& backend, Arguments& from) {
  call<&Backend::attentionStep, check::attentionStep>(
      backend, from, "h:B,q h:B,v h:B,v h:T,v h:T,v h:B,q #D #l #w",
      [](const Tensor&, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values, const Tensor& out,
         int64_t, int64_t position, double, int64_t, double) {
        if (k.size() == 0 || !apart({k, v, keys, values, out})) return;
        auto holds = [&](const Tensor& cache, const Tensor& rows) {
          size_t bytes = static_cast<size_t>(rows.columns()) * alps::sizeOf(rows.dtype);
          for (int64_t i = 0, length = cache.rows() / rows.rows(); i < rows.rows(); i++)
            insist(std::memcmp(cache.as<char>() + static_cast<size_t>(i * length + position) * bytes,
                               rows.as<char>() + static_cast<size_t>(i) * bytes, bytes) == 0,
                   "a new key or value is kept as it is");
        };
        holds(keys, k), holds(values, v);
      });
}

void sample(Backend& backend, Arguments& from) {
  call<&Backend::sample, check::sample>(backend, from, "f:t,n d:t u:t",
                                        [](const Tensor& logits, const Tensor&, const Tensor& ids, double) {
                                          insist(std::all_of(ids.as<uint32_t>(), ids.as<uint32_t>() + ids.size(),
                                                             [&](uint32_t id) { return id < logits.dim(1); }),
                                                 "a drawn id is one of the vocabulary");
                                        });
}

#define OP(name, signature) \
  [](Backend& backend, Arguments& from) { call<&Backend::name, check::name>(backend, from, signature); }

constexpr Call ops[] = {
    project,
    projectRows,
    admmUpdate,
    admmIterate<&Backend::admmIterate, check::admmIterate>,
    admmIterate<&Backend::admmIterateInt8, check::admmIterateInt8>,
    sparseGpt,
    dsnot,
    gemm,
    transpose,
    maskChanges,
    topExperts,
    OP(int8Gemm, "h:m,n h:n,n f:m,n"),
    OP(fill, "y:m,n"),
    OP(copy, "y:m,n y:m,n"),
    OP(axpby, "h:m,n h:m,n"),
    OP(addBias, "h:m,n f:n"),
    OP(scaleRowsColumns, "f:m,n f:m f:n f:m,n"),
    OP(applyMask, "f:m,n b:m,n"),
    OP(nonZeroMask, "f:m,n b:m,n"),
    OP(countNonFinite, "y:m,n u:1"),
    OP(rowDots, "f:m,n f:m,n d:m"),
    OP(quadraticForms, "f:m,n f:n,n d:m"),
    OP(columnSums, "h:t,n d:n"),
    OP(differenceSquares, "h:t,n h:t,n d:n"),
    OP(gramAccumulate, "h:t,n f:n,n"),
    OP(differenceSums, "h:t,n h:t,n f:n,n f:n,n"),
    OP(differenceSumsInt8, "h:t,n h:t,n f:n,n f:n,n"),
    OP(symmetrize, "f:n,n"),
    OP(addDiagonal, "f:n,n"),
    OP(addToDiagonal, "f:n,n f:n"),
    OP(diagonal, "f:n,n f:n"),
    OP(cholesky, "f:k,n,n"),
    OP(choleskyInverse, "f:k,n,n"),
    OP(inverseFactor, "f:n,n"),
    OP(inverseDiagonal, "f:n,n f:n"),
    OP(admmStart, "f:m,n b:m,n f:m,n h:m,n"),
    OP(admmRescale, "f:m,n f:m,n b:m,n h:m,n"),
    OP(cgStart, "f:m,n b:m,n f:m,n d:m d:m"),
    OP(cgStep, "f:m,n b:m,n f:m,n f:m,n f:m,n d:m d:m u:1"),
    OP(cgOnSupport, "f:n,n b:m,n f:m,n f:m,n #n u:k"),
    OP(backsolve, "f:n,n f:m,n b:m,n f:m,n"),
    OP(embedding, "y:k,n u:t f:t,n"),
    OP(rmsNorm, "o:t,n f:n o:t,n"),
    OP(layerNorm, "o:t,n f:n f:n o:t,n"),
    OP(rope, "h:T,q f:p,a f:p,a #D #p"),
    OP(attention, "h:T,q h:T,v h:T,v h:T,q #D #p #w"),
    OP(gatedActivation, "h:t,n h:t,n h:t,n"),
    OP(activate, "h:t,n h:t,n"),
    OP(softCap, "f:t,n"),
    OP(gatherRows, "h:k,n u:t h:t,n"),
    OP(scatterAddRows, "o:t,n u:t f:t f:k,n"),
    OP(addTo, "o:t,n f:t,n"),
    OP(crossEntropy, "f:t,n u:t d:t"),
    OP(divergence, "f:t,n f:t,n d:t"),
    attentionStep,
    sample,
};
#undef OP

}  // namespace

void runOne(Backend& backend, Bytes& bytes, Arguments& arguments) {
  ops[bytes.byte() % std::size(ops)](backend, arguments);
}

}  // namespace alps::fuzz
