// Products, Gram matrices, Cholesky and the exact solves, at odd shapes, against float64.
#include <doctest/doctest.h>

#include "support.h"

using namespace alps;
using namespace alps::test;

TEST_CASE("gemm") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (const Shape& shape : {Shape{1, 1, 1},
                                 {3, 5, 7},
                                 {17, 1, 33},
                                 {1, 67, 13},
                                 {65, 31, 2},
                                 {31, 101, 67},
                                 {130, 97, 101},
                                 {32, 50, 5000}}) {
        int64_t m = shape[0], n = shape[1], k = shape[2];
        for (int turns = 0; turns < 4; turns++) {
          CAPTURE(m);
          CAPTURE(n);
          CAPTURE(k);
          bool left = turns & 1, right = turns & 2;
          Tensor a = normal(dtype, left ? Shape{k, m} : Shape{m, k}, 1);
          Tensor b = normal(dtype, right ? Shape{n, k} : Shape{k, n}, 2);
          Tensor out = normal(DType::f32, {m, n}, 3);
          Numbers before = numbersOf(out);
          Numbers expected = product(numbersOf(a), numbersOf(b), m, n, k, left, right);
          for (size_t i = 0; i < expected.size(); i++) expected[i] = 0.5 * expected[i] - 2 * before[i];
          device->gemm(a, b, out, left, right, 0.5, -2);
          CHECK(nmse(numbersOf(out), expected) < 1e-12);
        }
      }
    }
  }
}

TEST_CASE("bfloat16 products that are packed in parts, copied, or kept in bfloat16") {
  // m, n, k: rows a quarter and half a page apart, an odd sum, one in several pieces, one whose right factor has two
  // parts.
  for (const Shape& shape : {Shape{50, 49, 512}, {50, 49, 1024}, {97, 193, 131}, {49, 50, 4500}, {48, 1800, 5002}}) {
    int64_t m = shape[0], n = shape[1], k = shape[2];
    CAPTURE(k);
    Tensor a = normal(DType::bf16, {m, k}, 1), b = normal(DType::bf16, {n, k}, 2),
           given = normal(DType::f32, {m, n}, 3);
    for (const NamedBackend& device : backends()) {
      CAPTURE(device.name);
      Tensor wideA = zeros(DType::f32, {m, k}), wideB = zeros(DType::f32, {n, k}), expected = zeros(DType::f32, {m, n});
      device->copy(a, wideA);
      device->copy(b, wideB);
      device->gemm(wideA, wideB, expected, false, true, 2, 0);
      Tensor wide = zeros(DType::f32, {m, n}), narrow = zeros(DType::bf16, {m, n});
      device->copy(given, wide);
      Numbers sums = numbersOf(expected), added = numbersOf(wide);
      for (size_t i = 0; i < sums.size(); i++) added[i] = sums[i] - added[i];
      device->gemm(a, b, wide, false, true, 2, -1);
      CHECK(nmse(numbersOf(wide), added) < 1e-11);
      device->gemm(a, b, narrow, false, true, 2, 0);
      CHECK(nmse(numbersOf(narrow), sums) < 1e-5);
      Tensor apart = zeros(DType::bf16, {n * k + 1});  // from an odd number on
      apart.byteOffset = sizeOf(DType::bf16), apart.shape = {n, k};
      device->copy(b, apart);
      Tensor again = zeros(DType::bf16, {m, n});
      device->gemm(a, apart, again, false, true, 2, 0);
      CHECK(bytesOf(again) == bytesOf(narrow));
    }
  }
}

// What int8Gemm is where integers are multiplied: everything but the last sum as it is rounded.
struct Integers {
  std::vector<int> values;
  double scale;
};
static Integers integersOf(const Numbers& x) {
  float peak = 0;
  for (double number : x) peak = std::max(peak, std::fabs(static_cast<float>(number)));
  float factor = peak > 0 ? 127 / peak : 0;
  Integers integers{{}, peak / 127};
  for (double number : x)
    integers.values.push_back(static_cast<int>(std::nearbyint(static_cast<float>(number) * factor)));
  return integers;
}

