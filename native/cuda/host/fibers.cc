// The scheduler behind host/device_language.h.
#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "cuda/platform.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace alps::host {

thread_local Place place;

namespace {

constexpr size_t stackBytes = 128 << 10;
constexpr size_t guardBytes = 64;
constexpr unsigned char guardPattern = 0xa5;

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer, takes those of `to`. The vector control words stay as they
// are.
extern "C" void alpsSwitchFiber(void** from, void* to);
asm(R"(
.text
.globl alpsSwitchFiber
.type alpsSwitchFiber,@function
alpsSwitchFiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size alpsSwitchFiber,.-alpsSwitchFiber
)");
#endif

enum class State { ready, atBarrier, atExchange, done };

struct Fiber {
#if defined(__x86_64__)
  void* stack = nullptr;
#else
  ucontext_t context;
#endif
  State state = State::ready;
  Dim3 thread;
  uint32_t lanes = 0;       // of the exchange it waits at
  uint32_t exchanges = 0;   // exchanges so far: consecutive ones use two buffers in turn
  size_t sharedArrays = 0;  // SHARED declarations passed so far
};

struct Array {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes = 0;
  unsigned char* data() const {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.get()) + guardBytes + 63) / 64 * 64);
  }
};

// Memory with guard zones around it, filled with NaN.
Array makeArray(size_t bytes) {
  Array array{std::make_unique<unsigned char[]>(bytes + 2 * guardBytes + 64), bytes};
  unsigned char* data = array.data();
  std::memset(data - guardBytes, guardPattern, guardBytes);
  std::memset(data, 0xff, bytes);
  std::memset(data + bytes, guardPattern, guardBytes);
  return array;
}

void checkArray(const Array& array) {
  for (size_t i = 0; i < guardBytes; i++)
    if (array.data()[array.bytes + i] != guardPattern || array.data()[-1 - static_cast<ptrdiff_t>(i)] != guardPattern)
      fail("INTERNAL", "A kernel wrote outside a shared array of ", array.bytes, " bytes");
}

uint64_t nextRandom(uint64_t& state) {
  state += 0x9e3779b97f4a7c15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void shuffle(std::vector<int>& order, uint64_t& random) {
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[nextRandom(random) % i]);
}

class Block;
thread_local Block* running = nullptr;

// The threads of one block; reused for all blocks of all launches of a system thread.
class Block {
 public:
  ~Block() {
    if (stacks_) munmap(stacks_, capacity_ * stackBytes);
  }

  void run(Dim3 blocks, Dim3 block, int threads, size_t sharedBytes, const std::function<void()>& kernel, bool shuffled,
           uint64_t& random) {
    reserve(static_cast<size_t>(threads));
    kernel_ = &kernel;
    threads_ = threads;
    arrays_.clear();
    dynamic_ = makeArray(sharedBytes);
    warps_.assign(static_cast<size_t>((threads + 31) / 32), {});
    place.blocks = blocks;
    place.block = block;
    place.threads = {static_cast<unsigned>(threads), 1, 1};
    order_.resize(static_cast<size_t>(threads));
    std::iota(order_.begin(), order_.end(), 0);
    for (int i = 0; i < threads; i++) {
      prepare(static_cast<size_t>(i));
      fibers_[static_cast<size_t>(i)].thread = {static_cast<unsigned>(i), 0, 0};
    }
    running = this;
    int done = 0;
    while (done < threads) {
      if (shuffled) shuffle(order_, random);
      bool moved = false;
      for (int i : order_) {
        Fiber& fiber = fibers_[static_cast<size_t>(i)];
        if (fiber.state != State::ready) continue;
        moved = true;
        resume(fiber);
        if (failure_) {
          running = nullptr;
          auto failure = std::exchange(failure_, nullptr);
          std::rethrow_exception(failure);
        }
        if (fiber.state == State::done) done++;
        if (fiber.state == State::atExchange) releaseWarp(i / 32);
      }
      if (releaseBlock(done)) continue;
      if (!moved && done < threads) {
        running = nullptr;
        fail("INTERNAL",
             "Threads of a block wait for others that never come: a barrier or exchange is not reached by all");
      }
    }
    running = nullptr;
    checkArray(dynamic_);
    for (const Array& array : arrays_) checkArray(array);
  }

  void wait() {
    current_->state = State::atBarrier;
    yield();
  }

  const uint64_t* exchange(uint32_t lanes, uint64_t value) {
    Fiber& fiber = *current_;
    auto& buffer = warps_[fiber.thread.x / 32].values[fiber.exchanges++ % 2];
    buffer[fiber.thread.x % 32] = value;
    fiber.state = State::atExchange;
    fiber.lanes = lanes;
    yield();
    return buffer;
  }

  void* sharedArray(size_t bytes) {
    size_t index = current_->sharedArrays++;
    if (index == arrays_.size()) arrays_.push_back(makeArray(bytes));
    if (arrays_[index].bytes != bytes) fail("INTERNAL", "Threads of a block declare different shared arrays");
    return arrays_[index].data();
  }

  void* dynamicArray() { return dynamic_.data(); }

