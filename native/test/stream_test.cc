// Streams and the device's thread: order, fairness, errors, cancellation, the end of a stream.
#include "core/stream.h"

#include <doctest/doctest.h>

#include <latch>

#include "support.h"

using namespace alps;
using namespace alps::test;

namespace {

// A device whose first stream holds its thread until open() is called.
struct Held {
  OwnDevice device{{1, 0, "scalar"}};
  std::shared_ptr<Stream> holder = device.stream();
  std::latch running{1}, gate{1};
  Held() {
    holder->enqueue([this](Backend&) {
      running.count_down();
      gate.wait();
    });
    running.wait();
  }
  void open() { gate.count_down(); }
};

const BackendOptions small{2, 0, "scalar"};

}  // namespace

TEST_CASE("a stream runs in order") {
  OwnDevice device(small);
  auto stream = device.stream();
  std::vector<int> order;
  for (int i = 0; i < 100; i++) stream->enqueue([&order, i](Backend&) { order.push_back(i); });
  CHECK(settled(*stream).get() == "done");
  for (int i = 0; i < 100; i++) CHECK(order[static_cast<size_t>(i)] == i);
}

TEST_CASE("streams are served in turn") {
  Held held;
  auto a = held.device.stream(), b = held.device.stream();
  std::string order;
  for (int i = 0; i < 3; i++) a->enqueue([&](Backend&) { order += 'a'; });
  for (int i = 0; i < 3; i++) b->enqueue([&](Backend&) { order += 'b'; });
  auto endA = settled(*a), endB = settled(*b);
  held.open();
  endA.get(), endB.get();
  CHECK(order == "ababab");
}

TEST_CASE("a failing op poisons the stream until the next settle") {
  OwnDevice device(small);
  auto stream = device.stream();
  int ran = 0, always = 0;
  stream->enqueue([](Backend&) { fail("FIRST", "the first"); });
  stream->enqueue([&](Backend&) { ran++; });
  stream->enqueueAlways([&] { always++; });
  stream->enqueue([](Backend&) { fail("SECOND", "the second"); });
  CHECK(settled(*stream).get() == "FIRST");
  CHECK(ran == 0);
  CHECK(always == 1);
  stream->enqueue([&](Backend&) { ran++; });
  CHECK(settled(*stream).get() == "done");
  CHECK(ran == 1);
}

TEST_CASE("every exception of an op is an error of the stream") {
  OwnDevice device(small);
  auto stream = device.stream();
  stream->enqueue([](Backend&) { throw std::bad_alloc(); });
  CHECK(settled(*stream).get() == "OUT_OF_MEMORY");
  stream->enqueue([](Backend&) { throw std::length_error("too long"); });
  CHECK(settled(*stream).get() == "INTERNAL");
}

TEST_CASE("an error of one stream is not another's") {
  OwnDevice device(small);
  auto a = device.stream(), b = device.stream();
  a->enqueue([](Backend&) { fail("FAILED", ""); });
  CHECK(settled(*b).get() == "done");
  CHECK(settled(*a).get() == "FAILED");
}

TEST_CASE("a cancelled stream answers at once and drops what is queued") {
  Held held;
  auto stream = held.device.stream();
  int ran = 0, always = 0;
  stream->enqueue([&](Backend&) { ran++; });
  stream->enqueueAlways([&] { always++; });
  auto end = settled(*stream);
  stream->cancel();
  CHECK(end.get() == "ABORTED");  // while the other stream's op still runs
  CHECK(always == 1);
  CHECK(stream->cancelled());
  held.open();
  stream->enqueue([&](Backend&) { ran++; });
  CHECK(settled(*stream).get() == "ABORTED");
  CHECK(ran == 0);
}

TEST_CASE("cancelling stops a running op between its tasks") {
  OwnDevice device(small);
  auto stream = device.stream();
  std::latch started{1};
  stream->enqueue([&](Backend& backend) {
    Tensor tensor = zeros(DType::f32, {1 << 12});
    started.count_down();
    while (true) backend.fill(tensor, 1);
  });
  started.wait();
  stream->cancel();
  CHECK(settled(*stream).get() == "ABORTED");
}

