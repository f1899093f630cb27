#include "core/check.h"

#include <cmath>

namespace alps::check {

namespace {

bool isFloat(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

void defined(const char* name, const Tensor& t) {
  require(t.defined(), "Expected a tensor for ", name, " but received nothing");
}

void dtype(const char* name, const Tensor& t, DType expected) {
  defined(name, t);
  require(t.dtype == expected, "Expected dtype ", nameOf(expected), " for ", name, " but received ", describe(t));
}

void dtypeFloat(const char* name, const Tensor& t) {
  defined(name, t);
  require(isFloat(t), "Expected dtype float32 or bfloat16 for ", name, " but received ", describe(t));
}

void sameShape(const char* name, const Tensor& t, const char* otherName, const Tensor& other) {
  defined(name, t);
  require(t.shape == other.shape, "Expected the same shape for ", name, " and ", otherName, " but received ",
          describe(t), " and ", describe(other));
}

void length(const char* name, const Tensor& t, int64_t expected) {
  require(t.size() == expected, "Expected ", expected, " elements for ", name, " but received ", describe(t));
}

void matrix(const char* name, const Tensor& t) {
  require(t.rank() == 2, "Expected a matrix for ", name, " but received ", describe(t));
}

void square(const char* name, const Tensor& t) {
  dtype(name, t, DType::f32);
  matrix(name, t);
  require(t.dim(0) == t.dim(1), "Expected a square matrix for ", name, " but received ", describe(t));
}

// A square matrix, or several [count, n, n].
void squares(const char* name, const Tensor& t) {
  dtype(name, t, DType::f32);
  require((t.rank() == 2 || t.rank() == 3) && t.dim(t.rank() - 2) == t.columns(),
          "Expected a square matrix, or several [count, n, n], for ", name, " but received ", describe(t));
}

void range(const char* name, double value, double low, double high) {
  require(value >= low && value <= high, "Expected a number from ", low, " to ", high, " for ", name, " but received ",
          value);
}

void segments(const Tensor& mask, const Counts& rowEnds) {
  require(!rowEnds.empty() && static_cast<int64_t>(rowEnds.back()) == mask.dim(0),
          "Expected rowEnds to end with the number of rows of ", describe(mask));
  for (size_t i = 1; i < rowEnds.size(); i++) require(rowEnds[i] >= rowEnds[i - 1], "Expected ascending rowEnds");
}

// What an N:M pattern asks of the matrix it is applied to.
void groups(const Pattern& pattern, const Tensor& t) {
  require(pattern.group >= 0, "Expected groups of at least 0 but received ", pattern.group);
  if (pattern.group == 0) return;
  require(pattern.kept >= 0 && pattern.kept <= pattern.group, "Expected 0 <= kept <= group but received ", pattern.kept,
          " of ", pattern.group);
  require(t.dim(1) % pattern.group == 0, "Expected a width that ", pattern.group, " divides but received ",
          describe(t));
}

void patternOf(const Tensor& mask, const Pattern& pattern, const Counts& rowEnds, const Counts& keep) {
  dtype("mask", mask, DType::u8);
  matrix("mask", mask);
  segments(mask, rowEnds);
  groups(pattern, mask);
  if (pattern.group > 0) return;
  require(keep.size() == rowEnds.size(), "Expected one keep per segment but received ", keep.size(), " for ",
          rowEnds.size());
  uint64_t start = 0;
  for (size_t i = 0; i < keep.size(); i++) {
    uint64_t size = (rowEnds[i] - start) * static_cast<uint64_t>(mask.dim(1));
    require(keep[i] <= size, "Expected at most ", size, " kept weights in segment ", i, " but received ", keep[i]);
    start = rowEnds[i];
  }
}

void admm(const Tensor& base, const Tensor& mask, const Tensor& state, const Tensor& y) {
  dtype("base", base, DType::f32);
  matrix("base", base);
  dtype("state", state, DType::f32);
  dtype("mask", mask, DType::u8);
  dtypeFloat("y", y);
  sameShape("state", state, "base", base);
  sameShape("mask", mask, "base", base);
  sameShape("y", y, "base", base);
}

void kindOf(const std::string& activation) {
  require(activation == "silu" || activation == "gelu" || activation == "gelu_tanh" || activation == "relu",
          "Expected silu, gelu, gelu_tanh or relu for activation but received ", activation);
}

// rows [m, n], by the name of `name`, that are solved for x on a mask with gram [n, n].
void solvedOn(const Tensor& gram, const char* name, const Tensor& rows, const Tensor& mask, const Tensor& x) {
  square("gram", gram);
  dtype(name, rows, DType::f32), matrix(name, rows);
  require(rows.dim(1) == gram.dim(0), "Expected ", name, " [m, n] for gram [n, n] but received ", describe(rows),
          " and ", describe(gram));
  dtype("mask", mask, DType::u8), sameShape("mask", mask, name, rows);
  dtype("x", x, DType::f32), sameShape("x", x, name, rows);
}

}  // namespace

void fill(const Tensor& out, double value) {
  defined("out", out);
  if (out.dtype == DType::u32) range("value", value, 0, UINT32_MAX);
  if (out.dtype == DType::u8) range("value", value, 0, UINT8_MAX);
}

void copy(const Tensor& from, const Tensor& out) {
  defined("from", from), defined("out", out);
  require(from.size() == out.size(), "Expected the same number of elements but received ", describe(from), " and ",
          describe(out));
  auto convertible = [](const Tensor& t) { return t.dtype != DType::u32 && t.dtype != DType::u8; };
  require(from.dtype == out.dtype || (convertible(from) && convertible(out)),
          "Expected floating-point dtypes but received ", describe(from), " and ", describe(out));
}

void axpby(const Tensor& x, const Tensor& y, double, double) {
  dtypeFloat("x", x);
  dtype("y", y, x.dtype);
  sameShape("x", x, "y", y);
}

void addBias(const Tensor& x, const Tensor& bias) {
  dtypeFloat("x", x);
  dtype("bias", bias, DType::f32);
  length("bias", bias, x.columns());
}

void scaleRowsColumns(const Tensor& a, const Tensor& row, const Tensor& column, const Tensor& out) {
  dtype("a", a, DType::f32);
  dtype("out", out, DType::f32);
  sameShape("out", out, "a", a);
  if (row.defined()) dtype("row", row, DType::f32), length("row", row, a.rows());
  if (column.defined()) dtype("column", column, DType::f32), length("column", column, a.columns());
}

void applyMask(const Tensor& x, const Tensor& mask) {
  dtype("x", x, DType::f32);
  dtype("mask", mask, DType::u8);
  sameShape("mask", mask, "x", x);
}

void nonZeroMask(const Tensor& x, const Tensor& mask) { applyMask(x, mask); }

void countNonFinite(const Tensor& x, const Tensor& out) {
  defined("x", x);
  require(x.dtype == DType::f32 || x.dtype == DType::bf16 || x.dtype == DType::f16,
          "Expected dtype float32, bfloat16 or float16 for x but received ", describe(x));
  dtype("out", out, DType::u32);
  length("out", out, 1);
}

void rowDots(const Tensor& a, const Tensor& b, const Tensor& out) {
  dtype("a", a, DType::f32);
  dtype("b", b, DType::f32);
  dtype("out", out, DType::f64);
  sameShape("a", a, "b", b);
  length("out", out, a.rows());
}

void columnSums(const Tensor& x, bool, const Tensor& out) {
  dtypeFloat("x", x);
  matrix("x", x);
  dtype("out", out, DType::f64);
  length("out", out, x.dim(1));
}

void differenceSquares(const Tensor& x, const Tensor& y, const Tensor& out) {
  columnSums(x, true, out);
  dtype("y", y, x.dtype);
  sameShape("y", y, "x", x);
}

void transpose(const Tensor& a, const Tensor& out) {
  require(a.defined() && out.defined() && a.dtype == out.dtype, "Expected one dtype for a and out");
  matrix("a", a), matrix("out", out);
  require(a.dim(0) == out.dim(1) && a.dim(1) == out.dim(0), "Expected out [n, m] for a [m, n] but received ",
          describe(out), " and ", describe(a));
}

void gemm(const Tensor& a, const Tensor& b, const Tensor& out, bool transposeA, bool transposeB, double, double beta,
          bool) {
  dtypeFloat("a", a);
  dtypeFloat("out", out);
  require(b.defined() && a.dtype == b.dtype, "Expected one dtype for a and b but received ", describe(a), " and ",
          describe(b));
  matrix("a", a), matrix("b", b), matrix("out", out);
  int64_t m = a.dim(transposeA ? 1 : 0), k = a.dim(transposeA ? 0 : 1), n = b.dim(transposeB ? 0 : 1);
  require(b.dim(transposeB ? 1 : 0) == k && out.dim(0) == m && out.dim(1) == n,
          "Expected op(a) [m, k], op(b) [k, n], out [m, n] but received ", describe(a), transposeA ? "ᵀ" : "", ", ",
          describe(b), transposeB ? "ᵀ" : "", ", ", describe(out));
  require(out.dtype == DType::f32 || beta == 0, "Expected beta = 0 for a bfloat16 out but received ", beta);
}

void int8Gemm(const Tensor& a, const Tensor& b, const Tensor& out) {
  dtype("a", a, DType::bf16);
  dtype("out", out, DType::f32);
  gemm(a, b, out, false, false, 1, 0, false);
  require(b.dim(0) == b.dim(1), "Expected a square b but received ", describe(b));
}

void gramAccumulate(const Tensor& x, const Tensor& gram) {
  dtypeFloat("x", x);
  matrix("x", x);
  square("gram", gram);
  require(gram.dim(0) == x.dim(1), "Expected gram [n, n] for x [tokens, n] but received ", describe(gram), " and ",
          describe(x));
}

void differenceSums(const Tensor& x, const Tensor& y, const Tensor& cross, const Tensor& gram) {
  dtypeFloat("x", x);
  matrix("x", x);
  dtype("y", y, x.dtype);
  sameShape("y", y, "x", x);
  require(cross.defined() || gram.defined(), "Expected cross or gram but received neither");
  if (cross.defined()) {
    square("cross", cross);
    require(cross.dim(0) == x.dim(1), "Expected cross [n, n] for x [tokens, n] but received ", describe(cross), " and ",
            describe(x));
  }
  if (gram.defined()) gramAccumulate(x, gram);
}

void quadraticForms(const Tensor& a, const Tensor& s, const Tensor& out) {
  dtype("a", a, DType::f32);
  matrix("a", a);
  square("s", s);
  dtype("out", out, DType::f64);
  require(s.dim(0) == a.dim(1), "Expected s [n, n] for a [rows, n] but received ", describe(s), " and ", describe(a));
  length("out", out, a.dim(0));
}

void symmetrize(const Tensor& a) { square("a", a); }
void addDiagonal(const Tensor& a, double) { square("a", a); }

void addToDiagonal(const Tensor& a, const Tensor& values, double) {
  square("a", a);
  dtype("values", values, DType::f32);
  length("values", values, a.dim(0));
}
void diagonal(const Tensor& a, const Tensor& out) {
  square("a", a);
  dtype("out", out, DType::f32);
  length("out", out, a.dim(0));
}
void cholesky(const Tensor& a) { squares("a", a); }
void choleskyInverse(const Tensor& l, bool) { squares("l", l); }
void inverseFactor(const Tensor& a) { square("a", a); }
void inverseDiagonal(const Tensor& a, const Tensor& out) { diagonal(a, out); }

void project(const Tensor& scores, const Tensor& mask, const Pattern& pattern, const Counts& rowEnds,
             const Counts& keep) {
  dtype("scores", scores, DType::f32);
  patternOf(mask, pattern, rowEnds, keep);
  sameShape("scores", scores, "mask", mask);
}

void projectRows(const Tensor& scores, const Tensor& mask, int64_t keep) {
  dtype("scores", scores, DType::f32);
  matrix("scores", scores);
  dtype("mask", mask, DType::u8);
  sameShape("scores", scores, "mask", mask);
  require(keep >= 0 && keep <= mask.dim(1), "Expected at most ", mask.dim(1), " kept weights a row but received ",
          keep);
}

void maskChanges(const Tensor& mask, const Tensor& previous, const Counts& rowEnds, const Tensor& counts) {
  dtype("mask", mask, DType::u8);
  dtype("previous", previous, DType::u8);
  matrix("mask", mask);
  sameShape("mask", mask, "previous", previous);
  segments(mask, rowEnds);
  dtype("counts", counts, DType::u32);
  length("counts", counts, static_cast<int64_t>(rowEnds.size()));
}

void admmStart(const Tensor& base, const Tensor& mask, const Tensor& state, const Tensor& y) {
  admm(base, mask, state, y);
}

void admmUpdate(const Tensor& b, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y,
                double relaxation, const Pattern& pattern, const Counts& rowEnds, const Counts& keep) {
  admm(base, mask, state, y);
  dtype("b", b, DType::f32);
  sameShape("b", b, "base", base);
  require(relaxation > 0 && relaxation < 2, "Expected a relaxation between 0 and 2 but received ", relaxation);
  patternOf(mask, pattern, rowEnds, keep);
}

void admmIterate(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state, const Tensor& mask,
                 const Tensor& y, double relaxation, const Pattern& pattern, const Counts& rowEnds, const Counts& keep,
                 int64_t count) {
  admmUpdate(b, base, state, mask, y, relaxation, pattern, rowEnds, keep);
  dtype("operator", op, y.dtype);
  matrix("operator", op);
  require(op.dim(0) == base.dim(1) && op.dim(1) == base.dim(1), "Expected a square operator as wide as base, ",
          describe(base), ", but received ", describe(op));
  require(count >= 0, "Expected at least 0 iterations but received ", count);
}

void admmIterateInt8(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state, const Tensor& mask,
                     const Tensor& y, double relaxation, const Pattern& pattern, const Counts& rowEnds,
                     const Counts& keep, int64_t count) {
  dtype("y", y, DType::bf16);
  admmIterate(op, base, b, state, mask, y, relaxation, pattern, rowEnds, keep, count);
}

void admmRescale(const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y, double factor) {
  admm(base, mask, state, y);
  require(std::isfinite(factor) && factor > 0, "Expected a positive factor but received ", factor);
}

void cgStart(const Tensor& residual, const Tensor& mask, const Tensor& direction, const Tensor& rr, const Tensor& rr0) {
  dtype("residual", residual, DType::f32);
  matrix("residual", residual);
  dtype("mask", mask, DType::u8);
  dtype("direction", direction, DType::f32);
  sameShape("mask", mask, "residual", residual);
  sameShape("direction", direction, "residual", residual);
  dtype("rr", rr, DType::f64), length("rr", rr, residual.dim(0));
  dtype("rr0", rr0, DType::f64), length("rr0", rr0, residual.dim(0));
}

void cgStep(const Tensor& q, const Tensor& mask, const Tensor& x, const Tensor& residual, const Tensor& direction,
            const Tensor& rr, const Tensor& rr0, double tolerance, const Tensor& active) {
  cgStart(residual, mask, direction, rr, rr0);
  dtype("q", q, DType::f32), sameShape("q", q, "residual", residual);
  dtype("x", x, DType::f32), sameShape("x", x, "residual", residual);
  range("tolerance", tolerance, 0, 1);
  dtype("active", active, DType::u32), length("active", active, 1);
}

void cgOnSupport(const Tensor& gram, const Tensor& mask, const Tensor& x, const Tensor& residual, double tolerance,
                 int64_t kept, const Tensor& active) {
  solvedOn(gram, "residual", residual, mask, x);
  range("tolerance", tolerance, 0, 1);
  require(kept >= 0, "Expected at least 0 kept entries but received ", kept);
  dtype("active", active, DType::u32);
}

void backsolve(const Tensor& gram, const Tensor& right, const Tensor& mask, const Tensor& x) {
  solvedOn(gram, "right", right, mask, x);
}

void sparseGpt(const Tensor& weight, const Tensor& factor, const Tensor& mask, const Pattern& pattern,
               const Counts& rowEnds, const Counts& keep, int64_t block) {
  dtype("weight", weight, DType::f32);
  patternOf(mask, pattern, rowEnds, keep);
  sameShape("weight", weight, "mask", mask);
  square("factor", factor);
  require(factor.dim(0) == weight.dim(1), "Expected factor [n, n] for weight [m, n] but received ", describe(factor),
          " and ", describe(weight));
  require(block > 0 && (pattern.group == 0 || block % pattern.group == 0), "Expected a block of whole groups of ",
          pattern.group, " but received ", block);
}

void dsnot(const Tensor& weight, const Tensor& metric, const Tensor& expected, const Tensor& variance,
           const Tensor& mask, const Pattern& pattern, int64_t cycles, double threshold, bool) {
  dtype("weight", weight, DType::f32), matrix("weight", weight);
  dtype("metric", metric, DType::f32), sameShape("metric", metric, "weight", weight);
  dtype("mask", mask, DType::u8), sameShape("mask", mask, "weight", weight);
  dtype("expected", expected, DType::f32), length("expected", expected, weight.dim(1));
  dtype("variance", variance, DType::f32), length("variance", variance, weight.dim(1));
  groups(pattern, weight);
  require(cycles >= 0, "Expected at least 0 cycles but received ", cycles);
  require(threshold >= 0, "Expected a threshold of at least 0 but received ", threshold);
}

void embedding(const Tensor& table, const Tensor& ids, const Tensor& out) {
  require(table.defined() && (table.dtype == DType::f32 || table.dtype == DType::bf16 || table.dtype == DType::f16),
          "Expected dtype float32, bfloat16 or float16 for table");
  matrix("table", table);
  dtype("ids", ids, DType::u32);
  dtype("out", out, DType::f32);
  require(out.columns() == table.dim(1) && out.rows() == ids.size(), "Expected out [ids, hidden] but received ",
          describe(out), " for ", describe(ids), " and ", describe(table));
}

void rmsNorm(const Tensor& x, const Tensor& weight, double eps, double, const Tensor& out) {
  dtypeFloat("x", x);
  dtypeFloat("out", out);
  dtype("weight", weight, DType::f32);
  sameShape("out", out, "x", x);
  require(weight.size() > 0 && x.columns() % weight.size() == 0,
          "Expected a row of x to hold whole norms but received ", describe(x), " and ", describe(weight));
  range("eps", eps, 0, 1);
}

void layerNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, const Tensor& out) {
  rmsNorm(x, weight, eps, 0, out);
  length("weight", weight, x.columns());
  dtype("bias", bias, DType::f32), length("bias", bias, x.columns());
}

void rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, int64_t headDim, int64_t sequence) {
  dtypeFloat("x", x);
  dtype("cosine", cosine, DType::f32), matrix("cosine", cosine);
  dtype("sine", sine, DType::f32), sameShape("sine", sine, "cosine", cosine);
  require(headDim > 0 && x.columns() % headDim == 0 && cosine.dim(1) <= headDim / 2, "Expected heads of ", headDim,
          " dimensions but received ", describe(x), " with angles ", describe(cosine));
  require(sequence > 0 && sequence <= cosine.dim(0) && x.rows() % sequence == 0, "Expected whole windows of ", sequence,
          " positions but received ", describe(x), " with angles ", describe(cosine));
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, int64_t headDim, int64_t sequence,
               double, int64_t window, double softCap) {
  dtypeFloat("q", q);
  require(k.dtype == q.dtype && v.dtype == q.dtype && out.dtype == q.dtype, "Expected one dtype for q, k, v and out");
  matrix("q", q), matrix("k", k), matrix("v", v);
  sameShape("out", out, "q", q);
  sameShape("v", v, "k", k);
  require(headDim > 0 && q.dim(1) % headDim == 0 && k.dim(1) % headDim == 0 && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
          "Expected query heads to be a multiple of key heads of ", headDim, " dimensions but received ", describe(q),
          " and ", describe(k));
  require(sequence > 0 && q.dim(0) == k.dim(0) && q.dim(0) % sequence == 0, "Expected whole windows of ", sequence,
          " tokens but received ", describe(q), " and ", describe(k));
  require(window >= 0, "Expected a window of at least 0 but received ", window);
  require(softCap >= 0, "Expected a softCap of at least 0 but received ", softCap);
}

