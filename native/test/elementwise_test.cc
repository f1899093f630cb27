// Conversions, vector updates and sums, at odd lengths, against float64.
#include <doctest/doctest.h>

#include <limits>

#include "support.h"

using namespace alps;
using namespace alps::test;

TEST_CASE("conversions there and back give the same bits") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (DType narrow : {DType::bf16, DType::f16}) {
      Tensor all = zeros(narrow, {65536}), wide = zeros(DType::f32, {65536}), back = zeros(narrow, {65536});
      for (int i = 0; i < 65536; i++) all.as<uint16_t>()[i] = static_cast<uint16_t>(i);
      device->copy(all, wide);
      device->copy(wide, back);
      Numbers expected = numbersOf(all);
      for (size_t i = 0; i < 65536; i++) {
        if (std::isnan(expected[i])) {
          REQUIRE(std::isnan(wide.as()[i]));
          continue;
        }
        REQUIRE(static_cast<double>(wide.as()[i]) == expected[i]);
        REQUIRE(back.as<uint16_t>()[i] == i);
      }
    }
  }
}

TEST_CASE("numbers halfway between two are rounded to even") {
  for (const NamedBackend& device : backends()) {
    Tensor wide = tensorOf(DType::f32, {5}, {1 + 0x1p-8, 1 + 3 * 0x1p-8, 0x1p-140, 65520, -INFINITY});
    Tensor half = zeros(DType::bf16, {5}), small = zeros(DType::f16, {5});
    device->copy(wide, half);
    CHECK(numbersOf(half)[0] == 1);
    CHECK(numbersOf(half)[1] == 1 + 0x1p-6);
    device->copy(wide, small);
    CHECK(numbersOf(small)[2] == 0);
    CHECK(numbersOf(small)[3] == INFINITY);
    CHECK(numbersOf(small)[4] == -INFINITY);
  }
}

TEST_CASE("vector updates") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {0, 1, 7, 16, 33, 1025}) {
      const int64_t rows = 3;
      Tensor x = normal(DType::f32, {rows, n}, 1), y = normal(DType::f32, {rows, n}, 2),
             bias = normal(DType::f32, {n}, 3);
      Numbers a = numbersOf(x), b = numbersOf(y), c = numbersOf(bias), sum(a.size());
      for (size_t i = 0; i < a.size(); i++) sum[i] = 2 * a[i] - 0.5 * b[i] + c[i % static_cast<size_t>(n)];
      device->axpby(x, y, 2, -0.5);
      device->addBias(y, bias);
      CHECK(nmse(numbersOf(y), sum) < 1e-13);
      device->addTo(normal(DType::bf16, {rows, n}, 4), y);
      Numbers more = numbersOf(normal(DType::bf16, {rows, n}, 4));
      for (size_t i = 0; i < a.size(); i++) sum[i] += more[i];
      CHECK(nmse(numbersOf(y), sum) < 1e-13);
      Tensor narrow = normal(DType::bf16, {rows, n}, 4), other = normal(DType::bf16, {rows, n}, 6);
      Numbers from = numbersOf(narrow), to = numbersOf(other);
      device->axpby(narrow, other, -1, 1);
      Numbers difference = numbersOf(other);
      for (size_t i = 0; i < a.size(); i++)
        CHECK(std::abs(difference[i] - (to[i] - from[i])) <= std::abs(to[i] - from[i]) / 256);
      Tensor row = normal(DType::f32, {rows}, 5), scaled = zeros(DType::f32, {rows, n});
      device->scaleRowsColumns(x, row, bias, scaled);
      for (size_t i = 0; i < a.size(); i++)
        sum[i] = a[i] * numbersOf(row)[i / static_cast<size_t>(n)] * c[i % static_cast<size_t>(n)];
      CHECK(nmse(numbersOf(scaled), sum) < 1e-13);
    }
  }
}