static bool takesIntegers(const NamedBackend& device) {
  return device->info().int8Products || device->info().isa == "scalar";
}

TEST_CASE("int8Gemm") {
  // Fewer rows than are packed for, odd sizes, sums in two pieces, a right factor in two parts.
  for (const Shape& shape : {Shape{5, 9}, {47, 60}, {48, 1}, {51, 131}, {203, 97}, {64, 192}, {49, 2050}, {48, 5830}}) {
    const int64_t m = shape[0], n = shape[1];
    CAPTURE(n);
    Tensor a = normal(DType::bf16, {m, n}, 1), b = normal(DType::bf16, {n, n}, 2);
    Numbers left = numbersOf(a), right = numbersOf(b);
    for (int64_t j = 0; j < n; j++)
      right[static_cast<size_t>(j * n + j)] += 100;  // beyond what the columns' scales have
    for (int64_t j = 0; j < n; j++) left[static_cast<size_t>(2 * n + j)] = 0;
    a = tensorOf(DType::bf16, {m, n}, left), b = tensorOf(DType::bf16, {n, n}, right);
    right = numbersOf(b);
    // Long columns have a scale for each 512 rows.
    const int64_t piece = n > 2048 ? 512 : n, pieces = (n + piece - 1) / piece, step = n > 1000 ? 47 : 1;
    Numbers expected;  // of every step-th row
    auto expect = [&] {
      std::vector<Integers> columns;  // [pieces, n]
      for (int64_t p = 0; p < pieces; p++)
        for (int64_t j = 0; j < n; j++) {
          Numbers column;
          for (int64_t l = p * piece; l < std::min(n, (p + 1) * piece); l++)
            column.push_back(l == j ? 0 : right[static_cast<size_t>(l * n + j)]);
          columns.push_back(integersOf(column));
        }
      for (int64_t i = 0; i < m; i += step) {
        Integers row = integersOf(Numbers(left.begin() + i * n, left.begin() + (i + 1) * n));
        for (int64_t j = 0; j < n; j++) {
          double value = right[static_cast<size_t>(j * n + j)] * left[static_cast<size_t>(i * n + j)];
          for (int64_t p = 0; p < pieces; p++) {
            const Integers& column = columns[static_cast<size_t>(p * n + j)];
            int64_t sum = 0;
            for (size_t l = 0; l < column.values.size(); l++)
              sum += row.values[static_cast<size_t>(p * piece) + l] * column.values[l];
            value += row.scale * column.scale * static_cast<double>(sum);
          }
          expected.push_back(value);
        }
      }
    };
    for (const NamedBackend& device : backends()) {
      bool isLast = device.name == backends().back().name;
      if (n > 5000 && !(isLast && device->info().int8Products)) continue;  // takes its time
      CAPTURE(device.name);
      Tensor out = normal(DType::f32, {m, n}, 3);
      device->int8Gemm(a, b, out);
      if (!takesIntegers(device) || m < 48) {
        Tensor plain = zeros(DType::f32, {m, n});
        device->gemm(a, b, plain, false, false, 1, 0);
        CHECK(bytesOf(out) == bytesOf(plain));
        continue;
      }
      if (expected.empty()) expect();
      Numbers got = numbersOf(out), some;
      for (int64_t i = 0; i < m; i += step) some.insert(some.end(), got.begin() + i * n, got.begin() + (i + 1) * n);
      CHECK(nmse(some, expected) < 1e-13);
    }
  }
}