void attentionStep(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values,
                   const Tensor& out, int64_t headDim, int64_t position, double scale, int64_t window, double softCap) {
  attention(q, k, v, out, headDim, 1, scale, window, softCap);
  require(q.dim(1) > 0, "Expected at least one query head but received ", describe(q));
  require(keys.defined() && keys.dtype == k.dtype && values.dtype == k.dtype,
          "Expected one dtype for k, keys and values");
  matrix("keys", keys);
  sameShape("values", values, "keys", keys);
  int64_t sequences = q.dim(0);
  require(keys.dim(1) == k.dim(1) && (sequences == 0 ? keys.dim(0) == 0 : keys.dim(0) % sequences == 0),
          "Expected keys of ", sequences, " sequences, as wide as k, but received ", describe(keys), " and ",
          describe(k));
  require(position >= 0 && (sequences == 0 || position < keys.dim(0) / sequences),
          "Expected a position in sequences of ", sequences == 0 ? 0 : keys.dim(0) / sequences, " but received ",
          position);
}

void gatedActivation(const Tensor& gate, const Tensor& up, const Tensor& out, const std::string& activation) {
  dtypeFloat("gate", gate);
  require(up.dtype == gate.dtype && out.dtype == gate.dtype, "Expected one dtype for gate, up and out");
  sameShape("up", up, "gate", gate);
  sameShape("out", out, "gate", gate);
  kindOf(activation);
}