TEST_CASE("a closed stream waits for its op, and takes nothing more") {
  OwnDevice device(small);
  auto stream = device.stream();
  std::latch started{1};
  std::atomic<bool> ended{false};
  stream->enqueue([&](Backend&) {
    started.count_down();
    while (!runningCancelled()) std::this_thread::yield();
    ended = true;
  });
  started.wait();
  stream->close();
  CHECK(ended);
  int ran = 0;
  stream->enqueue([&](Backend&) { ran++; });
  stream->settle([&](Backend&, const std::optional<Error>&) { ran++; });
  stream->close();
  CHECK(ran == 0);
}

TEST_CASE("queued ops keep their tensors, and give them back when they have run") {
  OwnDevice device(small);
  auto stream = device.stream();
  Tensor tensor{device.backend().allocate(4000, Contents::zero), 0, DType::f32, {1000}};
  std::weak_ptr<Storage> storage = tensor.storage;
  std::vector<float> values(1000);
  stream->enqueue([tensor](Backend& backend) { backend.fill(tensor, 3); });
  stream->enqueue([tensor, &values](Backend& backend) { backend.download(tensor, values.data()); });
  tensor.storage.reset();
  CHECK(settled(*stream).get() == "done");
  CHECK(values[999] == 3);
  stream->close();
  CHECK(storage.expired());
  CHECK(device.backend().info().memoryUsed == 0);
}

TEST_CASE("the limit of memory is checked before memory is taken") {
  auto backend = makeCpuBackend({1, 1 << 20, ""});
  auto half = backend->allocate(1 << 19, Contents::zero);
  CHECK(codeOf([&] { backend->allocate((1 << 19) + 1, Contents::zero); }) == "OUT_OF_MEMORY");
  CHECK(codeOf([&] { backend->allocate(size_t{1} << 55, Contents::zero); }) == "OUT_OF_MEMORY");
  CHECK(backend->info().memoryUsed == 1 << 19);
  auto rest = backend->allocate(1 << 19, Contents::zero);
  CHECK(backend->info().memoryPeak == 1 << 20);
  half.reset(), rest.reset();
  CHECK(backend->info().memoryUsed == 0);
  CHECK(backend->info().memoryPeak == 1 << 20);
  backend->resetPeak();
  CHECK(backend->info().memoryPeak == 0);
}

TEST_CASE("devices are opened once for their options") {
  CHECK(openDevice("cpu", {1, 1 << 20, ""}, {}) == openDevice("cpu", {1, 1 << 20, ""}, {}));
  CHECK(openDevice("cpu", {1, 1 << 20, ""}, {}) != openDevice("cpu", {2, 1 << 20, ""}, {}));
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:12345", "cuda:0"})
    CHECK(codeOf([&] { openDevice(name, {}, {"/nowhere/libalps_cuda.so", {}}); }) == "NO_DEVICE");
  CHECK(codeOf([] { openDevice("cpu", {1, 0, "sse9"}, {}); }) == "INVALID_ARGUMENT");
}

namespace {

std::shared_ptr<DeviceThread> openNumbered(int number) {
  return openDevice("cpu", {2, (uint64_t{1} << 20) + static_cast<uint64_t>(number), ""}, {});
}

void openOthers() {
  for (int i = 1; i <= 4; i++) openNumbered(i);
}

}  // namespace

TEST_CASE("a device goes when others were opened and nothing uses it") {
  std::weak_ptr<DeviceThread> unused = openNumbered(100);
  auto used = openNumbered(101);
  CHECK(!unused.expired());
  openOthers();
  CHECK(unused.expired());
  CHECK(openNumbered(101) == used);
  auto storage = used->backend().allocate(64, Contents::zero);
  std::weak_ptr<DeviceThread> watched = used;
  used.reset();
  openOthers();
  CHECK(watched.expired());
  storage.reset();  // after its device
  CHECK(openNumbered(101)->backend().info().memoryUsed == 0);
}

TEST_CASE("a device goes with the last stream that has work for it") {
  std::latch running{1}, gate{1};
  std::weak_ptr<DeviceThread> watched;
  std::weak_ptr<Stream> last;
  {
    auto device = openNumbered(200);
    auto stream = std::make_shared<Stream>(device);
    watched = device, last = stream;
    stream->enqueue([&](Backend&) {
      running.count_down();
      gate.wait();
    });
    running.wait();
  }
  openOthers();
  CHECK(!watched.expired());
  gate.count_down();
  while (!watched.expired()) std::this_thread::yield();
  CHECK(last.expired());
  CHECK(openNumbered(200)->backend().info().memoryUsed == 0);
}
