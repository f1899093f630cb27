// The interface that every backend implements. An algorithm never asks which backend it runs on.
//
// Conventions, for all ops:
//  - tensors are row-major and contiguous; a matrix is [rows, columns]; f32 unless a dtype is named
//  - W is [m, n] = [outputs, inputs], X is [tokens, n], a Gram matrix or its inverse is [n, n]
//  - outputs may alias inputs only where the op says so
//  - core/check.h has verified shapes and dtypes before an op is reached, so ops do not check again
//  - ops run on the device's thread, one after the other; long ones call Stream cancellation (core/stream.h) now and
//  then
//  - the result does not depend on the number of threads
//
// Segments: layers that share their input are solved as one matrix of concatenated rows. `rowEnds` holds, per layer,
// the row after its last one; `keep` its number of kept weights. Budgets and counts are per segment.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace alps {

struct DeviceInfo {
  std::string name;     // "cpu"
  std::string details;  // "AVX-512, bfloat16 products, 2 threads"
  std::string isa;      // instruction set of the hand-written loops: avx512bf16, avx512, avx2, scalar
  bool bf16Products = false;
  bool int8Products = false;  // whether int8Gemm takes integers
  int threads = 1;
  uint64_t memoryLimit = 0;  // bytes, as are the next two
  uint64_t memoryUsed = 0;
  uint64_t memoryPeak = 0;
};

// Which weights may be kept. kept == 0: unstructured, `keep` of each segment. Else `kept` of each `group` columns in a
// row.
struct Pattern {
  int64_t kept = 0;
  int64_t group = 0;
};

using Counts = std::vector<uint64_t>;

