// The decoder's ops at odd shapes, against float64.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <span>

#include "support.h"

using namespace alps;
using namespace alps::test;

namespace {

double activation(const std::string& name, double x) {
  if (name == "silu") return x / (1 + std::exp(-x));
  if (name == "gelu") return x * std::erfc(-x / std::sqrt(2.0)) / 2;
  if (name == "gelu_tanh") return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
  return x < 0 ? 0 : x;
}

// Bounds for an output of this dtype.
double bound(DType dtype) { return dtype == DType::bf16 ? 1e-5 : 1e-11; }

}  // namespace

TEST_CASE("norms") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 3, 16, 17, 67, 1030}) {
      for (DType from : {DType::f32, DType::bf16}) {
        for (DType to : {DType::f32, DType::bf16}) {
          CAPTURE(n);
          const int64_t rows = 5;
          Tensor x = normal(from, {rows, n}, 1), weight = normal(DType::f32, {n}, 2), bias = normal(DType::f32, {n}, 3);
          Tensor rms = zeros(to, {rows, n}), layer = zeros(to, {rows, n});
          device->rmsNorm(x, weight, 1e-5, 1, rms);
          device->layerNorm(x, weight, bias, 1e-5, layer);
          Numbers values = numbersOf(x), w = numbersOf(weight), c = numbersOf(bias), a(values.size()), b(values.size());
          for (size_t i = 0; i < rows; i++) {
            size_t width = static_cast<size_t>(n), at = i * width;
            double squares = 0, mean = 0, variance = 0;
            for (size_t j = 0; j < width; j++) squares += values[at + j] * values[at + j], mean += values[at + j];
            mean /= static_cast<double>(n);
            for (size_t j = 0; j < width; j++) variance += std::pow(values[at + j] - mean, 2);
            for (size_t j = 0; j < width; j++) {
              a[at + j] = values[at + j] / std::sqrt(squares / static_cast<double>(n) + 1e-5) * (w[j] + 1);
              b[at + j] = (values[at + j] - mean) / std::sqrt(variance / static_cast<double>(n) + 1e-5) * w[j] + c[j];
            }
          }
          CHECK(nmse(numbersOf(rms), a) < bound(to));
          CHECK(nmse(numbersOf(layer), b) < bound(to));
        }
      }
    }
  }
}

TEST_CASE("rotary positions") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    const int64_t sequence = 3, heads = 2, headDim = 11, half = 5, tokens = 6;
    for (DType dtype : {DType::f32, DType::bf16}) {
      Tensor x = normal(dtype, {tokens, heads * headDim}, 1);
      Tensor cosine = normal(DType::f32, {sequence, half}, 2), sine = normal(DType::f32, {sequence, half}, 3);
      Numbers expected = numbersOf(x);
      for (int64_t t = 0; t < tokens; t++) {
        for (int64_t head = 0; head < heads; head++) {
          for (int64_t i = 0; i < half; i++) {
            double& a = expected[static_cast<size_t>((t * heads + head) * headDim + i)];
            double& b = expected[static_cast<size_t>((t * heads + head) * headDim + i + half)];
            double c = cosine.as()[t % sequence * half + i], s = sine.as()[t % sequence * half + i], before = a;
            a = a * c - b * s, b = b * c + before * s;
          }
        }
      }
      device->rope(x, cosine, sine, headDim, sequence);
      CHECK(nmse(numbersOf(x), expected) < bound(dtype));
    }
  }
}

TEST_CASE("attention") {
  struct Case {
    int64_t sequence, headDim, window;
    double softCap;
    int64_t windows = 2;
  };
  for (const Case& shape : {Case{1, 1, 0, 0},
                            {5, 3, 2, 0},
                            {33, 16, 0, 2},
                            {130, 7, 100, 0},
                            {530, 4, 3, 0},
                            {401, 385, 0, 0, /* windows = */ 1},     // odd sums of more than one piece
                            {2, 64, 0, 0, /* windows = */ 2700}}) {  // more than are packed at a time
    for (DType dtype : {DType::f32, DType::bf16}) {
      CAPTURE(shape.sequence);
      const int64_t kvHeads = 2, heads = 4, d = shape.headDim, tokens = shape.windows * shape.sequence;
      Tensor q = normal(dtype, {tokens, heads * d}, 1), k = normal(dtype, {tokens, kvHeads * d}, 2);
      Tensor v = normal(dtype, {tokens, kvHeads * d}, 3);
      Numbers qs = numbersOf(q), ks = numbersOf(k), vs = numbersOf(v), expected(qs.size());
      for (int64_t t = 0; t < tokens; t++) {
        for (int64_t head = 0; head < heads; head++) {
          int64_t first = t / shape.sequence * shape.sequence, kvHead = head / 2;
          if (shape.window > 0) first = std::max(first, t - shape.window + 1);
          const double* query = &qs[static_cast<size_t>((t * heads + head) * d)];
          double *sums = &expected[static_cast<size_t>((t * heads + head) * d)], total = 0;
          for (int64_t s = first; s <= t; s++) {
            const size_t at = static_cast<size_t>((s * kvHeads + kvHead) * d);
            double score = 0;
            for (int64_t i = 0; i < d; i++) score += query[i] * (&ks[at])[i];
            score *= 0.3;
            if (shape.softCap > 0) score = shape.softCap * std::tanh(score / shape.softCap);
            const double weight = std::exp(score);
            total += weight;
            for (int64_t i = 0; i < d; i++) sums[i] += weight * (&vs[at])[i];
          }
          for (int64_t i = 0; i < d; i++) sums[i] /= total;
        }
      }
      for (const NamedBackend& device : backends()) {
        CAPTURE(device.name);
        Tensor out = zeros(dtype, {tokens, heads * d});
        device->attention(q, k, v, out, d, shape.sequence, 0.3, shape.window, shape.softCap);
        CHECK(nmse(numbersOf(out), expected) < (dtype == DType::bf16 ? 3e-5 : 1e-11));
      }
    }
  }
}

