// How the fuzzer calls an op of core/backend.h: arguments are made by their types, in shapes that fit the op more often
// than not, so that most calls get past core/check.h.
#pragma once
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "program.h"

namespace alps::fuzz {

// Makes arguments, and keeps the tensors, so that ops work on what others have left.
class Arguments {
 public:
  explicit Arguments(Bytes& bytes) : bytes_(bytes), sizes_(readSizes(bytes)) {}

  // Starts an op. Its signature has a word for each tensor, dtype and shape as "f:m,n", and one for each integer, "#n",
  // in the order of the arguments. The letters stand in arguments.cc.
  void begin(const char* signature);
  void read(Tensor& out);
  void read(double& out) { out = readNumber(bytes_); }
  void read(int64_t& out);
  void read(bool& out) { out = bytes_.byte() % 2; }
  void read(std::string& out);
  void read(Pattern& out);
  void read(Counts& out);

 private:
  std::string nextWord();
  int64_t sizeOf(char letter) const;
  DType dtypeOf(char letter);
  Tensor find(DType dtype, const test::Shape& shape);

  Bytes& bytes_;
  Sizes sizes_;
  std::string rest_;             // of the signature
  DType floating_ = DType::f32;  // of this op, as are the next two
  DType any_ = DType::f32;
  Counts rowEnds_;
  std::map<std::pair<DType, test::Shape>, std::vector<Tensor>> pool_;
};

template <auto Method, auto Check>
struct Op;

template <typename... Args, void (Backend::*Method)(Args...), auto Check>
struct Op<Method, Check> {
  std::tuple<Args...> arguments;

  // Whether core/check.h lets the call through.
  bool read(Arguments& from, const char* signature) {
    from.begin(signature);
    std::apply([&](auto&... argument) { (from.read(argument), ...); }, arguments);
    try {
      std::apply(Check, arguments);
    } catch (const Error&) {
      return false;
    }
    return true;
  }

  // Whether the op did its work; it may refuse what tensors hold.
  bool run(Backend& backend) {
    try {
      std::apply([&](const Args&... argument) { (backend.*Method)(argument...); }, arguments);
    } catch (const Error&) {
      return false;
    }
    return true;
  }
};

// Runs the op that the next bytes name, and looks at its results.
void runOne(Backend& backend, Bytes& bytes, Arguments& arguments);

}  // namespace alps::fuzz