TEST_CASE("int8Gemm keeps what is not finite to its rows and columns, and what is tiny exact to its digits") {
  for (const NamedBackend& device : backends()) {
    if (!takesIntegers(device)) continue;
    CAPTURE(device.name);
    const int64_t m = 50, n = 60;
    Numbers left = numbersOf(normal(DType::bf16, {m, n}, 1)), right = numbersOf(normal(DType::bf16, {n, n}, 2));
    auto run = [&] {
      Tensor out = zeros(DType::f32, {m, n});
      device->int8Gemm(tensorOf(DType::bf16, {m, n}, left), tensorOf(DType::bf16, {n, n}, right), out);
      return numbersOf(out);
    };
    Numbers usual = run();
    left[3 * n + 7] = NAN, left[5 * n] = INFINITY, right[9 * n + 11] = -INFINITY, right[59 * n + 58] = NAN;
    Numbers marked = run();
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++) {
        size_t at = static_cast<size_t>(i * n + j);
        bool lost = i == 3 || i == 5 || j == 11 || j == 58;
        CHECK(std::isnan(marked[at]) == lost);
        if (!lost) CHECK(marked[at] == usual[at]);
      }
    left = numbersOf(normal(DType::bf16, {m, n}, 1, 0x1p-100)),
    right = numbersOf(normal(DType::bf16, {n, n}, 2, 0x1p60));
    Numbers scaled = run();
    for (double& x : scaled) x *= 0x1p40;
    CHECK(nmse(scaled, usual) < 1e-12);
  }
}

TEST_CASE("differenceSumsInt8") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t tokens : {1, 70, 600, 1030}) {
      for (int64_t n : {1, 47, 67, 200}) {
        CAPTURE(tokens);
        CAPTURE(n);
        Tensor x = normal(DType::bf16, {tokens, n}, 5), y = normal(DType::bf16, {tokens, n}, 6);
        Tensor cross = normal(DType::f32, {n, n}, 7), gram = normal(DType::f32, {n, n}, 8);
        Numbers own = numbersOf(x), other = numbersOf(y), expectedCross = numbersOf(cross),
                expectedGram = numbersOf(gram);
        for (int64_t l = 0; l < tokens; l++) own[static_cast<size_t>(l * n)] = 0;  // a column of zeros
        x = tensorOf(DType::bf16, {tokens, n}, own);
        device->differenceSumsInt8(x, y, cross, gram);
        const int64_t piece = takesIntegers(device) ? 512 : tokens;
        for (int64_t first = 0; first < tokens; first += piece) {
          std::vector<Integers> columns, differences;
          for (int64_t j = 0; j < n; j++) {
            Numbers column, difference;
            for (int64_t l = first; l < std::min(tokens, first + piece); l++) {
              size_t at = static_cast<size_t>(l * n + j);
              column.push_back(own[at]);
              difference.push_back(static_cast<float>(other[at]) - static_cast<float>(own[at]));
            }
            columns.push_back(integersOf(column)), differences.push_back(integersOf(difference));
          }
          for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
              const Integers &left = columns[static_cast<size_t>(i)], &difference = differences[static_cast<size_t>(i)],
                             &right = differences[static_cast<size_t>(j)];
              int64_t sum = 0, squares = 0;
              for (size_t l = 0; l < right.values.size(); l++)
                sum += left.values[l] * right.values[l], squares += difference.values[l] * right.values[l];
              size_t at = static_cast<size_t>(i * n + j);
              expectedCross[at] += left.scale * right.scale * static_cast<double>(sum);
              expectedGram[at] += difference.scale * right.scale * static_cast<double>(squares);
            }
        }
        Numbers gotGram = numbersOf(gram), upper, expectedUpper;
        for (int64_t i = 0; i < n; i++)
          for (int64_t j = i; j < n; j++) {
            upper.push_back(gotGram[static_cast<size_t>(i * n + j)]);
            expectedUpper.push_back(expectedGram[static_cast<size_t>(i * n + j)]);
          }
        // As exact as float32 sums, or (as here without integers) as rounding to a hundredth.
        const double most = takesIntegers(device) ? 1e-13 : 1e-3;
        CHECK(nmse(numbersOf(cross), expectedCross) < most);
        CHECK(nmse(upper, expectedUpper) < most);
        if (n < 67) continue;
        Tensor again = normal(DType::f32, {n, n}, 7), alone = normal(DType::f32, {n, n}, 8);
        Tensor copy = zeros(DType::bf16, {tokens, n});
        y = normal(DType::bf16, {tokens, n}, 6);
        device->copy(y, copy);
        device->differenceSumsInt8(x, y, again, {});
        device->differenceSumsInt8(x, copy, {}, alone);
        CHECK(bytesOf(again) == bytesOf(cross));
        CHECK(bytesOf(alone) == bytesOf(gram));
      }
    }
  }
}