void activate(const Tensor& x, const Tensor& out, const std::string& activation) {
  gatedActivation(x, x, out, activation);
}

void softCap(const Tensor& x, double cap) {
  dtype("x", x, DType::f32);
  require(cap > 0, "Expected a cap above 0 but received ", cap);
}

void topExperts(const Tensor& logits, const Tensor& ids, const Tensor& weights, bool) {
  dtype("logits", logits, DType::f32), matrix("logits", logits);
  dtype("ids", ids, DType::u32), matrix("ids", ids);
  dtype("weights", weights, DType::f32), sameShape("weights", weights, "ids", ids);
  require(ids.dim(0) == logits.dim(0) && ids.dim(1) >= 1 && ids.dim(1) <= logits.dim(1),
          "Expected ids [tokens, k] for logits [tokens, experts] but received ", describe(ids), " and ",
          describe(logits));
}

void gatherRows(const Tensor& x, const Tensor& ids, const Tensor& out) {
  dtypeFloat("x", x), matrix("x", x);
  dtype("ids", ids, DType::u32);
  require(
      out.defined() && out.dtype == x.dtype && out.rank() == 2 && out.dim(0) == ids.size() && out.dim(1) == x.dim(1),
      "Expected out [ids, columns] in x's dtype but received ", describe(out), " for ", describe(x));
}

