// Every complaint of core/check.cc: the right call passes, each wrong one is refused in words.
#include "core/check.h"

#include <doctest/doctest.h>

#include <limits>

#include "support.h"

using namespace alps;
using namespace alps::test;

namespace {

constexpr double notANumber = std::numeric_limits<double>::quiet_NaN(),
                 infinity = std::numeric_limits<double>::infinity();

Tensor f32(const Shape& shape) { return zeros(DType::f32, shape); }
Tensor bf16(const Shape& shape) { return zeros(DType::bf16, shape); }
Tensor f64(const Shape& shape) { return zeros(DType::f64, shape); }
Tensor u32(const Shape& shape) { return zeros(DType::u32, shape); }
Tensor u8(const Shape& shape) { return zeros(DType::u8, shape); }
const Tensor none;

// The call is refused, and the message has these words.
template <typename Call>
void refused(const std::string& words, const Call& call) {
  std::string message = messageOf(call);
  CAPTURE(words);
  CAPTURE(message);
  CHECK(codeOf(call) == "INVALID_ARGUMENT");
  CHECK(message.find(words) != std::string::npos);
}

#define REFUSED(words, ...) refused(words, [&] { check::__VA_ARGS__; })
#define PASSES(...) CHECK(messageOf([&] { check::__VA_ARGS__; }) == "")

const Tensor mn = f32({2, 3}), nm = f32({3, 2}), nn = f32({3, 3}), mask = u8({2, 3});
const Pattern free_{};

}  // namespace

TEST_CASE("elementwise ops") {
  PASSES(fill(mn, notANumber));
  PASSES(fill(u8({1}), 255));
  REFUSED("a tensor for out but received nothing", fill(none, 1));
  REFUSED("from 0 to 255 for value", fill(u8({1}), 256));
  REFUSED("for value", fill(u32({1}), -1));
  REFUSED("for value", fill(u32({1}), notANumber));
  PASSES(copy(mn, bf16({6})));
  REFUSED("for from but received nothing", copy(none, none));
  REFUSED("for out but received nothing", copy(f32({}), none));
  REFUSED("same number of elements", copy(mn, f32({7})));
  REFUSED("floating-point dtypes", copy(mn, u8({6})));
  PASSES(axpby(mn, mn, 1, 1));
  REFUSED("for x", axpby(none, mn, 1, 1));
  PASSES(axpby(bf16({2, 3}), bf16({2, 3}), 1, 1));
  REFUSED("dtype float32 for y", axpby(mn, bf16({2, 3}), 1, 1));
  REFUSED("dtype float32 or bfloat16 for x", axpby(u8({2, 3}), mn, 1, 1));
  REFUSED("same shape for x and y", axpby(mn, nm, 1, 1));
  PASSES(addBias(bf16({2, 3}), f32({3})));
  REFUSED("float32 or bfloat16 for x", addBias(u8({2, 3}), f32({3})));
  REFUSED("3 elements for bias", addBias(mn, f32({2})));
  PASSES(scaleRowsColumns(mn, none, none, mn));
  REFUSED("2 elements for row", scaleRowsColumns(mn, f32({3}), none, mn));
  REFUSED("3 elements for column", scaleRowsColumns(mn, none, f32({2}), mn));
  REFUSED("same shape for out and a", scaleRowsColumns(mn, none, none, nm));
  PASSES(applyMask(mn, mask));
  REFUSED("dtype uint8 for mask", applyMask(mn, mn));
  REFUSED("same shape for mask and x", nonZeroMask(nm, mask));
  PASSES(countNonFinite(zeros(DType::f16, {4}), u32({1})));
  REFUSED("for x but received nothing", countNonFinite(none, u32({1})));
  REFUSED("float16 for x", countNonFinite(f64({4}), u32({1})));
  REFUSED("1 elements for out", countNonFinite(mn, u32({2})));
  PASSES(rowDots(mn, mn, f64({2})));
  REFUSED("same shape for a and b", rowDots(mn, nm, f64({2})));
  REFUSED("2 elements for out", rowDots(mn, mn, f64({3})));
  PASSES(columnSums(mn, false, f64({3})));
  REFUSED("matrix for x", columnSums(f32({6}), false, f64({6})));
  REFUSED("3 elements for out", columnSums(mn, true, f64({2})));
  PASSES(differenceSquares(mn, mn, f64({3})));
  REFUSED("float32 for y", differenceSquares(mn, bf16({2, 3}), f64({3})));
  REFUSED("y", differenceSquares(mn, nn, f64({3})));
  REFUSED("3 elements for out", differenceSquares(mn, mn, f64({2})));
  PASSES(transpose(mask, u8({3, 2})));
  REFUSED("one dtype", transpose(mn, none));
  REFUSED("out [n, m]", transpose(mn, mn));
}

