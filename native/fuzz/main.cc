// The fuzzer: a byte stream is a program of ops on one of the processor's devices. An alps::Error is an answer; a
// crash, a sanitizer's report, a wrong count or a hang is a bug.
#include "ops.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace alps;
  fuzz::Bytes bytes(data, size);
  const auto& devices = test::backends();
  Backend& backend = *devices[bytes.byte() % devices.size()].backend;
  fuzz::Arguments arguments(bytes);
  for (int op = 0; op < 12 && !bytes.empty(); op++) fuzz::runOne(backend, bytes, arguments);
  return 0;
}
