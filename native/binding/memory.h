// Devices, streams, tensors and the two awaits (read, sync); and what Node lacks of file locks.
#pragma once
#include <napi.h>

namespace alps {

Napi::Value probeCudaDevices(const Napi::CallbackInfo& info);  // ({kernels, folders}) => {devices, tried, ...}
Napi::Value openDeviceHandle(
    const Napi::CallbackInfo& info);  // (name, {threads, memoryLimit, isa}, {kernels, folders}) => device
Napi::Value claimExit(const Napi::CallbackInfo& info);       // () => whether it is this process's first call
Napi::Value lockFile(const Napi::CallbackInfo& info);        // (descriptor) => 'locked', 'held' or 'unknown'
Napi::Value stopAllDevices(const Napi::CallbackInfo& info);  // (), before the process ends
Napi::Value deviceInfo(const Napi::CallbackInfo& info);      // (device) => {name, details, ...}
Napi::Value resetPeak(const Napi::CallbackInfo& info);       // (device) => undefined
Napi::Value profileDevice(const Napi::CallbackInfo& info);   // (device, on) => what was measured until now
Napi::Value openStream(const Napi::CallbackInfo& info);      // (device) => stream
Napi::Value cancelStream(const Napi::CallbackInfo& info);    // (stream)
Napi::Value closeStream(const Napi::CallbackInfo& info);     // (stream)
Napi::Value setPhase(const Napi::CallbackInfo& info);        // (stream, name)
Napi::Value markStream(const Napi::CallbackInfo& info);      // (stream) => mark
Napi::Value markedTime(const Napi::CallbackInfo& info);      // (mark) => ms, NaN until the stream got there
Napi::Value makeTensor(const Napi::CallbackInfo& info);      // (device, dtype, shape, label, zero) => tensor
Napi::Value viewTensor(const Napi::CallbackInfo& info);  // (tensor, firstElement, shape) => tensor on the same memory
Napi::Value disposeTensor(const Napi::CallbackInfo& info);  // (tensor)
Napi::Value writeTensor(const Napi::CallbackInfo& info);    // (stream, tensor, typedArray)
Napi::Value readTensor(const Napi::CallbackInfo& info);     // (stream, tensor, typedArray, callback(error))
Napi::Value syncStream(const Napi::CallbackInfo& info);     // (stream, callback(error))

}  // namespace alps
