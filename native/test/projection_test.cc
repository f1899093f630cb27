// The projection, N:M groups, the ADMM pass and the sweeps: exact masks against a sort.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "support.h"

using namespace alps;
using namespace alps::test;

namespace {

// Many ties, zeros of both signs, subnormals.
Tensor tiedScores(const Shape& shape, uint32_t seed) {
  Tensor scores = normal(DType::f32, shape, seed);
  for (int64_t i = 0; i < scores.size(); i++) {
    float& x = scores.as()[i];
    x = i % 7 == 0 ? -0.0f : i % 5 == 0 ? 1e-40f : std::round(x * 2) / 2;
  }
  return scores;
}

Numbers maskOf(const Numbers& scores, const std::vector<std::vector<int64_t>>& kept) {
  Numbers mask(scores.size());
  for (const auto& part : kept)
    for (int64_t i : part) mask[static_cast<size_t>(i)] = 1;
  return mask;
}

}  // namespace

TEST_CASE("unstructured projection keeps the largest, ties to the lowest index") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 1}, {1, 33}, {7, 13}, {40, 67}, {600, 700}}) {
      for (bool ties : {false, true}) {
        Tensor scores = ties ? tiedScores({m, n}, 3) : normal(DType::f32, {m, n}, 4);
        Numbers values = numbersOf(scores);
        // Where many are compared one count between is enough: sorting them takes long.
        std::vector<int64_t> counts{0, m * n / 3, m * n};
        if (m * n < 10000) counts.insert(counts.end(), {1, m * n - 1});
        for (int64_t keep : counts) {
          Tensor mask = zeros(DType::u8, {m, n});
          device->project(scores, mask, {}, {static_cast<uint64_t>(m)}, {static_cast<uint64_t>(keep)});
          CHECK(numbersOf(mask) == maskOf(values, {largest(values, 0, m * n, keep)}));
        }
      }
    }
  }
}

TEST_CASE("scores of many sizes, and few sizes of very many") {
  const int64_t m = 1050, n = 1000;  // so many that histograms lead to the threshold where a window does not
  Numbers wide = numbersOf(normal(DType::f32, {120, 90}, 5)), even(120 * 90, -2.5);
  for (size_t i = 0; i < wide.size(); i++) wide[i] *= std::pow(10.0, static_cast<double>(i * 31 % 75) - 44);
  for (size_t i = 0; i < even.size(); i += 100) even[i] = 7;
  const std::vector<Tensor> all{tensorOf(DType::f32, {120, 90}, wide), tensorOf(DType::f32, {120, 90}, even),
                                zeros(DType::f32, {120, 90}), tiedScores({m, n}, 3)};
  for (const Tensor& scores : all) {
    Numbers values = numbersOf(scores);
    int64_t rows = scores.dim(0), keep = scores.size() * 2 / 5, ofRow = scores.dim(1) / 3;
    Numbers expected = maskOf(values, {largest(values, 0, scores.size(), keep)});
    std::vector<std::vector<int64_t>> byRow;
    for (int64_t i = 0; i < scores.size(); i += scores.dim(1))
      byRow.push_back(largest(values, i, i + scores.dim(1), ofRow));
    Numbers expectedRows = maskOf(values, byRow);
    for (const NamedBackend& device : backends()) {
      CAPTURE(device.name);
      Tensor mask = zeros(DType::u8, {rows, scores.dim(1)});
      device->project(scores, mask, {}, {static_cast<uint64_t>(rows)}, {static_cast<uint64_t>(keep)});
      CHECK(numbersOf(mask) == expected);
      device->projectRows(scores, mask, ofRow);
      CHECK(numbersOf(mask) == expectedRows);
    }
  }
}

TEST_CASE("segments have budgets of their own, empty ones too") {
  for (const NamedBackend& device : backends()) {
    Tensor scores = tiedScores({9, 11}, 3), mask = zeros(DType::u8, {9, 11});
    Numbers values = numbersOf(scores);
    device->project(scores, mask, {}, {2, 2, 9}, {5, 0, 60});
    CHECK(numbersOf(mask) == maskOf(values, {largest(values, 0, 22, 5), largest(values, 22, 99, 60)}));
  }
}

TEST_CASE("a NaN ranks above infinity") {
  for (const NamedBackend& device : backends()) {
    Tensor scores = tensorOf(DType::f32, {1, 4}, {3, INFINITY, NAN, -INFINITY}), mask = zeros(DType::u8, {1, 4});
    device->project(scores, mask, {}, {1}, {2});
    CHECK(numbersOf(mask) == Numbers{0, 1, 1, 0});
  }
}