TEST_CASE("attention for one more token: as attention() over what there is so far") {
  struct Case {
    int64_t heads, kvHeads, headDim, length, window;
    double softCap;
  };
  const std::vector<Case> shapes{{1, 1, 1, 3, 0, 0},     {4, 2, 3, 9, 2, 0},   {6, 2, 16, 40, 0, 2},
                                 {2, 1, 7, 70, 33, 0.5}, {3, 3, 64, 20, 1, 0}, {2, 1, 301, 5, 0, 0}};
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (const Case& shape : shapes) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(shape.length);
        CAPTURE(shape.headDim);
        const int64_t sequences = 2, d = shape.headDim, T = shape.length, keyColumns = shape.kvHeads * d;
        Tensor q = normal(dtype, {sequences * T, shape.heads * d}, 1),
               k = normal(dtype, {sequences * T, keyColumns}, 2);
        Tensor v = normal(dtype, {sequences * T, keyColumns}, 3), all = zeros(dtype, q.shape);
        device->attention(q, k, v, all, d, T, 0.3, shape.window, shape.softCap);
        // What lies behind the position is not looked at.
        Numbers unknown(static_cast<size_t>(k.size()), std::nan(""));
        Tensor keys = tensorOf(dtype, k.shape, unknown), values = tensorOf(dtype, k.shape, unknown);
        Tensor q1 = zeros(dtype, {sequences, shape.heads * d}), out = zeros(dtype, q1.shape);
        Tensor k1 = zeros(dtype, {sequences, keyColumns}), v1 = zeros(dtype, k1.shape);
        auto row = [](const Tensor& x, int64_t i) {
          size_t bytes = static_cast<size_t>(x.columns()) * sizeOf(x.dtype);
          return std::span(x.as<uint8_t>() + static_cast<size_t>(i) * bytes, bytes);
        };
        Numbers stepped(static_cast<size_t>(q.size())), expected = numbersOf(all);
        for (int64_t position = 0; position < T; position++) {
          for (int64_t i = 0; i < sequences; i++)
            for (auto [from, to] : {std::pair{&q, &q1}, {&k, &k1}, {&v, &v1}})
              std::ranges::copy(row(*from, i * T + position), row(*to, i).begin());
          device->attentionStep(q1, k1, v1, keys, values, out, d, position, 0.3, shape.window, shape.softCap);
          Numbers got = numbersOf(out);
          for (int64_t i = 0; i < sequences; i++)
            std::copy_n(got.begin() + i * q.columns(), q.columns(), stepped.begin() + (i * T + position) * q.columns());
          bool kept = true;
          for (int64_t i = 0; i < sequences; i++)
            kept &= std::ranges::equal(row(keys, i * T + position), row(k1, i)) &&
                    std::ranges::equal(row(values, i * T + position), row(v1, i));
          CHECK(kept);
        }
        CHECK(bytesOf(keys) == bytesOf(k));
        CHECK(bytesOf(values) == bytesOf(v));
        CHECK(nmse(stepped, expected) < (dtype == DType::bf16 ? 3e-5 : 1e-11));
      }
    }
  }
}