TEST_CASE("products and square matrices") {
  PASSES(gemm(mn, nn, mn, false, false, 1, 1, true));
  PASSES(gemm(mn, nm, nn, true, true, 1, 0, false));
  REFUSED("one dtype for a and b", gemm(mn, none, mn, false, false, 1, 0));
  REFUSED("one dtype for a and b", gemm(mn, bf16({3, 3}), mn, false, false, 1, 0));
  REFUSED("matrix for b", gemm(mn, f32({9}), mn, false, false, 1, 0));
  REFUSED("op(b) [k, n]", gemm(mn, mn, mn, false, false, 1, 0));
  PASSES(int8Gemm(bf16({2, 3}), bf16({3, 3}), mn));
  REFUSED("dtype bfloat16 for a", int8Gemm(mn, nn, mn));
  REFUSED("dtype float32 for out", int8Gemm(bf16({2, 3}), bf16({3, 3}), bf16({2, 3})));
  REFUSED("one dtype for a and b", int8Gemm(bf16({2, 3}), nn, mn));
  REFUSED("square b", int8Gemm(bf16({2, 3}), bf16({3, 2}), f32({2, 2})));
  REFUSED("beta = 0", gemm(mn, nn, bf16({2, 3}), false, false, 1, 1));
  REFUSED("beta = 0", gemm(mn, nn, bf16({2, 3}), false, false, 1, notANumber));
  PASSES(gramAccumulate(bf16({2, 3}), nn));
  PASSES(differenceSums(mn, mn, nn, nn));
  PASSES(differenceSums(mn, mn, none, nn));
  PASSES(differenceSums(mn, mn, nn, none));
  REFUSED("neither", differenceSums(mn, mn, none, none));
  REFUSED("float32 for y", differenceSums(mn, bf16({2, 3}), nn, nn));
  REFUSED("y", differenceSums(mn, nn, nn, nn));
  REFUSED("cross [n, n]", differenceSums(nm, nm, nn, none));
  REFUSED("square matrix for cross", differenceSums(mn, mn, mn, nn));
  REFUSED("gram [n, n]", differenceSums(nm, nm, none, nn));
  REFUSED("gram [n, n]", gramAccumulate(nm, nn));
  REFUSED("square matrix for gram", gramAccumulate(mn, mn));
  PASSES(quadraticForms(mn, nn, f64({2})));
  REFUSED("matrix for a", quadraticForms(f32({3}), nn, f64({1})));
  REFUSED("square matrix for s", quadraticForms(mn, mn, f64({2})));
  REFUSED("s [n, n]", quadraticForms(nm, nn, f64({3})));
  REFUSED("2 elements for out", quadraticForms(mn, nn, f64({3})));
  REFUSED("dtype float64 for out", quadraticForms(mn, nn, f32({2})));
  PASSES(symmetrize(nn));
  REFUSED("square matrix for a", symmetrize(mn));
  REFUSED("square matrix for a", addDiagonal(mn, 1));
  PASSES(addToDiagonal(nn, f32({3}), 1));
  REFUSED("square matrix for a", addToDiagonal(mn, f32({3}), 1));
  REFUSED("3 elements for values", addToDiagonal(nn, f32({2}), 1));
  REFUSED("float32 for values", addToDiagonal(nn, f64({3}), 1));
  REFUSED("dtype float32 for a", cholesky(f64({3, 3})));
  REFUSED("square matrix, or several [count, n, n], for l", choleskyInverse(f32({9})));
  REFUSED("square matrix, or several [count, n, n], for l", choleskyInverse(f32({3, 3, 2})));
  REFUSED("square matrix, or several [count, n, n], for a", cholesky(f32({1, 1, 3, 3})));
  REFUSED("square matrix for a", inverseFactor(mn));
  PASSES(inverseDiagonal(nn, f32({3})));
  REFUSED("square matrix for a", inverseDiagonal(mn, f32({3})));
  REFUSED("3 elements for out", inverseDiagonal(nn, f32({2})));
  PASSES(diagonal(nn, f32({3})));
  REFUSED("3 elements for out", diagonal(nn, f32({2})));
  PASSES(backsolve(nn, mn, mask, mn));
  REFUSED("right [m, n]", backsolve(nn, nm, mask, mn));
  REFUSED("same shape for mask", backsolve(nn, mn, u8({3, 3}), mn));
  REFUSED("same shape for x", backsolve(nn, mn, mask, nn));
}