TEST_CASE("sums in double") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (int64_t n : {1, 5, 64, 131}) {
      Tensor a = normal(DType::f32, {9, n}, 1), b = normal(DType::f32, {9, n}, 2);
      Tensor dots = zeros(DType::f64, {9}), columns = zeros(DType::f64, {n}), squares = zeros(DType::f64, {n});
      device->rowDots(a, b, dots);
      device->columnSums(a, false, columns);
      device->columnSums(a, true, squares);
      Numbers x = numbersOf(a), y = numbersOf(b), byRow(9), byColumn(static_cast<size_t>(n)), ofSquares = byColumn;
      for (size_t i = 0; i < x.size(); i++) {
        size_t column = i % byColumn.size();
        byRow[i / byColumn.size()] += x[i] * y[i], byColumn[column] += x[i], ofSquares[column] += x[i] * x[i];
      }
      CHECK(nmse(numbersOf(dots), byRow) < 1e-28);
      CHECK(nmse(numbersOf(columns), byColumn) < 1e-28);
      CHECK(nmse(numbersOf(squares), ofSquares) < 1e-28);
    }
  }
}

TEST_CASE("sums of the columns of many rows") {
  for (const NamedBackend& device : backends()) {
    CAPTURE(device.name);
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (int64_t rows : {127, 131, 300, 8323}) {
        const int64_t n = 33;
        Tensor x = normal(dtype, {rows, n}, 1), y = normal(dtype, {rows, n}, 2), difference = zeros(dtype, {rows, n});
        device->copy(x, difference);
        device->axpby(y, difference, -1, 1);
        Numbers expected[3];
        const Tensor* from[3] = {&x, &x, &difference};
        for (int kind = 0; kind < 3; kind++) {
          expected[kind].resize(n);
          Numbers values = numbersOf(*from[kind]);
          for (size_t i = 0; i < values.size(); i++)
            expected[kind][i % n] += kind == 0 ? values[i] : values[i] * values[i];
          Tensor out = zeros(DType::f64, {n});
          if (kind < 2) device->columnSums(x, kind == 1, out);
          if (kind == 2) device->differenceSquares(x, y, out);
          CHECK(nmse(numbersOf(out), expected[kind]) < 1e-26);
        }
      }
    }
  }
}

TEST_CASE("masks, and counting what is not finite") {
  for (const NamedBackend& device : backends()) {
    Tensor x = tensorOf(DType::f32, {1, 6}, {0, -0.0, NAN, INFINITY, 1e-40, 2}), mask = zeros(DType::u8, {1, 6});
    device->nonZeroMask(x, mask);
    CHECK(numbersOf(mask) == Numbers{0, 0, 1, 1, 1, 1});
    Tensor count = tensorOf(DType::u32, {1}, {4294967294.0});
    device->countNonFinite(x, count);
    CHECK(*count.as<uint32_t>() == UINT32_MAX);
    device->countNonFinite(x, count);
    CHECK(*count.as<uint32_t>() == UINT32_MAX);  // it does not wrap
    device->applyMask(x, tensorOf(DType::u8, {1, 6}, {1, 0, 0, 0, 255, 0}));
    CHECK(numbersOf(x)[2] == 0);
    CHECK(numbersOf(x)[4] > 0);
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      Tensor many = zeros(dtype, {1, 200001}), found = zeros(DType::u32, {1});
      device->fill(many, INFINITY);
      device->countNonFinite(many, found);
      CHECK(*found.as<uint32_t>() == 200001);
    }
  }
}

TEST_CASE("fill and transpose every dtype") {
  for (const NamedBackend& device : backends()) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u32, DType::u8}) {
      Tensor a = zeros(dtype, {5, 67}), out = zeros(dtype, {67, 5});
      device->fill(a, 3);
      CHECK(numbersOf(a) == Numbers(5 * 67, 3.0));
      for (size_t i = 0; i < a.bytes(); i++) a.as<uint8_t>()[i] = static_cast<uint8_t>(i * 31 % 97);
      device->transpose(a, out);
      Numbers from = numbersOf(a), to = numbersOf(out);
      for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 67; j++) REQUIRE(to[j * 5 + i] == from[i * 67 + j]);
    }
  }
}