TEST_CASE("activations") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (const std::string name : {"silu", "gelu", "gelu_tanh", "relu"}) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(name);
        Tensor gate = normal(dtype, {3, 37}, 1, 3), up = normal(dtype, {3, 37}, 2);
        Tensor gated = zeros(dtype, {3, 37}), alone = zeros(dtype, {3, 37});
        device->gatedActivation(gate, up, gated, name);
        device->activate(gate, alone, name);
        Numbers x = numbersOf(gate), u = numbersOf(up), product(x.size());
        for (size_t i = 0; i < x.size(); i++) x[i] = activation(name, x[i]), product[i] = x[i] * u[i];
        CHECK(nmse(numbersOf(gated), product) < bound(dtype));
        CHECK(nmse(numbersOf(alone), x) < bound(dtype));
      }
    }
    for (DType dtype : {DType::f32, DType::bf16}) {  // far out
      Tensor gate = tensorOf(dtype, {1, 5}, {-3e38, -1e30, -100, 200, 0}), out = zeros(dtype, {1, 5});
      Numbers x = numbersOf(gate);
      for (const std::string name : {"silu", "gelu_tanh"}) {
        device->activate(gate, out, name);
        Numbers found = numbersOf(out);
        for (size_t i = 0; i < 3; i++) CHECK(std::fabs(found[i]) < 1e-35);
        CHECK(found[3] == x[3]);
        CHECK(found[4] == 0);
      }
    }
    Tensor x = normal(DType::f32, {3, 37}, 1, 30);
    Numbers expected = numbersOf(x);
    for (double& value : expected) value = 20 * std::tanh(value / 20);
    device->softCap(x, 20);
    CHECK(nmse(numbersOf(x), expected) < 1e-11);
  }
}

TEST_CASE("embedding, rows, loss") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    Tensor table = normal(DType::f32, {9, 5}, 1), ids = tensorOf(DType::u32, {3}, {8, 0, 3});
    Numbers rows = numbersOf(table);
    Tensor out = zeros(DType::f32, {3, 5}), gathered = zeros(DType::f32, {3, 5});
    device->embedding(table, ids, out);
    device->gatherRows(table, ids, gathered);
    CHECK(bytesOf(out) == bytesOf(gathered));
    CHECK(numbersOf(out)[12] == rows[17]);
    Tensor bad = tensorOf(DType::u32, {3}, {8, 9, 4294967295});
    CHECK(messageOf([&] { device->embedding(table, bad, out); }) == "Expected token ids below 9 but received 9");
    CHECK(codeOf([&] { device->gatherRows(table, bad, out); }) == "INVALID_ARGUMENT");
    CHECK(codeOf([&] { device->scatterAddRows(out, bad, zeros(DType::f32, {3}), table); }) == "INVALID_ARGUMENT");
    Tensor sum = zeros(DType::f32, {9, 5}), ascending = tensorOf(DType::u32, {3}, {0, 4, 8});
    device->scatterAddRows(out, ascending, tensorOf(DType::f32, {3}, {1, 2, 3}), sum);
    CHECK(sum.as()[4 * 5 + 1] == 2 * out.as()[5 + 1]);
    Tensor targets = tensorOf(DType::u32, {9}, {0, 1, 2, 3, 4, 0, 1, 2, 3}), loss = zeros(DType::f64, {9});
    device->crossEntropy(table, targets, loss);
    Numbers expected(9);
    for (size_t t = 0; t < 9; t++) {
      double total = 0;
      for (size_t j = 0; j < 5; j++) total += std::exp(rows[t * 5 + j]);
      expected[t] = std::log(total) - rows[t * 5 + targets.as<uint32_t>()[t]];
    }
    CHECK(nmse(numbersOf(loss), expected) < 1e-11);
    CHECK(codeOf([&] { device->crossEntropy(table, tensorOf(DType::u32, {9}, Numbers(9, 5.0)), loss); }) ==
          "INVALID_ARGUMENT");
    Tensor other = normal(DType::f32, {9, 5}, 2);
    Numbers others = numbersOf(other), divergences(9);
    device->divergence(table, other, loss);
    for (size_t t = 0; t < 9; t++) {
      double total = 0, otherTotal = 0;
      for (size_t j = t * 5; j < t * 5 + 5; j++) total += std::exp(rows[j]), otherTotal += std::exp(others[j]);
      for (size_t j = t * 5; j < t * 5 + 5; j++)
        divergences[t] += std::exp(rows[j]) / total * (rows[j] - others[j] + std::log(otherTotal / total));
    }
    CHECK(nmse(numbersOf(loss), divergences) < 1e-11);
  }
}