TEST_CASE("masks, patterns and segments") {
  PASSES(project(mn, mask, free_, {1, 2}, {0, 3}));
  PASSES(project(mn, mask, {0, 3}, {2}, {}));
  REFUSED("rowEnds to end", project(mn, mask, free_, {}, {}));
  REFUSED("rowEnds to end", project(mn, mask, free_, {3}, {1}));
  REFUSED("rowEnds to end", project(mn, mask, free_, {UINT64_MAX}, {1}));
  REFUSED("ascending rowEnds", project(mn, mask, free_, {2, 1, 2}, {1, 0, 1}));
  REFUSED("ascending rowEnds", project(mn, mask, free_, {UINT64_MAX, 2}, {1, 1}));
  REFUSED("one keep per segment", project(mn, mask, free_, {2}, {1, 1}));
  REFUSED("at most 6 kept", project(mn, mask, free_, {2}, {7}));
  REFUSED("groups of at least 0", project(mn, mask, {1, -3}, {2}, {1}));
  REFUSED("0 <= kept <= group", project(mn, mask, {4, 3}, {2}, {}));
  REFUSED("0 <= kept <= group", project(mn, mask, {-1, 3}, {2}, {}));
  REFUSED("a width that 2 divides", project(mn, mask, {1, 2}, {2}, {}));
  REFUSED("same shape for scores", project(nm, mask, free_, {2}, {1}));
  PASSES(projectRows(mn, mask, 3));
  REFUSED("at most 3 kept weights a row", projectRows(mn, mask, 4));
  REFUSED("at most 3 kept weights a row", projectRows(mn, mask, -1));
  PASSES(maskChanges(mask, mask, {1, 2}, u32({2})));
  REFUSED("2 elements for counts", maskChanges(mask, mask, {1, 2}, u32({1})));
  REFUSED("same shape for mask and previous", maskChanges(mask, u8({3, 2}), {2}, u32({1})));
}

