// What each op of core/backend.h asks of its arguments. Called before an op is queued, so a wrong call fails where it
// is made.
#pragma once
#include "core/backend.h"

namespace alps::check {

void fill(const Tensor& out, double value);
void copy(const Tensor& from, const Tensor& out);
void axpby(const Tensor& x, const Tensor& y, double alpha, double beta);
void addBias(const Tensor& x, const Tensor& bias);
void scaleRowsColumns(const Tensor& a, const Tensor& row, const Tensor& column, const Tensor& out);
void applyMask(const Tensor& x, const Tensor& mask);
void nonZeroMask(const Tensor& x, const Tensor& mask);
void countNonFinite(const Tensor& x, const Tensor& out);
void rowDots(const Tensor& a, const Tensor& b, const Tensor& out);
void quadraticForms(const Tensor& a, const Tensor& s, const Tensor& out);
void columnSums(const Tensor& x, bool squares, const Tensor& out);
void differenceSquares(const Tensor& x, const Tensor& y, const Tensor& out);
void transpose(const Tensor& a, const Tensor& out);
void gemm(const Tensor& a, const Tensor& b, const Tensor& out, bool transposeA, bool transposeB, double alpha,
          double beta, bool split = false);
void int8Gemm(const Tensor& a, const Tensor& b, const Tensor& out);
void gramAccumulate(const Tensor& x, const Tensor& gram);
void differenceSums(const Tensor& x, const Tensor& y, const Tensor& cross, const Tensor& gram);
constexpr auto differenceSumsInt8 = differenceSums;
void symmetrize(const Tensor& a);
void addDiagonal(const Tensor& a, double value);
void addToDiagonal(const Tensor& a, const Tensor& values, double alpha);
void diagonal(const Tensor& a, const Tensor& out);
void cholesky(const Tensor& a);
void choleskyInverse(const Tensor& l, bool split = false);
void inverseFactor(const Tensor& a);
void inverseDiagonal(const Tensor& a, const Tensor& out);
void project(const Tensor& scores, const Tensor& mask, const Pattern& pattern, const Counts& rowEnds,
             const Counts& keep);
void projectRows(const Tensor& scores, const Tensor& mask, int64_t keep);
void maskChanges(const Tensor& mask, const Tensor& previous, const Counts& rowEnds, const Tensor& counts);
void admmStart(const Tensor& base, const Tensor& mask, const Tensor& state, const Tensor& y);
void admmUpdate(const Tensor& b, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y,
                double relaxation, const Pattern& pattern, const Counts& rowEnds, const Counts& keep);
void admmIterate(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state, const Tensor& mask,
                 const Tensor& y, double relaxation, const Pattern& pattern, const Counts& rowEnds, const Counts& keep,
                 int64_t count);
void admmIterateInt8(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state, const Tensor& mask,
                     const Tensor& y, double relaxation, const Pattern& pattern, const Counts& rowEnds,
                     const Counts& keep, int64_t count);
void admmRescale(const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y, double factor);
void cgStart(const Tensor& residual, const Tensor& mask, const Tensor& direction, const Tensor& rr, const Tensor& rr0);
void cgStep(const Tensor& q, const Tensor& mask, const Tensor& x, const Tensor& residual, const Tensor& direction,
            const Tensor& rr, const Tensor& rr0, double tolerance, const Tensor& active);
void cgOnSupport(const Tensor& gram, const Tensor& mask, const Tensor& x, const Tensor& residual, double tolerance,
                 int64_t kept, const Tensor& active);
void backsolve(const Tensor& gram, const Tensor& right, const Tensor& mask, const Tensor& x);
void sparseGpt(const Tensor& weight, const Tensor& factor, const Tensor& mask, const Pattern& pattern,
               const Counts& rowEnds, const Counts& keep, int64_t block);
void dsnot(const Tensor& weight, const Tensor& metric, const Tensor& expected, const Tensor& variance,
           const Tensor& mask, const Pattern& pattern, int64_t cycles, double threshold, bool sameSign);
void embedding(const Tensor& table, const Tensor& ids, const Tensor& out);
void rmsNorm(const Tensor& x, const Tensor& weight, double eps, double offset, const Tensor& out);
void layerNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, const Tensor& out);
void rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, int64_t headDim, int64_t sequence);
void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, int64_t headDim, int64_t sequence,
               double scale, int64_t window, double softCap);
void attentionStep(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values,
                   const Tensor& out, int64_t headDim, int64_t position, double scale, int64_t window, double softCap);
void gatedActivation(const Tensor& gate, const Tensor& up, const Tensor& out, const std::string& activation);
void activate(const Tensor& x, const Tensor& out, const std::string& activation);
void softCap(const Tensor& x, double cap);
void topExperts(const Tensor& logits, const Tensor& ids, const Tensor& weights, bool normalise);
void gatherRows(const Tensor& x, const Tensor& ids, const Tensor& out);
void scatterAddRows(const Tensor& y, const Tensor& ids, const Tensor& weights, const Tensor& x);
void addTo(const Tensor& y, const Tensor& x);
void crossEntropy(const Tensor& logits, const Tensor& targets, const Tensor& out);
void divergence(const Tensor& p, const Tensor& q, const Tensor& out);
void sample(const Tensor& logits, const Tensor& draws, const Tensor& ids, double temperature);

}  // namespace alps::check