// What memory holds before it is written.
enum class Contents { zero, any };

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceInfo info() const = 0;
  virtual void resetPeak() = 0;  // memoryPeak := memoryUsed
  virtual std::shared_ptr<Storage> allocate(size_t bytes, Contents contents) = 0;
  virtual void upload(const void* from, Tensor out) = 0;
  virtual void download(Tensor from, void* out) = 0;
  // Ops until the next call are of this job: where an op's failure is found only later, it is kept for its job.
  virtual void enter(uint64_t job) { (void)job; }
  // Waits until the job's ops have run, and throws the first failure kept for it.
  virtual void finish() {}

  // ---- elementwise -------------------------------------------------------------------------------------------------
  virtual void fill(Tensor out, double value) = 0;
  // out = from, converted to out's dtype (f32, bf16, f16, f64; round to nearest even), same number of elements.
  virtual void copy(Tensor from, Tensor out) = 0;
  // y = alpha * x + beta * y. Same shape and dtype, f32 or bf16 (rounded once); x may be y.
  virtual void axpby(Tensor x, Tensor y, double alpha, double beta) = 0;
  // x[i, j] += bias[j]; x f32 or bf16, bias f32.
  virtual void addBias(Tensor x, Tensor bias) = 0;
  // out[i, j] = a[i, j] * row[i] * column[j]; row and column may be undefined; out may be a. f32.
  virtual void scaleRowsColumns(Tensor a, Tensor row, Tensor column, Tensor out) = 0;
  // x = mask ? x : +0. mask u8, same shape.
  virtual void applyMask(Tensor x, Tensor mask) = 0;
  // mask = x != 0 (−0 counts as zero).
  virtual void nonZeroMask(Tensor x, Tensor mask) = 0;
  // out[0] += number of NaN and infinite entries of x (f32, bf16, f16). out u32 [1].
  virtual void countNonFinite(Tensor x, Tensor out) = 0;
  // out[i] = sum over j of a[i, j] * b[i, j], accumulated in double. out f64 [rows].
  virtual void rowDots(Tensor a, Tensor b, Tensor out) = 0;
  // out[i] = a[i]ᵀ s a[i], dots accumulated in double; split as in gemm. a [rows, n], s [n, n] symmetric, both
  // triangles given; out f64 [rows].
  virtual void quadraticForms(Tensor a, Tensor s, Tensor out) = 0;
  // out[j] += sum over i of x[i, j], or of its square, accumulated in double. x [rows, n] f32 or bf16, out f64 [n].
  virtual void columnSums(Tensor x, bool squares, Tensor out) = 0;
  // out[j] += Σᵢ (x − y)[i, j]², the differences rounded to their dtype, sums in double. x, y [rows, n] f32 or bf16,
  // not the same tensor, out f64 [n]. y may be overwritten.
  virtual void differenceSquares(Tensor x, Tensor y, Tensor out) {
    axpby(x, y, -1, 1);
    columnSums(y, true, out);
  }
  // out [n, m] = aᵀ, a [m, n]; one dtype, any.
  virtual void transpose(Tensor a, Tensor out) = 0;

  // ---- Gram-matrix solves ------------------------------------------------------------------------------------------
  // out = alpha * op(a) op(b) + beta * out. a and b both f32 or both bf16 (f32 accumulation); out f32 or bf16 (then
  // beta = 0). split: factors in f32 may be taken as the sum of two bf16 numbers each (a relative error of 2⁻¹⁷), where
  // that is faster; then they must be finite and below 2^127.
  virtual void gemm(Tensor a, Tensor b, Tensor out, bool transposeA, bool transposeB, double alpha, double beta,
                    bool split = false) = 0;
  // out = a b, a bf16 [m, n], b bf16 [n, n], out f32, for corrections that need no more than two digits: where the
  // device has int8Products, the rows of a and the columns of b without its diagonal are rounded to integers up to 127,
  // each (a long column in pieces) by a scale of its own; what comes by the diagonal is as exact as bf16. Elsewhere,
  // and for few rows, gemm.
  virtual void int8Gemm(Tensor a, Tensor b, Tensor out) { gemm(a, b, out, false, false, 1, 0); }
  // Upper triangle of gram += xᵀ x; what lies below it is undefined. x [tokens, n] f32 or bf16, gram f32 [n, n].
  virtual void gramAccumulate(Tensor x, Tensor gram) = 0;
  // With d = y − x, rounded to their dtype, cross += xᵀ d and the upper triangle of gram += dᵀ d; one of the two may be
  // left out. x, y [tokens, n] f32 or bf16, not the same tensor, sums f32 [n, n]. y may be overwritten.
  virtual void differenceSums(Tensor x, Tensor y, Tensor cross, Tensor gram) {
    axpby(x, y, -1, 1);
    if (cross.defined()) gemm(x, y, cross, true, false, 1, 1);
    if (gram.defined()) gramAccumulate(y, gram);
  }
  // The same, where the device has int8Products, of bf16 columns of x and of d in float32 rounded to integers up to
  // 127, by a scale of its own for each 512 tokens of a column.
  virtual void differenceSumsInt8(Tensor x, Tensor y, Tensor cross, Tensor gram) { differenceSums(x, y, cross, gram); }
  // Lower triangle := upper triangle.
  virtual void symmetrize(Tensor a) = 0;
  virtual void addDiagonal(Tensor a, double value) = 0;
  // a[i, i] += alpha values[i]; a f32 [n, n], values f32 [n], not a part of a.
  virtual void addToDiagonal(Tensor a, Tensor values, double alpha) = 0;
  virtual void diagonal(Tensor a, Tensor out) = 0;
  // In place: symmetric positive definite a [n, n] or each of [count, n, n] (both triangles given) := lower Cholesky
  // factor, zeros above. Fails with NOT_POSITIVE_DEFINITE; all of a is then undefined.
  virtual void cholesky(Tensor a) = 0;
  // In place: lower factor L, or each of several, := (L Lᵀ)⁻¹, both triangles. split as in gemm: the relative error
  // stays that of the factor, but the inverse may no longer be positive definite.
  virtual void choleskyInverse(Tensor l, bool split = false) = 0;
  // In place: symmetric positive definite a (both triangles given) := the lower L with a⁻¹ = L Lᵀ, zeros above. Fails
  // as cholesky.
  virtual void inverseFactor(Tensor a) {
    cholesky(a);
    choleskyInverse(a);
    cholesky(a);
  }
  // out = diagonal of a⁻¹, for a symmetric positive definite a (both triangles given), which is undefined afterwards;
  // split as in gemm. out f32 [n]. Fails as cholesky.
  virtual void inverseDiagonal(Tensor a, Tensor out) {
    cholesky(a);
    choleskyInverse(a, true);
    diagonal(a, out);
  }

  // ---- top-k projection --------------------------------------------------------------------------------------------
  // mask[i] = 1 for the kept weights of |scores| (per segment, exact, ties to the lowest index), else 0.
  virtual void project(Tensor scores, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep) = 0;
  // The same with a budget for each row: its `keep` largest magnitudes.
  virtual void projectRows(Tensor scores, Tensor mask, int64_t keep) = 0;
  // counts[s] = entries of segment s where mask and previous differ; previous := mask. counts u32 [segments].
  virtual void maskChanges(Tensor mask, Tensor previous, Counts rowEnds, Tensor counts) = 0;

  // ---- ADMM in Douglas-Rachford form (docs/algorithm.md) ------------------------------------------------------------
  // S = mask ? B0 : 0;  Y = (mask ? S : −S) − B0.   y f32 or bf16, here and below.
  virtual void admmStart(Tensor base, Tensor mask, Tensor state, Tensor y) = 0;
  // b holds Y·K on entry. B = B0 + b;  S = ωB + (mask ? (1 − ω)S : S), ω the relaxation, in (0, 2);
  // mask = project(|S|);  Y = (mask ? S : −S) − B0. b := B.
  virtual void admmUpdate(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation,
                          Pattern pattern, Counts rowEnds, Counts keep) = 0;
  // `count` times { b = Y * op; admmUpdate }. op [n, n] of y's dtype, split in f32 as in gemm; b is B at the end. Stops
  // when cancelled.
  virtual void admmIterate(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                           Pattern pattern, Counts rowEnds, Counts keep, int64_t count) = 0;
  // The same by int8Gemm, with bf16; y must be what state and mask give, as the ops beside this one leave it.
  virtual void admmIterateInt8(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                               Pattern pattern, Counts rowEnds, Counts keep, int64_t count) {
    admmIterate(op, base, b, state, mask, y, relaxation, pattern, rowEnds, keep, count);
  }
  // New ρ: S *= factor off the mask (factor = ρ_old / ρ_new), and Y again.
  virtual void admmRescale(Tensor base, Tensor state, Tensor mask, Tensor y, double factor) = 0;

  // ---- batched conjugate gradient on a fixed support ----------------------------------------------------------------
  // residual (all entries, on entry) is masked; direction := residual; rr[i] = rr0[i] = |residual row i|². rr, rr0 f64
  // [m].
  virtual void cgStart(Tensor residual, Tensor mask, Tensor direction, Tensor rr, Tensor rr0) = 0;
  // One step for every row: q = direction·H on entry; x, residual, direction, rr updated. A row whose rr is at most
  // tolerance² · rr0 stands still. active[0] = rows that moved (u32 [1]).
  virtual void cgStep(Tensor q, Tensor mask, Tensor x, Tensor residual, Tensor direction, Tensor rr, Tensor rr0,
                      double tolerance, Tensor active) = 0;
  // All of it for each row i on its own, with gram[S, S] of its support S gathered: as many steps as active has
  // elements (u32). residual: all entries, on entry; nothing in particular afterwards. active[t] = rows that moved in
  // step t. gram is symmetric. kept: entries of the mask, or about as many, which the work is cut by.
  virtual void cgOnSupport(Tensor gram, Tensor mask, Tensor x, Tensor residual, double tolerance, int64_t kept,
                           Tensor active) = 0;

  // Exact least squares on a support, row by row: x[i, S] = gram[S, S]⁻¹ right[i, S] with S the row's mask, 0 off it. x
  // may be right. Fails with NOT_POSITIVE_DEFINITE.
  virtual void backsolve(Tensor gram, Tensor right, Tensor mask, Tensor x) = 0;

  // ---- the other methods --------------------------------------------------------------------------------------------
  // SparseGPT's sweep over the columns, in place. factor: L with (XᵀX + damping)⁻¹ = L Lᵀ. Columns go in blocks of
  // `block` (whole groups for N:M); each block's share of `keep` is taken by |weight / L[j, j]| in each segment, each
  // group's when the sweep reaches it, and what a pruned weight leaves is spread over the columns after it.
  virtual void sparseGpt(Tensor weight, Tensor factor, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep,
                         int64_t block) = 0;
  // DSnoT's prune-and-grow on a mask, in place, each row by itself. expected [n]: sum of an input over a window, mean
  // over windows; variance [n]; metric [m, n]: the lowest magnitudes are pruned first. At most `cycles` swaps a row,
  // none once |expected change of the output| is at most `threshold` or, with sameSign, would change its sign.
  virtual void dsnot(Tensor weight, Tensor metric, Tensor expected, Tensor variance, Tensor mask, Pattern pattern,
                     int64_t cycles, double threshold, bool sameSign) = 0;

  // ---- transformer forward -----------------------------------------------------------------------------------------
  // out[i] = table[ids[i]]. table [vocabulary, hidden] f32, bf16 or f16; ids u32; out f32. An id past the table fails.
  virtual void embedding(Tensor table, Tensor ids, Tensor out) = 0;
  // out = x / rms(x) * (weight + offset), rms over the last dimension with eps inside. x f32 or bf16, weight f32
  // [columns of one norm]; x may hold several norms a row (qk-norm). out f32 or bf16; may be x.
  virtual void rmsNorm(Tensor x, Tensor weight, double eps, double offset, Tensor out) = 0;
  // out = (x − mean) / std * weight + bias over the last dimension, eps inside the root. Dtypes as rmsNorm; weight and
  // bias f32 [columns].
  virtual void layerNorm(Tensor x, Tensor weight, Tensor bias, double eps, Tensor out) = 0;
  // Rotates the first 2 * half of each head's dimensions, halves paired (i, i + half). x [tokens, heads * headDim] f32
  // or bf16, in place; cosine and sine f32 [positions, half]; token t has position t mod sequence.
  virtual void rope(Tensor x, Tensor cosine, Tensor sine, int64_t headDim, int64_t sequence) = 0;
  // Causal attention with grouped queries. q [tokens, heads * headDim], k and v [tokens, kvHeads * headDim], out like
  // q; all f32 or all bf16. tokens = windows * sequence. window: sliding window length, 0 for none. softCap: scores
  // become softCap * tanh(score / softCap); 0 for none.
  virtual void attention(Tensor q, Tensor k, Tensor v, Tensor out, int64_t headDim, int64_t sequence, double scale,
                         int64_t window, double softCap) = 0;
  // attention() for one more token of each of B sequences whose earlier keys and values are kept: k and v
  // [B, kvHeads * headDim] become row `position` of each sequence in keys and values [B * T, kvHeads * headDim], and
  // q [B, heads * headDim] attends to its sequence's rows up to there. out like q; all f32 or all bf16.
  virtual void attentionStep(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor out, int64_t headDim,
                             int64_t position, double scale, int64_t window, double softCap) = 0;
  // out = activation(gate) * up. f32 or bf16 all; out may be gate. activation: "silu", "gelu", "gelu_tanh", "relu".
  virtual void gatedActivation(Tensor gate, Tensor up, Tensor out, std::string activation) = 0;
  // out = activation(x). f32 or bf16 both; out may be x.
  virtual void activate(Tensor x, Tensor out, std::string activation) = 0;
  // x = cap * tanh(x / cap). f32.
  virtual void softCap(Tensor x, double cap) = 0;
  // Routing of a mixture of experts: per row of logits [tokens, experts] the ids of the k largest (ties to the lower
  // id) and their softmax weights, over all experts or, with normalise, over the k. ids u32 [tokens, k], weights f32.
  virtual void topExperts(Tensor logits, Tensor ids, Tensor weights, bool normalise) = 0;
  // out[i] = x[ids[i]]; one dtype, f32 or bf16.
  virtual void gatherRows(Tensor x, Tensor ids, Tensor out) = 0;
  // x[ids[i]] += weights[i] * y[i]; ids ascending, none twice. x f32, y f32 or bf16, weights f32.
  virtual void scatterAddRows(Tensor y, Tensor ids, Tensor weights, Tensor x) = 0;
  // x += y, x f32, y f32 or bf16.
  virtual void addTo(Tensor y, Tensor x) = 0;
  // out[i] = log sum exp(logits[i]) − logits[i, targets[i]]. logits f32 [t, vocabulary], targets u32 [t], out f64 [t].
  virtual void crossEntropy(Tensor logits, Tensor targets, Tensor out) = 0;
  // out[i] = KL(softmax(p[i]) ‖ softmax(q[i])). p, q f32 [t, vocabulary], out f64 [t]. NaN or infinite where logits are
  // not finite.
  virtual void divergence(Tensor p, Tensor q, Tensor out) = 0;
  // ids[i] drawn from softmax(logits[i] / temperature): the first id up to which the probabilities sum to more than
  // draws[i], a number in [0, 1). temperature 0: the id of the largest logit, the lowest among equals. logits f32
  // [t, vocabulary], draws f64 [t], ids u32 [t]. Infinite or NaN logits give some id below the vocabulary.
  virtual void sample(Tensor logits, Tensor draws, Tensor ids, double temperature) = 0;
};

constexpr int largestThreads = 1024;

struct BackendOptions {
  int threads = 0;           // 0: as many as the machine offers; CUDA devices take no notice
  uint64_t memoryLimit = 0;  // bytes; 0: nine tenths of the machine's (or its control group's, or the GPU's) memory
  std::string isa;           // empty: the best there is; else one of those
};

std::shared_ptr<Backend> makeCpuBackend(const BackendOptions& options);

}  // namespace alps