TEST_CASE("groups of every size") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t group : {1, 2, 3, 4, 8, 16, 31, 32, 33, 100}) {
      for (int64_t kept : {int64_t{0}, int64_t{1}, group / 2, group - 1, group}) {
        CAPTURE(group);
        CAPTURE(kept);
        Tensor scores = tiedScores({5, 3 * group}, 9), mask = zeros(DType::u8, {5, 3 * group});
        Numbers values = numbersOf(scores);
        std::vector<std::vector<int64_t>> expected;
        for (int64_t at = 0; at < scores.size(); at += group) expected.push_back(largest(values, at, at + group, kept));
        device->project(scores, mask, {kept, group}, {5}, {});
        CHECK(numbersOf(mask) == maskOf(values, expected));
      }
    }
  }
}

TEST_CASE("rows with a budget each") {
  for (const NamedBackend& device : backends()) {
    Tensor scores = tiedScores({6, 19}, 2), mask = zeros(DType::u8, {6, 19});
    Numbers values = numbersOf(scores);
    for (int64_t keep : {0, 1, 9, 19}) {
      std::vector<std::vector<int64_t>> expected;
      for (int64_t i = 0; i < 6; i++) expected.push_back(largest(values, i * 19, (i + 1) * 19, keep));
      device->projectRows(scores, mask, keep);
      CHECK(numbersOf(mask) == maskOf(values, expected));
    }
    // Rows much like the one before, and rows that are not.
    const int64_t m = 60, n = 200, some = 70;
    Numbers numbers = numbersOf(normal(DType::f32, {m, n}, 4));
    for (int64_t i = 0; i < m * n; i++) {
      double& value = numbers[static_cast<size_t>(i)];
      if (i / n > 20) value *= std::pow(10.0, i / n * 7 % 5 - 2);
      if (i / n > 50) value = std::round(2 * value);
    }
    Tensor rows = tensorOf(DType::f32, {m, n}, numbers), kept = zeros(DType::u8, {m, n});
    numbers = numbersOf(rows);
    std::vector<std::vector<int64_t>> expected;
    for (int64_t i = 0; i < m; i++) expected.push_back(largest(numbers, i * n, (i + 1) * n, some));
    device->projectRows(rows, kept, some);
    CHECK(numbersOf(kept) == maskOf(numbers, expected));
  }
}

TEST_CASE("changes of a mask are counted by segment") {
  for (const NamedBackend& device : backends()) {
    Tensor mask = randomMask({30, 71}, 1), previous = randomMask({30, 71}, 2), counts = zeros(DType::u32, {2});
    double expected[2] = {0, 0};
    for (int64_t i = 0; i < mask.size(); i++)
      expected[i >= 4 * 71] += mask.as<uint8_t>()[i] != previous.as<uint8_t>()[i];
    device->maskChanges(mask, previous, {4, 30}, counts);
    CHECK(numbersOf(counts) == Numbers{expected[0], expected[1]});
    CHECK(bytesOf(mask) == bytesOf(previous));
  }
}

TEST_CASE("the ADMM pass, and many of them in one op") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    const int64_t m = 7, n = 21;
    const Counts ends{3, 7}, keep{30, 40};
    Tensor base = normal(DType::f32, {m, n}, 1), op = normal(DType::f32, {n, n}, 2, 0.05);
    Tensor mask = randomMask({m, n}, 3), state = zeros(DType::f32, {m, n}), y = zeros(DType::f32, {m, n});
    Tensor b = zeros(DType::f32, {m, n});
    device->admmStart(base, mask, state, y);
    Numbers b0 = numbersOf(base), s(b0.size()), before = numbersOf(mask), yy(b0.size());
    for (size_t i = 0; i < b0.size(); i++) s[i] = before[i] ? b0[i] : 0, yy[i] = (before[i] ? s[i] : -s[i]) - b0[i];
    CHECK(nmse(numbersOf(y), yy) < 1e-14);
    device->gemm(y, op, b, false, false, 1, 0);
    device->admmUpdate(b, base, state, mask, y, 1.3, {}, ends, keep);
    Numbers step = product(yy, numbersOf(op), m, n, n), sum(b0.size());
    for (size_t i = 0; i < b0.size(); i++)
      sum[i] = b0[i] + step[i], s[i] = 1.3 * sum[i] + (before[i] ? -0.3 : 1) * s[i];
    CHECK(nmse(numbersOf(b), sum) < 1e-12);
    CHECK(nmse(numbersOf(state), s) < 1e-12);
    Numbers now = numbersOf(state);
    CHECK(numbersOf(mask) == maskOf(now, {largest(now, 0, 3 * n, 30), largest(now, 3 * n, m * n, 40)}));
    Tensor state2 = zeros(DType::f32, {m, n}), y2 = zeros(DType::f32, {m, n}), b2 = zeros(DType::f32, {m, n});
    Tensor mask2 = randomMask({m, n}, 3);
    device->admmStart(base, mask2, state2, y2);
    device->admmIterate(op, base, b2, state2, mask2, y2, 1.3, {}, ends, keep, 1);
    CHECK(bytesOf(state2) == bytesOf(state));
    device->admmRescale(base, state, mask, y, 0.5);
    Numbers kept = numbersOf(mask);
    for (size_t i = 0; i < now.size(); i++) now[i] *= kept[i] ? 1 : 0.5;
    CHECK(nmse(numbersOf(state), now) < 1e-14);
  }
}