TEST_CASE("drawing tokens") {
  const double none = -std::numeric_limits<double>::infinity(), most = std::nextafter(1.0, 0.0);
  const double unknown = std::nan(""), infinity = -none;
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    auto sample = [&](const Numbers& logits, const Numbers& draws, double temperature) {
      int64_t rows = static_cast<int64_t>(draws.size()), n = static_cast<int64_t>(logits.size());
      Numbers all;
      for (int64_t i = 0; i < rows; i++) all.insert(all.end(), logits.begin(), logits.end());
      Tensor ids = tensorOf(DType::u32, {rows}, Numbers(draws.size(), 4e9));
      device->sample(tensorOf(DType::f32, {rows, n}, all), tensorOf(DType::f64, {rows}, draws), ids, temperature);
      return numbersOf(ids);
    };
    // Equal logits: sums of ones, exact in float64.
    for (int64_t n : {1, 4, 64, 1024}) {
      Numbers draws, expected;
      for (int64_t i = 0; i < n; i += n < 1024 ? 1 : 31) {
        double at = static_cast<double>(i) / static_cast<double>(n);
        draws.insert(draws.end(), {at, std::nextafter(at, 1.0), std::nextafter(at, -1.0)});
        expected.insert(expected.end(), {double(i), double(i), double(std::max<int64_t>(0, i - 1))});
      }
      draws.push_back(most), expected.push_back(double(n - 1));
      for (double temperature : {1.0, 0.3, 1e6, 1e-300}) {
        CAPTURE(n);
        CAPTURE(temperature);
        CHECK(sample(Numbers(static_cast<size_t>(n), -3.5), draws, temperature) == expected);
      }
    }
    // Against float64: beside each place where the sum passes from one id to the next, as far as float32 tells.
    for (int64_t n : {2, 37, 1000}) {
      for (double temperature : {0.25, 1.0, 3.0}) {
        CAPTURE(n);
        CAPTURE(temperature);
        Numbers logits = numbersOf(normal(DType::f32, {n}, 4, 2)), draws, expected;
        double total = 0, sum = 0;
        for (double x : logits) total += std::exp(x / temperature);
        for (int64_t i = 0; i < n; i++) {
          double p = std::exp(logits[static_cast<size_t>(i)] / temperature) / total;
          if (p > 1e-5) {
            draws.insert(draws.end(), {sum + 2e-6, sum + p - 2e-6});
            expected.insert(expected.end(), {double(i), double(i)});
          }
          sum += p;
        }
        CHECK(sample(logits, draws, temperature) == expected);
      }
    }
    Numbers draws{0, 0.3, 0.7, most};
    CHECK(sample({1, 5, 3, 5, -2}, draws, 0) == Numbers{1, 1, 1, 1});
    CHECK(sample({1, 5, 3, 4.9, -2}, draws, 1e-4) == Numbers{1, 1, 1, 1});
    CHECK(sample({1, 5, 3, 5, -2}, draws, 1e-300) == Numbers{1, 1, 3, 3});  // the limit: the largest, alike
    CHECK(sample({1e4, 1e4 - 0.0009765625}, draws, 1e-3) == Numbers{0, 0, 0, 1});
    CHECK(sample({1, 5, 3, -5}, draws, 1e6) == Numbers{0, 1, 2, 3});
    CHECK(sample({3e38, -3e38, 3e38}, draws, 1) == Numbers{0, 0, 2, 2});
    // Excluded logits are not drawn, at either end of the draws.
    for (double temperature : {0.0, 1e-300, 0.5, 1e6}) {
      CAPTURE(temperature);
      CHECK(sample({none, 2, none, none}, draws, temperature) == Numbers{1, 1, 1, 1});
      CHECK(sample({unknown, none, 0, unknown}, draws, temperature) == Numbers{2, 2, 2, 2});
      CHECK(sample({0, infinity, infinity}, draws, temperature) == Numbers{1, 1, 1, 1});
      for (const Numbers& row : {Numbers(5, none), Numbers(5, unknown), Numbers(5, infinity), {none, unknown, none}})
        for (double id : sample(row, draws, temperature)) CHECK(id < double(row.size()));
    }
    // Whatever the draws hold.
    for (double id : sample({1, 2, 3}, {unknown, infinity, none, -1, 2}, 1)) CHECK(id < 3);
  }
}

TEST_CASE("routing to experts") {
  for (const NamedBackend& device : backends()) {
    Tensor logits = tensorOf(DType::f32, {2, 4}, {1, 3, 3, 0, -1, -1, -1, -1});
    Tensor ids = zeros(DType::u32, {2, 2}), weights = zeros(DType::f32, {2, 2});
    device->topExperts(logits, ids, weights, true);
    CHECK(numbersOf(ids) == Numbers{1, 2, 0, 1});
    CHECK(nmse(numbersOf(weights), {0.5, 0.5, 0.5, 0.5}) < 1e-12);
    device->topExperts(logits, ids, weights, false);
    double total = std::exp(1) + 2 * std::exp(3) + 1;
    CHECK(nmse(numbersOf(weights), {std::exp(3) / total, std::exp(3) / total, 0.25, 0.25}) < 1e-12);
  }
}