void scatterAddRows(const Tensor& y, const Tensor& ids, const Tensor& weights, const Tensor& x) {
  dtypeFloat("y", y), matrix("y", y);
  dtype("x", x, DType::f32), matrix("x", x);
  dtype("ids", ids, DType::u32), length("ids", ids, y.dim(0));
  dtype("weights", weights, DType::f32), length("weights", weights, y.dim(0));
  require(x.dim(1) == y.dim(1), "Expected as many columns for y and x but received ", describe(y), " and ",
          describe(x));
}

void addTo(const Tensor& y, const Tensor& x) {
  dtypeFloat("y", y);
  dtype("x", x, DType::f32);
  sameShape("y", y, "x", x);
}

void crossEntropy(const Tensor& logits, const Tensor& targets, const Tensor& out) {
  dtype("logits", logits, DType::f32), matrix("logits", logits);
  dtype("targets", targets, DType::u32), length("targets", targets, logits.dim(0));
  dtype("out", out, DType::f64), length("out", out, logits.dim(0));
}

void divergence(const Tensor& p, const Tensor& q, const Tensor& out) {
  dtype("p", p, DType::f32), matrix("p", p);
  dtype("q", q, DType::f32), sameShape("q", q, "p", p);
  dtype("out", out, DType::f64), length("out", out, p.dim(0));
}

void sample(const Tensor& logits, const Tensor& draws, const Tensor& ids, double temperature) {
  dtype("logits", logits, DType::f32), matrix("logits", logits);
  require(logits.dim(1) > 0, "Expected logits of at least one id but received ", describe(logits));
  dtype("draws", draws, DType::f64), length("draws", draws, logits.dim(0));
  dtype("ids", ids, DType::u32), length("ids", ids, logits.dim(0));
  range("temperature", temperature, 0, 1e6);
}

}  // namespace alps::check