TEST_CASE("ADMM, conjugate gradient and sweeps") {
  PASSES(admmStart(mn, mask, mn, bf16({2, 3})));
  REFUSED("same shape for state", admmStart(mn, mask, nm, mn));
  REFUSED("same shape for y", admmStart(mn, mask, mn, nm));
  REFUSED("for y but received nothing", admmStart(mn, mask, mn, none));
  REFUSED("same shape for b", admmUpdate(nm, mn, mn, mask, mn, 1, free_, {2}, {1}));
  for (double relaxation : {0.0, 2.0, -1.0, notANumber})
    REFUSED("relaxation between 0 and 2", admmUpdate(mn, mn, mn, mask, mn, relaxation, free_, {2}, {1}));
  PASSES(admmIterate(nn, mn, mn, mn, mask, mn, 1, free_, {2}, {1}, 3));
  REFUSED("dtype float32 for operator", admmIterate(bf16({3, 3}), mn, mn, mn, mask, mn, 1, free_, {2}, {1}, 3));
  REFUSED("square operator as wide as base", admmIterate(f32({2, 2}), mn, mn, mn, mask, mn, 1, free_, {2}, {1}, 3));
  REFUSED("dtype bfloat16 for y", admmIterateInt8(nn, mn, mn, mn, mask, mn, 1, free_, {2}, {1}, 3));
  REFUSED("at least 0 iterations", admmIterate(nn, mn, mn, mn, mask, mn, 1, free_, {2}, {1}, -1));
  PASSES(admmRescale(mn, mn, mask, mn, 0.5));
  for (double factor : {0.0, -1.0, notANumber, infinity})
    REFUSED("positive factor", admmRescale(mn, mn, mask, mn, factor));
  PASSES(cgStart(mn, mask, mn, f64({2}), f64({2})));
  REFUSED("2 elements for rr", cgStart(mn, mask, mn, f64({3}), f64({2})));
  REFUSED("same shape for direction", cgStart(mn, mask, nm, f64({2}), f64({2})));
  PASSES(cgStep(mn, mask, mn, mn, mn, f64({2}), f64({2}), 0.1, u32({1})));
  REFUSED("for tolerance", cgStep(mn, mask, mn, mn, mn, f64({2}), f64({2}), notANumber, u32({1})));
  REFUSED("same shape for q", cgStep(nm, mask, mn, mn, mn, f64({2}), f64({2}), 0, u32({1})));
  REFUSED("1 elements for active", cgStep(mn, mask, mn, mn, mn, f64({2}), f64({2}), 0, u32({2})));
  PASSES(cgOnSupport(nn, mask, mn, mn, 0.1, 3, u32({4})));
  REFUSED("residual [m, n] for gram [n, n]", cgOnSupport(nn, mask, mn, nm, 0.1, 3, u32({4})));
  REFUSED("same shape for x", cgOnSupport(nn, mask, nm, mn, 0.1, 3, u32({4})));
  REFUSED("for tolerance", cgOnSupport(nn, mask, mn, mn, notANumber, 3, u32({4})));
  REFUSED("kept entries", cgOnSupport(nn, mask, mn, mn, 0.1, -1, u32({4})));
  PASSES(sparseGpt(mn, nn, mask, free_, {2}, {4}, 128));
  REFUSED("factor [n, n]", sparseGpt(mn, f32({2, 2}), mask, free_, {2}, {4}, 128));
  REFUSED("block of whole groups", sparseGpt(mn, nn, mask, free_, {2}, {4}, 0));
  REFUSED("block of whole groups", sparseGpt(mn, nn, mask, {1, 3}, {2}, {}, 4));
  PASSES(dsnot(mn, mn, f32({3}), f32({3}), mask, {1, 3}, 50, 0.1, true));
  REFUSED("3 elements for variance", dsnot(mn, mn, f32({3}), f32({2}), mask, free_, 50, 0.1, true));
  REFUSED("a width that 2 divides", dsnot(mn, mn, f32({3}), f32({3}), mask, {1, 2}, 50, 0.1, true));
  REFUSED("groups of at least 0", dsnot(mn, mn, f32({3}), f32({3}), mask, {1, -3}, 50, 0.1, true));
  REFUSED("at least 0 cycles", dsnot(mn, mn, f32({3}), f32({3}), mask, free_, -1, 0.1, true));
  REFUSED("threshold of at least 0", dsnot(mn, mn, f32({3}), f32({3}), mask, free_, 1, notANumber, true));
}

