// out[i] = f(a[i]) or f(a[i], b[i]): the form of most loops over elements.
#pragma once
#include "cuda/vectors.h"

namespace alps {

// In place of a second input that there is not.
struct None {};
constexpr const None* noInput = nullptr;

template <int N>
__device__ inline None load(const None*) {
  return {};
}

// The floating-point dtypes are float to f; masks are what they are.
template <typename T>
__device__ inline float operandOf(T x) {
  return floatOf(x);
}
__device__ inline uint8_t operandOf(uint8_t x) { return x; }

template <typename Out>
__device__ inline Out resultOf(float x) {
  return rounded<Out>(x);
}
template <typename Out>
__device__ inline Out resultOf(uint8_t x) {
  return x;
}

template <typename Out, int N, typename A, typename B, typename F>
__device__ inline Vector<Out, N> mapped(const Vector<A, N>& a, const B& b, const F& f) {
  Vector<Out, N> out;
#pragma unroll
  for (int k = 0; k < N; k++) {
    if constexpr (std::is_same_v<B, None>)
      out.at[k] = resultOf<Out>(f(operandOf(a.at[k])));
    else
      out.at[k] = resultOf<Out>(f(operandOf(a.at[k]), operandOf(b.at[k])));
  }
  return out;
}

// Vectors from `head` on, two at a time so that their loads overlap; what is before and behind them one by one. out may
// be a or b.
template <typename Out, typename A, typename B, typename F>
__global__ void mapKernel(Out* out, const A* a, const B* b, int64_t count, int64_t head, F f) {
  constexpr int N = vectorWidth<Out, A, B>;
  int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  int64_t vectors = (count - head) / N;
  for (int64_t i = thread; i < vectors; i += 2 * step) {
    int64_t at = head + i * N, next = at + step * N;
    bool two = i + step < vectors;
    auto a0 = load<N>(a + at), a1 = a0;
    auto b0 = load<N>(b + at), b1 = b0;
    if (two) a1 = load<N>(a + next), b1 = load<N>(b + next);
    store<N>(mapped<Out, N>(a0, b0, f), out + at);
    if (two) store<N>(mapped<Out, N>(a1, b1, f), out + next);
  }
  int64_t rest = count - vectors * N;
  for (int64_t i = thread; i < rest; i += step) {
    int64_t at = i < head ? i : i + vectors * N;
    store<1>(mapped<Out, 1>(load<1>(a + at), load<1>(b + at), f), out + at);
  }
}

// Elements before the first one from which vectors of N are aligned everywhere; all of them when there is none.
template <int N, typename... T>
int64_t headOf(int64_t count, const T*... at) {
  auto fits = [](auto* from, int64_t head) {
    if constexpr (std::is_same_v<decltype(from), const None*>)
      return true;
    else
      return aligned<N>(from + head);
  };
  for (int64_t head = 0; head < N && head < count; head++)
    if ((fits(at, head) && ...)) return head;
  return count;
}

// blocks(threads): the grid for so many threads.
template <typename Blocks, typename Out, typename A, typename B, typename F>
void map(Queue queue, const Blocks& blocks, int blockSize, Out* out, const A* a, const B* b, int64_t count, F f) {
  constexpr int N = vectorWidth<Out, A, B>;
  launch(queue, mapKernel<Out, A, B, F>, blocks((count + N - 1) / N), blockSize, 0, out, a, b, count,
         headOf<N>(count, static_cast<const Out*>(out), a, b), f);
}

}  // namespace alps