// Wide enough for the operator to be packed once, where bfloat16 products have own loops.
TEST_CASE("many ADMM iterations in one op have the bits of products and passes one after the other") {
  struct Case {
    int64_t m, n;
    Pattern pattern;
    Counts ends, keep;
    int levels;  // distinct magnitudes of the numbers; 0: any. Few: ties at the threshold, more than are collected
  };
  const Case cases[] = {
      {200, 341, {}, {120, 200}, {9000, 20'000}, 0},
      {133, 341, {}, {80, 100, 133}, {0, 20 * 341, 5000}, 0},  // none, all, some
      {48, 1100, {}, {48}, {1000}, 0},                         // sums in two parts
      {130, 341, {}, {130}, {20'000}, 12},
      {130, 341, {}, {130}, {20'000}, 2},
      {800, 96, {}, {790, 800}, {20'000, 300}, 0},
      {50, 1100, {2, 4}, {50}, {0}, 0},
      {70, 99, {1, 3}, {70}, {0}, 0},
      {48, 50, {2, 5}, {48}, {0}, 0},
      {50, 2100, {}, {50}, {9000}, 0},
  };
  for (const Case& c : cases) {
    CAPTURE(c.m);
    CAPTURE(c.n);
    CAPTURE(c.levels);
    Shape shape{c.m, c.n};
    Numbers values = numbersOf(normal(DType::f32, shape, 1));
    for (double& value : values)
      if (c.levels > 0)
        value = std::copysign(1 + std::min(std::floor(std::abs(value) * c.levels / 3), c.levels - 1.0), value);
    Tensor base = tensorOf(DType::f32, shape, values), mask0 = randomMask(shape, 3);
    Tensor op =
        c.levels > 0 ? zeros(DType::bf16, {c.n, c.n}) : normal(DType::bf16, {c.n, c.n}, 2, 0.3 / std::sqrt(c.n));
    for (const NamedBackend& device : backends()) {
      if (c.n > 2000 && !device->info().int8Products) continue;  // takes its time
      CAPTURE(device.name);
      const std::pair<int, bool> runs[] = {{0, false}, {1, false}, {6, false}, {1, true}, {3, true}};
      for (const auto& run : runs) {
        const int count = run.first;
        const bool int8 = run.second;
        CAPTURE(count);
        CAPTURE(int8);
        std::vector<std::vector<uint8_t>> results[2];
        for (bool together : {false, true}) {
          Tensor mask = zeros(DType::u8, shape), state = zeros(DType::f32, shape), y = zeros(DType::bf16, shape),
                 b = zeros(DType::f32, shape);
          device->copy(mask0, mask);
          device->admmStart(base, mask, state, y);
          if (together && int8)
            device->admmIterateInt8(op, base, b, state, mask, y, 1.3, c.pattern, c.ends, c.keep, count);
          else if (together)
            device->admmIterate(op, base, b, state, mask, y, 1.3, c.pattern, c.ends, c.keep, count);
          for (int i = 0; i < count && !together; i++) {
            int8 ? device->int8Gemm(y, op, b) : device->gemm(y, op, b, false, false, 1, 0);
            device->admmUpdate(b, base, state, mask, y, 1.3, c.pattern, c.ends, c.keep);
          }
          for (const Tensor& tensor : {b, state, mask, y}) results[together].push_back(bytesOf(tensor));
        }
        for (size_t i = 0; i < 4; i++) CHECK(results[0][i] == results[1][i]);
      }
    }
  }
}

TEST_CASE("ADMM by integers on layers too wide for stripes") {
  const int64_t m = 50, n = 4200;
  const Tensor base = normal(DType::f32, {m, n}, 1), op = normal(DType::bf16, {n, n}, 2, 0.3 / std::sqrt(n));
  for (const NamedBackend& device : backends()) {
    if (!device->info().int8Products) continue;
    CAPTURE(device.name);
    for (const Pattern& pattern : {Pattern{}, Pattern{2, 4}}) {
      std::vector<std::vector<uint8_t>> results[2];
      for (bool together : {false, true}) {
        Tensor mask = randomMask({m, n}, 3), state = zeros(DType::f32, {m, n}), y = zeros(DType::bf16, {m, n}),
               b = zeros(DType::f32, {m, n});
        device->admmStart(base, mask, state, y);
        if (together) device->admmIterateInt8(op, base, b, state, mask, y, 1.3, pattern, {m}, {70'000}, 2);
        for (int i = 0; i < 2 && !together; i++) {
          device->int8Gemm(y, op, b);
          device->admmUpdate(b, base, state, mask, y, 1.3, pattern, {m}, {70'000});
        }
        for (const Tensor& tensor : {b, state, mask, y}) results[together].push_back(bytesOf(tensor));
      }
      for (size_t i = 0; i < 4; i++) CHECK(results[0][i] == results[1][i]);
    }
  }
}

TEST_CASE("SparseGPT's sweep") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    const int64_t m = 3, n = 10;
    Tensor factor = gramOf(n, 20, 1), weight = normal(DType::f32, {m, n}, 2), mask = zeros(DType::u8, {m, n});
    device->cholesky(factor);
    Numbers l = numbersOf(factor), w = numbersOf(weight), kept(w.size());
    auto at = [&](int64_t i, int64_t j) -> double& { return w[static_cast<size_t>(i * n + j)]; };
    auto lower = [&](int64_t i, int64_t j) { return l[static_cast<size_t>(i * n + j)]; };
    for (int64_t j = 0; j < n; j++) {  // 1 of 2 in each group, chosen when the sweep reaches it
      for (int64_t i = 0; i < m; i++) {
        if (j % 2 == 0) {
          bool first = std::pow(at(i, j) / lower(j, j), 2) >= std::pow(at(i, j + 1) / lower(j + 1, j + 1), 2);
          kept[static_cast<size_t>(i * n + j)] = first, kept[static_cast<size_t>(i * n + j + 1)] = !first;
        }
        if (kept[static_cast<size_t>(i * n + j)] != 0) continue;
        double error = at(i, j) / lower(j, j);
        for (int64_t c = j + 1; c < n; c++) at(i, c) -= error * lower(c, j);
        at(i, j) = 0;
      }
    }
    device->sparseGpt(weight, factor, mask, {1, 2}, {m}, {}, 4);
    CHECK(numbersOf(mask) == kept);
    CHECK(nmse(numbersOf(weight), w) < 1e-11);
  }
}

TEST_CASE("unstructured SparseGPT keeps exactly its share, whatever the block") {
  for (const NamedBackend& device : backends()) {
    for (int64_t block : {1, 7, 16, 1000}) {
      Tensor factor = gramOf(33, 60, 1), weight = normal(DType::f32, {5, 33}, 2), mask = zeros(DType::u8, {5, 33});
      device->cholesky(factor);
      device->sparseGpt(weight, factor, mask, {}, {2, 5}, {17, 55}, block);
      Numbers kept = numbersOf(mask);
      CHECK(std::accumulate(kept.begin(), kept.begin() + 66, 0.0) == 17);
      CHECK(std::accumulate(kept.begin() + 66, kept.end(), 0.0) == 55);
      for (int64_t i = 0; i < weight.size(); i++) REQUIRE((mask.as<uint8_t>()[i] || weight.as()[i] == 0));
    }
  }
}

TEST_CASE("DSnoT's swaps bring the expected change down and keep the rows' sizes") {
  for (const NamedBackend& device : backends()) {
    const int64_t m = 4, n = 40;
    Tensor weight = normal(DType::f32, {m, n}, 1), metric = normal(DType::f32, {m, n}, 2), mask = randomMask({m, n}, 3);
    Tensor expected = normal(DType::f32, {n}, 4), variance = tensorOf(DType::f32, {n}, Numbers(n, 1.0));
    auto changeOf = [&](int64_t i) {
      double change = 0;
      for (int64_t j = 0; j < n; j++)
        if (!mask.as<uint8_t>()[i * n + j])
          change += static_cast<double>(weight.as()[i * n + j]) * static_cast<double>(expected.as()[j]);
      return std::fabs(change);
    };
    auto sizeOfRow = [&](int64_t i) {
      return std::count(mask.as<uint8_t>() + i * n, mask.as<uint8_t>() + (i + 1) * n, 1);
    };
    double before = 0, after = 0;
    std::vector<int64_t> sizes;
    for (int64_t i = 0; i < m; i++) before += changeOf(i), sizes.push_back(sizeOfRow(i));
    device->dsnot(weight, metric, expected, variance, mask, {}, 50, 0.1, true);
    for (int64_t i = 0; i < m; i++) {
      after += changeOf(i);
      CHECK(sizeOfRow(i) == sizes[static_cast<size_t>(i)]);
    }
    CHECK(after < before);
  }
}