TEST_CASE("differenceSumsInt8 keeps what is not finite to its rows and columns") {
  for (const NamedBackend& device : backends()) {
    if (!takesIntegers(device)) continue;
    CAPTURE(device.name);
    const int64_t tokens = 50, n = 60;
    Numbers x = numbersOf(normal(DType::bf16, {tokens, n}, 1)), y = numbersOf(normal(DType::bf16, {tokens, n}, 2));
    auto run = [&] {
      Tensor cross = zeros(DType::f32, {n, n}), gram = zeros(DType::f32, {n, n});
      device->differenceSumsInt8(tensorOf(DType::bf16, {tokens, n}, x), tensorOf(DType::bf16, {tokens, n}, y), cross,
                                 gram);
      return std::pair(numbersOf(cross), numbersOf(gram));
    };
    auto usual = run();
    x[3 * n + 7] = NAN, y[5 * n + 2] = INFINITY;
    auto marked = run();
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) {
        size_t at = static_cast<size_t>(i * n + j);
        bool lost = i == 7 || j == 7 || j == 2;
        CHECK(std::isnan(marked.first[at]) == lost);
        if (!lost) CHECK(marked.first[at] == usual.first[at]);
        if (j < i) continue;
        CHECK(std::isnan(marked.second[at]) == (lost || i == 2));
        if (!lost && i != 2) CHECK(marked.second[at] == usual.second[at]);
      }
  }
}

TEST_CASE("a product over nothing is beta times what was there") {
  for (const NamedBackend& device : backends()) {
    Tensor out = normal(DType::f32, {3, 5}, 1);
    device->gemm(zeros(DType::f32, {3, 0}), zeros(DType::f32, {0, 5}), out, false, false, 1, 1);
    CHECK(numbersOf(out) == numbersOf(normal(DType::f32, {3, 5}, 1)));
    device->gemm(zeros(DType::f32, {3, 0}), zeros(DType::f32, {0, 5}), out, false, false, 1, 0);
    CHECK(numbersOf(out) == Numbers(15));
    for (DType dtype : {DType::f32, DType::bf16}) {  // nor does alpha = 0 look at anything but beta
      out = tensorOf(DType::f32, {3, 5}, Numbers(15, NAN));
      device->gemm(zeros(dtype, {3, 4}), zeros(dtype, {4, 5}), out, false, false, 0, 0);
      CHECK(numbersOf(out) == Numbers(15));
    }
    device->gemm(zeros(DType::f32, {0, 4}), zeros(DType::f32, {4, 5}), zeros(DType::f32, {0, 5}), false, false, 1, 0);
  }
}

TEST_CASE("quadratic forms") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (const Shape& shape : {Shape{1, 1}, {3, 5}, {2, 192}, {193, 67}, {9, 193}, {400, 401}, {5, 1301}}) {
      int64_t m = shape[0], n = shape[1];
      CAPTURE(n);
      Tensor a = normal(DType::f32, {m, n}, 1), x = normal(DType::f32, {n, n}, 2);
      Numbers factor = numbersOf(x), symmetric(factor.size());
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
          symmetric[static_cast<size_t>(i * n + j)] =
              factor[static_cast<size_t>(i * n + j)] + factor[static_cast<size_t>(j * n + i)];
      Tensor s = tensorOf(DType::f32, {n, n}, symmetric), out = zeros(DType::f64, {m});
      device->quadraticForms(a, s, out);
      Numbers values = numbersOf(a), products = product(values, numbersOf(s), m, n, n),
              expected(static_cast<size_t>(m));
      for (size_t i = 0; i < values.size(); i++) expected[i / static_cast<size_t>(n)] += values[i] * products[i];
      CHECK(nmse(numbersOf(out), expected) < 1e-12);
    }
    Tensor out = tensorOf(DType::f64, {2}, {3, 4});  // over nothing
    device->quadraticForms(zeros(DType::f32, {2, 0}), zeros(DType::f32, {0, 0}), out);
    CHECK(numbersOf(out) == Numbers{0, 0});
    device->quadraticForms(zeros(DType::f32, {0, 3}), zeros(DType::f32, {3, 3}), zeros(DType::f64, {0}));
  }
}

