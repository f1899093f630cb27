// The addon's table of contents: every export, and its signature in src/device/addon.ts under the same name.
#include <napi.h>

#include "binding/memory.h"
#include "binding/ops.h"

namespace alps {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  Context::create(env);
  auto add = [&](const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, function, name, const_cast<char*>(name)));
  };
  add("probeCuda", probeCudaDevices);
  add("openDevice", openDeviceHandle);
  add("claimExit", claimExit);
  add("lockFile", lockFile);
  add("stopDevices", stopAllDevices);
  add("deviceInfo", deviceInfo);
  add("resetPeak", resetPeak);
  add("profileDevice", profileDevice);
  add("markStream", markStream);
  add("markedTime", markedTime);
  add("openStream", openStream);
  add("cancelStream", cancelStream);
  add("closeStream", closeStream);
  add("setPhase", setPhase);
  add("makeTensor", makeTensor);
  add("viewTensor", viewTensor);
  add("disposeTensor", disposeTensor);
  add("writeTensor", writeTensor);
  add("readTensor", readTensor);
  add("syncStream", syncStream);

#define OP(name) add(#name, Op<&Backend::name, check::name>::call)
  OP(fill);
  OP(copy);
  OP(axpby);
  OP(addBias);
  OP(scaleRowsColumns);
  OP(applyMask);
  OP(nonZeroMask);
  OP(countNonFinite);
  OP(rowDots);
  OP(quadraticForms);
  OP(columnSums);
  OP(differenceSquares);
  OP(transpose);
  OP(gemm);
  OP(int8Gemm);
  OP(gramAccumulate);
  OP(differenceSums);
  OP(differenceSumsInt8);
  OP(symmetrize);
  OP(addDiagonal);
  OP(addToDiagonal);
  OP(diagonal);
  OP(cholesky);
  OP(choleskyInverse);
  OP(inverseFactor);
  OP(inverseDiagonal);
  OP(project);
  OP(projectRows);
  OP(maskChanges);
  OP(admmStart);
  OP(admmUpdate);
  OP(admmIterate);
  OP(admmIterateInt8);
  OP(admmRescale);
  OP(cgStart);
  OP(cgStep);
  OP(cgOnSupport);
  OP(backsolve);
  OP(sparseGpt);
  OP(dsnot);
  OP(embedding);
  OP(rmsNorm);
  OP(layerNorm);
  OP(rope);
  OP(attention);
  OP(attentionStep);
  OP(gatedActivation);
  OP(activate);
  OP(softCap);
  OP(topExperts);
  OP(gatherRows);
  OP(scatterAddRows);
  OP(addTo);
  OP(crossEntropy);
  OP(divergence);
  OP(sample);
#undef OP
  return exports;
}

}  // namespace alps

static Napi::Object init(Napi::Env env, Napi::Object exports) { return alps::initialize(env, exports); }
NODE_API_MODULE(alps, init)
