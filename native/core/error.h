// Errors of the native layer. A code travels to TypeScript, where the public error is made.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace alps {

// Visible: it crosses from the library of the CUDA kernels to the addon.
class __attribute__((visibility("default"))) Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message) : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

template <typename... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(code, text.str());
}

// Throws INVALID_ARGUMENT when a caller's shapes, dtypes or ranges do not fit.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail("INVALID_ARGUMENT", parts...);
}

}  // namespace alps