TEST_CASE("Gram matrices") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 3, 64, 67, 131, 200}) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(n);
        Tensor x = normal(dtype, {29, n}, 5), gram = zeros(DType::f32, {n, n});
        device->gramAccumulate(x, gram);
        device->gramAccumulate(x, gram);
        device->symmetrize(gram);
        device->addDiagonal(gram, 3);
        Numbers expected = product(numbersOf(x), numbersOf(x), n, n, 29, true);
        for (double& value : expected) value *= 2;
        for (int64_t i = 0; i < n; i++) expected[static_cast<size_t>(i * n + i)] += 3;
        CHECK(nmse(numbersOf(gram), expected) < 1e-12);
        Tensor diagonal = zeros(DType::f32, {n});
        device->diagonal(gram, diagonal);
        for (int64_t i = 0; i < n; i++) REQUIRE(diagonal.as()[i] == gram.as()[i * n + i]);
        Tensor before = zeros(DType::f32, {n, n});
        device->copy(gram, before);
        device->addToDiagonal(gram, diagonal, 0.5);
        for (int64_t i = 0; i < n * n; i++)
          REQUIRE(gram.as()[i] == (i % (n + 1) == 0 ? 1.5F * before.as()[i] : before.as()[i]));
      }
    }
  }
}

TEST_CASE("Gram matrices of differences") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 47, 64, 67, 200}) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(n);
        Tensor x = normal(dtype, {29, n}, 5), y = normal(dtype, {29, n}, 6);
        Tensor difference = zeros(dtype, {29, n}), gram = zeros(DType::f32, {n, n}),
               expected = zeros(DType::f32, {n, n});
        device->copy(x, difference);
        device->axpby(y, difference, -1, 1);
        device->gramAccumulate(difference, expected);
        Tensor squares = zeros(DType::f64, {n}), expectedSquares = zeros(DType::f64, {n}),
               other = zeros(dtype, {29, n});
        device->copy(y, other);
        device->columnSums(difference, true, expectedSquares);
        device->differenceSquares(x, other, squares);
        CHECK(numbersOf(squares) == numbersOf(expectedSquares));
        Tensor cross = normal(DType::f32, {n, n}, 7), expectedCross = normal(DType::f32, {n, n}, 7);
        device->gemm(x, difference, expectedCross, true, false, -1, 1);
        device->copy(y, other);
        device->differenceSums(x, other, cross, gram);
        device->symmetrize(expected);
        device->symmetrize(gram);
        CHECK(numbersOf(gram) == numbersOf(expected));
        CHECK(nmse(numbersOf(cross), numbersOf(expectedCross)) < 1e-13);
      }
    }
    device->differenceSquares(zeros(DType::bf16, {0, 3}), zeros(DType::bf16, {0, 3}), zeros(DType::f64, {3}));
    for (auto sums : {&Backend::differenceSums, &Backend::differenceSumsInt8})
      (device.backend.get()->*sums)(zeros(DType::bf16, {0, 3}), zeros(DType::bf16, {0, 3}), zeros(DType::f32, {3, 3}),
                                    {});
  }
}