TEST_CASE("the decoder's ops") {
  PASSES(embedding(zeros(DType::f16, {5, 3}), u32({2}), mn));
  REFUSED("float16 for table", embedding(none, u32({2}), mn));
  REFUSED("out [ids, hidden]", embedding(nn, u32({3}), mn));
  PASSES(rmsNorm(mn, f32({3}), 1e-6, 0, bf16({2, 3})));
  REFUSED("whole norms", rmsNorm(mn, f32({0}), 1e-6, 0, mn));
  REFUSED("whole norms", rmsNorm(mn, f32({2}), 1e-6, 0, mn));
  REFUSED("for eps", rmsNorm(mn, f32({3}), notANumber, 0, mn));
  PASSES(layerNorm(mn, f32({3}), f32({3}), 1e-6, mn));
  REFUSED("3 elements for weight", layerNorm(mn, f32({1}), f32({3}), 1e-6, mn));
  REFUSED("3 elements for bias", layerNorm(mn, f32({3}), f32({1}), 1e-6, mn));
  const Tensor angles = f32({2, 1}), heads = f32({4, 6});
  PASSES(rope(heads, angles, angles, 3, 2));
  REFUSED("heads of 4", rope(heads, angles, angles, 4, 2));
  REFUSED("heads of 1", rope(heads, angles, angles, 1, 2));
  REFUSED("heads of 0", rope(heads, angles, angles, 0, 2));
  REFUSED("windows of 3", rope(heads, angles, angles, 3, 3));
  REFUSED("same shape for sine", rope(heads, angles, f32({1, 1}), 3, 2));
  const Tensor keys = f32({4, 3});
  PASSES(attention(heads, keys, keys, heads, 3, 2, 1, 0, 0));
  PASSES(attention(f32({0, 6}), f32({0, 3}), f32({0, 3}), f32({0, 6}), 3, INT64_MAX, 1, INT64_MAX, 0));
  REFUSED("one dtype for q, k, v", attention(heads, bf16({4, 3}), keys, heads, 3, 2, 1, 0, 0));
  REFUSED("matrix for k", attention(heads, none, keys, heads, 3, 2, 1, 0, 0));
  REFUSED("for out but received nothing", attention(heads, keys, keys, none, 3, 2, 1, 0, 0));
  REFUSED("same shape for v", attention(heads, keys, heads, heads, 3, 2, 1, 0, 0));
  REFUSED("multiple of key heads", attention(keys, heads, heads, keys, 3, 2, 1, 0, 0));
  REFUSED("multiple of key heads", attention(heads, f32({4, 0}), f32({4, 0}), heads, 3, 2, 1, 0, 0));
  REFUSED("whole windows", attention(heads, keys, keys, heads, 3, 3, 1, 0, 0));
  REFUSED("window of at least 0", attention(heads, keys, keys, heads, 3, 2, 1, -1, 0));
  REFUSED("softCap of at least 0", attention(heads, keys, keys, heads, 3, 2, 1, 0, notANumber));
  const Tensor query = f32({2, 6}), key = f32({2, 3}), kept = f32({10, 3});
  PASSES(attentionStep(query, key, key, kept, kept, query, 3, 4, 1, 0, 0));
  PASSES(attentionStep(query, key, key, key, key, query, 3, 0, 1, INT64_MAX, 30));
  PASSES(attentionStep(f32({0, 6}), f32({0, 3}), f32({0, 3}), f32({0, 3}), f32({0, 3}), f32({0, 6}), 3, 7, 1, 0, 0));
  REFUSED("one dtype for q, k, v", attentionStep(query, bf16({2, 3}), key, kept, kept, query, 3, 0, 1, 0, 0));
  REFUSED("one dtype for k, keys and values", attentionStep(query, key, key, none, kept, query, 3, 0, 1, 0, 0));
  REFUSED("one dtype for k, keys and values",
          attentionStep(query, key, key, bf16({10, 3}), bf16({10, 3}), query, 3, 0, 1, 0, 0));
  REFUSED("one dtype for k, keys and values",
          attentionStep(query, key, key, kept, bf16({10, 3}), query, 3, 0, 1, 0, 0));
  REFUSED("matrix for keys", attentionStep(query, key, key, f32({30}), f32({30}), query, 3, 0, 1, 0, 0));
  REFUSED("same shape for values", attentionStep(query, key, key, kept, f32({8, 3}), query, 3, 0, 1, 0, 0));
  REFUSED("keys of 2 sequences", attentionStep(query, key, key, f32({5, 3}), f32({5, 3}), query, 3, 0, 1, 0, 0));
  REFUSED("as wide as k", attentionStep(query, key, key, f32({10, 6}), f32({10, 6}), query, 3, 0, 1, 0, 0));
  REFUSED("keys of 0 sequences",
          attentionStep(f32({0, 6}), f32({0, 3}), f32({0, 3}), kept, kept, f32({0, 6}), 3, 0, 1, 0, 0));
  for (int64_t position : {int64_t{-1}, int64_t{5}, INT64_MAX})
    REFUSED("position in sequences of 5", attentionStep(query, key, key, kept, kept, query, 3, position, 1, 0, 0));
  REFUSED("position in sequences of 0", attentionStep(query, key, key, f32({0, 3}), f32({0, 3}), query, 3, 0, 1, 0, 0));
  REFUSED("at least one query head", attentionStep(f32({2, 0}), key, key, kept, kept, f32({2, 0}), 3, 0, 1, 0, 0));
  REFUSED("multiple of key heads", attentionStep(key, query, query, kept, kept, key, 3, 0, 1, 0, 0));
  REFUSED("window of at least 0", attentionStep(query, key, key, kept, kept, query, 3, 0, 1, -1, 0));
  REFUSED("softCap of at least 0", attentionStep(query, key, key, kept, kept, query, 3, 0, 1, 0, notANumber));
  PASSES(gatedActivation(mn, mn, mn, "gelu"));
  REFUSED("silu, gelu", gatedActivation(mn, mn, mn, "swish"));
  REFUSED("for up but received nothing", gatedActivation(f32({}), none, f32({}), "silu"));
  REFUSED("one dtype", activate(mn, bf16({2, 3}), "relu"));
  REFUSED("same shape for out", activate(mn, nm, "relu"));
  REFUSED("cap above 0", softCap(mn, 0));
  REFUSED("cap above 0", softCap(mn, notANumber));
  PASSES(topExperts(mn, u32({2, 3}), mn, true));
  REFUSED("ids [tokens, k]", topExperts(mn, u32({2, 4}), f32({2, 4}), true));
  REFUSED("ids [tokens, k]", topExperts(mn, u32({2, 0}), f32({2, 0}), true));
  PASSES(gatherRows(mn, u32({4}), f32({4, 3})));
  REFUSED("out [ids, columns]", gatherRows(mn, u32({4}), none));
  REFUSED("out [ids, columns]", gatherRows(mn, u32({4}), f32({4, 2})));
  PASSES(scatterAddRows(bf16({2, 3}), u32({2}), f32({2}), nn));
  REFUSED("2 elements for ids", scatterAddRows(mn, u32({3}), f32({2}), nn));
  REFUSED("as many columns", scatterAddRows(mn, u32({2}), f32({2}), nm));
  REFUSED("same shape for y and x", addTo(mn, nm));
  PASSES(crossEntropy(mn, u32({2}), f64({2})));
  REFUSED("2 elements for targets", crossEntropy(mn, u32({3}), f64({2})));
  PASSES(divergence(mn, mn, f64({2})));
  REFUSED("same shape for q and p", divergence(mn, nm, f64({2})));
  REFUSED("2 elements for out", divergence(mn, mn, f64({3})));
  PASSES(sample(mn, f64({2}), u32({2}), 0));
  PASSES(sample(f32({0, 3}), f64({0}), u32({0}), 1e6));
  REFUSED("dtype float32 for logits", sample(bf16({2, 3}), f64({2}), u32({2}), 1));
  REFUSED("matrix for logits", sample(f32({3}), f64({1}), u32({1}), 1));
  REFUSED("at least one id", sample(f32({2, 0}), f64({2}), u32({2}), 1));
  REFUSED("dtype float64 for draws", sample(mn, f32({2}), u32({2}), 1));
  REFUSED("2 elements for draws", sample(mn, f64({3}), u32({2}), 1));
  REFUSED("2 elements for ids", sample(mn, f64({2}), u32({1}), 1));
  for (double temperature : {-1e-9, 1e7, notANumber, infinity})
    REFUSED("for temperature", sample(mn, f64({2}), u32({2}), temperature));
}