  // The first code of a fiber.
  static void enter() {
    Block& block = *running;
    try {
      (*block.kernel_)();
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    block.current_->state = State::done;
    block.yield();
    std::abort();  // a fiber that is done is never resumed
  }

 private:
  struct Warp {
    uint64_t values[2][32] = {};
  };

  void reserve(size_t threads) {
    if (threads <= capacity_) return;
    if (stacks_) munmap(stacks_, capacity_ * stackBytes);
    capacity_ = threads;
    stacks_ = static_cast<char*>(mmap(nullptr, capacity_ * stackBytes, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks_ == MAP_FAILED) {
      stacks_ = nullptr;
      capacity_ = 0;
      fail("OUT_OF_MEMORY", "The system refused the stacks of ", threads, " fibers");
    }
    fibers_.resize(threads);
  }

  void prepare(size_t i) {
    Fiber& fiber = fibers_[i];
    fiber = {};
    char* top = stacks_ + (i + 1) * stackBytes;
#if defined(__x86_64__)
    void** at = reinterpret_cast<void**>(top) - 2;  // enter() finds the stack as after a call: 8 bytes off 16
    *at = reinterpret_cast<void*>(&Block::enter);
    fiber.stack = at - 6;
    std::memset(fiber.stack, 0, 6 * sizeof(void*));
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = top - stackBytes;
    fiber.context.uc_stack.ss_size = stackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
#endif
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    place.thread = fiber.thread;
#if defined(__x86_64__)
    alpsSwitchFiber(&scheduler_, fiber.stack);
#else
    swapcontext(&scheduler_, &fiber.context);
#endif
  }

  void yield() {
    Fiber& fiber = *current_;
#if defined(__x86_64__)
    alpsSwitchFiber(&fiber.stack, scheduler_);
#else
    swapcontext(&fiber.context, &scheduler_);
#endif
  }

  // Lanes that wait at the same exchange go on when all that it names are there.
  void releaseWarp(int warp) {
    int first = warp * 32, last = std::min(first + 32, threads_);
    for (int i = first; i < last; i++) {
      const Fiber& fiber = fibers_[static_cast<size_t>(i)];
      if (fiber.state != State::atExchange) continue;
      uint32_t there = 0;
      for (int j = first; j < last; j++) {
        const Fiber& other = fibers_[static_cast<size_t>(j)];
        if (other.state == State::atExchange && other.lanes == fiber.lanes &&
            other.exchanges % 2 == fiber.exchanges % 2)
          there |= 1u << (j - first);
      }
      uint32_t existing = last - first == 32 ? 0xffffffff : (1u << (last - first)) - 1;
      uint32_t lanes = fiber.lanes;
      if ((lanes & existing) != lanes && lanes != 0xffffffff)
        fail("INTERNAL", "A warp exchange names lanes that do not exist");
      if ((there & lanes) != (lanes & existing)) continue;
      for (int j = first; j < last; j++)
        if (lanes >> (j - first) & 1) fibers_[static_cast<size_t>(j)].state = State::ready;
    }
  }

  // Threads at the barrier go on when all that are not done are there.
  bool releaseBlock(int done) {
    int waiting = 0;
    for (int i = 0; i < threads_; i++) waiting += fibers_[static_cast<size_t>(i)].state == State::atBarrier;
    if (waiting == 0 || waiting + done < threads_) return false;
    for (int i = 0; i < threads_; i++)
      if (fibers_[static_cast<size_t>(i)].state == State::atBarrier)
        fibers_[static_cast<size_t>(i)].state = State::ready;
    return true;
  }

  const std::function<void()>* kernel_ = nullptr;
  int threads_ = 0;
  char* stacks_ = nullptr;
  size_t capacity_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<int> order_;
  std::vector<Array> arrays_;
  Array dynamic_;
  Fiber* current_ = nullptr;
#if defined(__x86_64__)
  void* scheduler_ = nullptr;
#else
  ucontext_t scheduler_;
#endif
  std::exception_ptr failure_;
};

}  // namespace

void run(Settings& settings, Grid grid, int threads, size_t sharedBytes, const std::function<void()>& kernel) {
  if (threads < 1 || threads > 1024) fail("INTERNAL", "A launch of ", threads, " threads a block");
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || sharedBytes > (227u << 10))
    fail("INTERNAL", "A launch beyond the limits of a device: ", grid.x, " × ", grid.y, " × ", grid.z, " blocks, ",
         sharedBytes, " bytes of shared memory");
  static thread_local Block block;
  uint64_t random = settings.seed * 0x2545f4914f6cdd1du + ++settings.launches;
  bool shuffled = settings.seed != 0;
  int64_t count = grid.x * grid.y * grid.z;
  // A shuffled walk over all blocks without a list of them: a start and a stride without common divisor with the count.
  int64_t start = 0, stride = 1;
  if (shuffled && count > 1) {
    start = static_cast<int64_t>(nextRandom(random) % static_cast<uint64_t>(count));
    do stride = static_cast<int64_t>(nextRandom(random) % static_cast<uint64_t>(count - 1)) + 1;
    while (std::gcd(stride, count) != 1);
  }
  Dim3 blocks{static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)};
  for (int64_t i = 0, at = start; i < count; i++, at = (at + stride) % count) {
    Dim3 index{static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
               static_cast<unsigned>(at / grid.x / grid.y)};
    block.run(blocks, index, threads, sharedBytes, kernel, shuffled, random);
  }
}

void barrier() { running->wait(); }
void warpBarrier(uint32_t lanes) { running->exchange(lanes, 0); }
const uint64_t* exchange(uint32_t lanes, uint64_t value) { return running->exchange(lanes, value); }
void* sharedBlock(size_t bytes) { return running->sharedArray(bytes); }
void* dynamicShared() { return running->dynamicArray(); }

}  // namespace alps::host