TEST_CASE("Cholesky factor and inverse") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 2, 31, 32, 33, 64, 65, 97, 130, 193}) {
      CAPTURE(n);
      Tensor gram = gramOf(n, n + 8, 7), factor = zeros(DType::f32, {n, n});
      device->copy(gram, factor);
      device->cholesky(factor);
      Numbers l = numbersOf(factor);
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) REQUIRE(l[static_cast<size_t>(i * n + j)] == 0);
      CHECK(nmse(product(l, l, n, n, n, false, true), numbersOf(gram)) < 1e-11);
      device->choleskyInverse(factor);
      Numbers identity(static_cast<size_t>(n * n));
      for (int64_t i = 0; i < n; i++) identity[static_cast<size_t>(i * n + i)] = 1;
      CHECK(nmse(product(numbersOf(factor), numbersOf(gram), n, n, n), identity) < 1e-8);

      Tensor turned = zeros(DType::f32, {n, n}), diagonal = zeros(DType::f32, {n});
      device->copy(gram, turned);
      device->inverseFactor(turned);
      l = numbersOf(turned);
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) REQUIRE(l[static_cast<size_t>(i * n + j)] == 0);
      CHECK(nmse(product(l, l, n, n, n, false, true), numbersOf(factor)) < 1e-8);
      device->copy(gram, turned);
      device->inverseDiagonal(turned, diagonal);
      Numbers expected(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; i++) expected[static_cast<size_t>(i)] = factor.as()[i * n + i];
      CHECK(nmse(numbersOf(diagonal), expected) < 1e-9);
    }
  }
}

TEST_CASE("Cholesky factors and inverses of several matrices have the bits of each alone") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 48, 130}) {
      CAPTURE(n);
      const int64_t count = 3;
      Tensor together = zeros(DType::f32, {count, n, n}), one = zeros(DType::f32, {n, n});
      for (int64_t i = 0; i < count; i++)
        std::copy_n(gramOf(n, n + 8, static_cast<uint32_t>(i)).as(), n * n, together.as() + i * n * n);
      Tensor given = zeros(DType::f32, together.shape), factors = zeros(DType::f32, together.shape);
      device->copy(together, given);
      device->cholesky(together);
      device->copy(together, factors);
      device->choleskyInverse(together);
      for (int64_t i = 0; i < count; i++) {
        std::copy_n(given.as() + i * n * n, n * n, one.as());
        device->cholesky(one);
        CHECK(std::equal(one.as(), one.as() + n * n, factors.as() + i * n * n));
        device->choleskyInverse(one);
        CHECK(std::equal(one.as(), one.as() + n * n, together.as() + i * n * n));
      }
      device->copy(given, together);
      together.as()[2 * n * n - 1] = -1;  // the last pivot of the second
      together.as()[2 * n * n] = -1;      // the first of the third
      std::string message = messageOf([&] { device->cholesky(together); });
      CHECK(message.find("pivot " + std::to_string(n)) != std::string::npos);
    }
    device->cholesky(zeros(DType::f32, {0, 4, 4}));
    device->choleskyInverse(zeros(DType::f32, {int64_t{1} << 52, 0, 0}));
    Tensor many = zeros(DType::f32, {9, 1, 1});
    device->fill(many, 4);
    device->cholesky(many);
    CHECK(numbersOf(many) == Numbers(9, 2));
  }
}

TEST_CASE("Cholesky's tasks keep their order where threads have to wait for a core") {
  const int64_t n = 300;
  Tensor gram = gramOf(n, n + 8, 7), other = gramOf(n, n + 8, 8);
  auto one = makeCpuBackend({1, 0, ""}), many = makeCpuBackend({16, 0, ""});
  auto inverse = [&](Backend& device, Tensor& out) {
    device.copy(gram, out);
    device.cholesky(out);
    device.choleskyInverse(out);
  };
  auto pair = [&](Backend& device, Tensor& out) {
    std::copy_n(gram.as(), n * n, out.as());
    std::copy_n(other.as(), n * n, out.as() + n * n);
    device.cholesky(out);
    device.choleskyInverse(out);
  };
  auto factor = [&](Backend& device, Tensor& out) {
    device.copy(gram, out);
    device.inverseFactor(out);
  };
  auto holds = [&](auto run, const Shape& shape) {
    Tensor expected = zeros(DType::f32, shape);
    run(*one, expected);
    for (int i = 0; i < 150; i++) {
      Tensor found = zeros(DType::f32, shape);
      run(*many, found);
      REQUIRE(bytesOf(found) == bytesOf(expected));
    }
  };
  holds(inverse, {n, n});
  holds(pair, {2, n, n});
  holds(factor, {n, n});
}

