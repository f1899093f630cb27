// Many client threads at one device, cancellation and disposal from other threads, several devices: for the thread
// sanitizer, and for counts that must come out.
#include <doctest/doctest.h>

#include <future>
#include <thread>

#include "support.h"

using namespace alps;
using namespace alps::test;

namespace {

Tensor allocate(DeviceThread& device, int64_t rows, int64_t columns) {
  Tensor tensor{nullptr, 0, DType::f32, {rows, columns}};
  tensor.storage = device.backend().allocate(tensor.bytes(), Contents::zero);
  return tensor;
}

// Adds 1 to each of 64 × 64 numbers `times` times and reads them.
void addOnes(const std::shared_ptr<DeviceThread>& device, int times, std::vector<float>& out) {
  auto stream = std::make_shared<Stream>(device);
  Tensor sum = allocate(*device, 64, 64), one = allocate(*device, 64, 64);
  stream->enqueue([one](Backend& backend) { backend.fill(one, 1); });
  for (int i = 0; i < times; i++) stream->enqueue([sum, one](Backend& backend) { backend.axpby(one, sum, 1, 1); });
  out.resize(64 * 64);
  stream->enqueue([sum, &out](Backend& backend) { backend.download(sum, out.data()); });
  one.storage.reset();
  REQUIRE(settled(*stream).get() == "done");
}

void runThreads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; i++) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("client threads share a device") {
  OwnDevice device({3, 0, ""});
  std::vector<std::vector<float>> sums(4);
  runThreads(4, [&](int i) { addOnes(device.thread, 20 + i, sums[static_cast<size_t>(i)]); });
  for (int i = 0; i < 4; i++)
    for (float value : sums[static_cast<size_t>(i)]) REQUIRE(value == 20 + i);
}

TEST_CASE("several devices work side by side") {
  std::vector<std::vector<float>> sums(3);
  runThreads(3, [&](int i) {
    addOnes(openDevice("cpu", {2, (uint64_t{1} << 30) + static_cast<uint64_t>(i), ""}, {}), 30,
            sums[static_cast<size_t>(i)]);
  });
  for (const auto& sum : sums)
    for (float value : sum) REQUIRE(value == 30);
}

TEST_CASE("streams are cancelled and closed by other threads") {
  OwnDevice device({2, 0, ""});
  std::atomic<int> answers{0};
  runThreads(3, [&](int i) {
    for (int round = 0; round < 20; round++) {
      auto stream = device.stream();
      Tensor a = allocate(*device.thread, 96, 96), b = allocate(*device.thread, 96, 96);
      for (int op = 0; op < 10; op++)
        stream->enqueue([a, b](Backend& backend) { backend.gemm(a, a, b, false, true, 1, 0); });
      std::promise<void> answered;
      stream->settle([&](Backend&, const std::optional<Error>&) {
        answers++;
        answered.set_value();
      });
      std::thread other([&] {
        for (int spin = 0; spin < (round * 7 + i) % 50; spin++) std::this_thread::yield();
        stream->cancel();
      });
      a.storage.reset();
      answered.get_future().wait();
      other.join();
      std::thread([&] { stream->close(); }).join();
    }
  });
  CHECK(answers == 60);
  CHECK(device.backend().info().memoryUsed == 0);
}

TEST_CASE("memory is taken and given back by many threads") {
  auto backend = makeCpuBackend({1, 1 << 20, ""});
  std::atomic<int> refused{0};
  runThreads(4, [&](int) {
    for (int i = 0; i < 100; i++) {
      try {
        auto storage = backend->allocate(1 << 18, Contents::zero);
        CHECK(backend->info().memoryUsed > 0);
      } catch (const Error&) {
        refused++;
      }
    }
  });
  CHECK(backend->info().memoryUsed == 0);
  CHECK(backend->info().memoryPeak <= 1 << 20);
}

TEST_CASE("a device stops with work in flight") {
  for (int round = 0; round < 10; round++) {
    OwnDevice device({2, 0, ""});
    auto stream = device.stream();
    Tensor a = allocate(*device.thread, 128, 128);
    for (int op = 0; op < 20; op++) stream->enqueue([a](Backend& backend) { backend.symmetrize(a); });
    runThreads(2, [&](int i) { i == 0 ? device.thread->stop() : stream->cancel(); });
    stream->close();
  }
}