TEST_CASE("what is not positive definite is refused") {
  for (const NamedBackend& device : backends()) {
    for (int64_t n : {1, 40, 130}) {
      for (double bad : {0.0, -1.0, double{NAN}}) {
        Tensor a = zeros(DType::f32, {n, n});
        device->addDiagonal(a, 1);
        a.as()[n * n - 1] = static_cast<float>(bad);
        CHECK(codeOf([&] { device->cholesky(a); }) == "NOT_POSITIVE_DEFINITE");
      }
      CHECK(codeOf([&] { device->choleskyInverse(zeros(DType::f32, {n, n})); }) == "NOT_POSITIVE_DEFINITE");
      CHECK(codeOf([&] { device->inverseFactor(zeros(DType::f32, {n, n})); }) == "NOT_POSITIVE_DEFINITE");
      CHECK(codeOf([&] {
              device->inverseDiagonal(zeros(DType::f32, {n, n}), zeros(DType::f32, {n}));
            }) == "NOT_POSITIVE_DEFINITE");
      CHECK(codeOf([&] {
              device->backsolve(zeros(DType::f32, {n, n}), zeros(DType::f32, {1, n}), randomMask({1, n}, 1, 1),
                                zeros(DType::f32, {1, n}));
            }) == "NOT_POSITIVE_DEFINITE");
    }
  }
}

TEST_CASE("the exact solve on a support leaves no residual there") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {11, 40}}) {
      Tensor gram = gramOf(n, 2 * n, 3), right = normal(DType::f32, {m, n}, 4), mask = randomMask({m, n}, 5);
      Tensor x = zeros(DType::f32, {m, n});
      device->backsolve(gram, right, mask, x);
      Numbers residual = product(numbersOf(x), numbersOf(gram), m, n, n), kept = numbersOf(mask), b = numbersOf(right);
      for (size_t i = 0; i < residual.size(); i++) {
        if (kept[i] == 0) REQUIRE(x.as()[i] == 0);
        residual[i] *= kept[i], b[i] *= kept[i];
      }
      CHECK(nmse(residual, b) < 1e-9);
    }
  }
}

TEST_CASE("conjugate gradients reach the exact solve") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    const int64_t m = 5, n = 37;
    Tensor gram = gramOf(n, 3 * n, 3), right = normal(DType::f32, {m, n}, 4), mask = randomMask({m, n}, 5);
    Tensor exact = zeros(DType::f32, {m, n}), x = zeros(DType::f32, {m, n}), residual = zeros(DType::f32, {m, n});
    Tensor direction = zeros(DType::f32, {m, n}), q = zeros(DType::f32, {m, n}), active = zeros(DType::u32, {1});
    Tensor rr = zeros(DType::f64, {m}), rr0 = zeros(DType::f64, {m});
    device->backsolve(gram, right, mask, exact);
    device->copy(right, residual);
    device->cgStart(residual, mask, direction, rr, rr0);
    for (int step = 0; step < 40; step++) {
      device->gemm(direction, gram, q, false, false, 1, 0);
      device->cgStep(q, mask, x, residual, direction, rr, rr0, 1e-5, active);
    }
    CHECK(*active.as<uint32_t>() == 0);
    CHECK(nmse(numbersOf(x), numbersOf(exact)) < 1e-8);

    Tensor own = zeros(DType::f32, {m, n}), moved = zeros(DType::u32, {40});
    device->copy(right, residual);
    device->cgOnSupport(gram, mask, own, residual, 1e-5, m * n / 2, moved);
    CHECK(moved.as<uint32_t>()[0] == m);
    CHECK(moved.as<uint32_t>()[39] == 0);
    CHECK(nmse(numbersOf(own), numbersOf(exact)) < 1e-8);
  }
}
