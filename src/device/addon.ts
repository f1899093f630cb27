import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';
import { AlpsError, fileSystemError } from '../errors.js';
import { explainLoadFailure } from './load-failure.js';

/** Opaque native objects. They are freed by the garbage collector at the latest. */
export type NativeDevice = { readonly __device: unique symbol };
export type NativeStream = { readonly __stream: unique symbol };
export type NativeTensor = { readonly __tensor: unique symbol };
export type NativeMark = { readonly __mark: unique symbol };

export type DType = 'float32' | 'bfloat16' | 'float16' | 'float64' | 'uint32' | 'uint8';

export interface NativeDeviceInfo {
  name: string;
  details: string;
  isa: string;
  bf16Products: boolean;
  int8Products: boolean;
  threads: number;
  memoryLimit: number;
  memoryUsed: number;
  memoryPeak: number;
}

/** `{keep: 2, of: 4}` keeps 2 of every 4 consecutive inputs; `null` is unstructured. */
export type NativePattern = { keep: number; of: number } | null;

/** Where the CUDA kernels and the libraries they need are looked for. */
export interface CudaLocation {
  /** Path of libalps_cuda.so. */
  kernels: string;
  /** Folders of CUDA's own libraries, in order; `''` is the system's search path. */
  folders: string[];
}

/** What was found. */
export interface CudaProbe {
  devices: { name: string; capability: string; memory: number }[];
  /** The newest CUDA version that the driver supports; empty without a driver. */
  driver: string;
  /** The CUDA version that the kernels were built with. */
  runtime: string;
  /** Why there are no devices; empty when there are. */
  failure: string;
  tried: { what: string; outcome: string }[];
}

/** Device time of calls with the same key: `phase \t op \t tensors and integers; ...`. */
export interface NativeProfileEntry {
  key: string;
  calls: number;
  milliseconds: number;
}

type Callback = (error: (Error & { code?: string }) | null) => void;
type S = NativeStream;
type T = NativeTensor;

/** Every export of the addon, under its own name. What each op does stands in native/core/backend.h. */
export interface Addon {
  /** Opens the library of the CUDA kernels and looks for GPUs; never throws. */
  probeCuda(where: CudaLocation): CudaProbe;
  openDevice(
    name: string,
    options: { threads: number; memoryLimit: number; isa: string },
    where: CudaLocation,
  ): NativeDevice;
  /** Whether this is the first call in the process. */
  claimExit(): boolean;
  /** Locks an open file, as its opening in this process, unless another one has; `unknown` where its file system cannot. */
  lockFile(descriptor: number): 'locked' | 'held' | 'unknown';
  /** Ends the devices' threads, for good. */
  stopDevices(): void;
  deviceInfo(device: NativeDevice): NativeDeviceInfo;
  resetPeak(device: NativeDevice): void;
  /** Turns the profile of a device on or off and gives what was measured until now. */
  profileDevice(device: NativeDevice, on: boolean): NativeProfileEntry[];
  openStream(device: NativeDevice): S;
  cancelStream(stream: S): void;
  closeStream(stream: S): void;
  /** Of what is queued from here on, in a profile. */
  setPhase(stream: S, name: string): void;
  markStream(stream: S): NativeMark;
  /** Milliseconds of some clock; NaN until the stream got there. */
  markedTime(mark: NativeMark): number;
  /** @param zero whether it holds zeros, or whatever is left of tensors before it */
  makeTensor(device: NativeDevice, dtype: DType, shape: number[], label: string, zero: boolean): T;
  viewTensor(tensor: T, firstElement: number, shape: number[]): T;
  disposeTensor(tensor: T): void;
  writeTensor(stream: S, tensor: T, data: ArrayBufferView): void;
  readTensor(stream: S, tensor: T, out: ArrayBufferView, callback: Callback): void;
  syncStream(stream: S, callback: Callback): void;

  fill(stream: S, out: T, value: number): void;
  copy(stream: S, from: T, out: T): void;
  axpby(stream: S, x: T, y: T, alpha: number, beta: number): void;
  addBias(stream: S, x: T, bias: T): void;
  scaleRowsColumns(stream: S, a: T, row: T | null, column: T | null, out: T): void;
  applyMask(stream: S, x: T, mask: T): void;
  nonZeroMask(stream: S, x: T, mask: T): void;
  countNonFinite(stream: S, x: T, out: T): void;
  rowDots(stream: S, a: T, b: T, out: T): void;
  quadraticForms(stream: S, a: T, s: T, out: T): void;
  columnSums(stream: S, x: T, squares: boolean, out: T): void;
  differenceSquares(stream: S, x: T, y: T, out: T): void;
  transpose(stream: S, a: T, out: T): void;
  gemm(
    stream: S,
    a: T,
    b: T,
    out: T,
    transposeA: boolean,
    transposeB: boolean,
    alpha: number,
    beta: number,
    split: boolean,
  ): void;
  int8Gemm(stream: S, a: T, b: T, out: T): void;
  gramAccumulate(stream: S, x: T, gram: T): void;
  differenceSums(stream: S, x: T, y: T, cross: T | null, gram: T | null): void;
  differenceSumsInt8(stream: S, x: T, y: T, cross: T | null, gram: T | null): void;
  symmetrize(stream: S, a: T): void;
  addDiagonal(stream: S, a: T, value: number): void;
  addToDiagonal(stream: S, a: T, values: T, alpha: number): void;
  diagonal(stream: S, a: T, out: T): void;
  cholesky(stream: S, a: T): void;
  choleskyInverse(stream: S, l: T, split: boolean): void;
  inverseFactor(stream: S, a: T): void;
  inverseDiagonal(stream: S, a: T, out: T): void;
  project(stream: S, scores: T, mask: T, pattern: NativePattern, rowEnds: number[], keep: number[]): void;
  projectRows(stream: S, scores: T, mask: T, keep: number): void;
  maskChanges(stream: S, mask: T, previous: T, rowEnds: number[], counts: T): void;
  admmStart(stream: S, base: T, mask: T, state: T, y: T): void;
  admmUpdate(
    stream: S,
    b: T,
    base: T,
    state: T,
    mask: T,
    y: T,
    relaxation: number,
    pattern: NativePattern,
    rowEnds: number[],
    keep: number[],
  ): void;
  admmIterate(
    stream: S,
    operator: T,
    base: T,
    b: T,
    state: T,
    mask: T,
    y: T,
    relaxation: number,
    pattern: NativePattern,
    rowEnds: number[],
    keep: number[],
    count: number,
  ): void;
  admmIterateInt8(...likeAdmmIterate: Parameters<Addon['admmIterate']>): void;
  admmRescale(stream: S, base: T, state: T, mask: T, y: T, factor: number): void;
  cgStart(stream: S, residual: T, mask: T, direction: T, rr: T, rr0: T): void;
  cgStep(stream: S, q: T, mask: T, x: T, residual: T, direction: T, rr: T, rr0: T, tolerance: number, active: T): void;
  cgOnSupport(stream: S, gram: T, mask: T, x: T, residual: T, tolerance: number, kept: number, active: T): void;
  backsolve(stream: S, gram: T, right: T, mask: T, x: T): void;
  sparseGpt(
    stream: S,
    weight: T,
    factor: T,
    mask: T,
    pattern: NativePattern,
    rowEnds: number[],
    keep: number[],
    block: number,
  ): void;
  dsnot(
    stream: S,
    weight: T,
    metric: T,
    expected: T,
    variance: T,
    mask: T,
    pattern: NativePattern,
    cycles: number,
    threshold: number,
    sameSign: boolean,
  ): void;
  embedding(stream: S, table: T, ids: T, out: T): void;
  rmsNorm(stream: S, x: T, weight: T, eps: number, offset: number, out: T): void;
  layerNorm(stream: S, x: T, weight: T, bias: T, eps: number, out: T): void;
  rope(stream: S, x: T, cosine: T, sine: T, headDim: number, sequence: number): void;
  attention(
    stream: S,
    q: T,
    k: T,
    v: T,
    out: T,
    headDim: number,
    sequence: number,
    scale: number,
    window: number,
    softCap: number,
  ): void;
  attentionStep(
    stream: S,
    q: T,
    k: T,
    v: T,
    keys: T,
    values: T,
    out: T,
    headDim: number,
    position: number,
    scale: number,
    window: number,
    softCap: number,
  ): void;
  gatedActivation(stream: S, gate: T, up: T, out: T, activation: string): void;
  activate(stream: S, x: T, out: T, activation: string): void;
  softCap(stream: S, x: T, cap: number): void;
  topExperts(stream: S, logits: T, ids: T, weights: T, normalise: boolean): void;
  gatherRows(stream: S, x: T, ids: T, out: T): void;
  scatterAddRows(stream: S, y: T, ids: T, weights: T, x: T): void;
  addTo(stream: S, y: T, x: T): void;
  crossEntropy(stream: S, logits: T, targets: T, out: T): void;
  divergence(stream: S, p: T, q: T, out: T): void;
  sample(stream: S, logits: T, draws: T, ids: T, temperature: number): void;
}

/** The package's own folder, with build/ or prebuilds/ in it. */
export const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

type Loader = ((folder: string) => Addon) & { path(folder: string): string };
const loader = () => createRequire(import.meta.url)('node-gyp-build') as Loader;

/** The file of the native addon. */
export function addonFile(): string {
  return loader().path(packageRoot);
}

let loaded: Addon | undefined;

/** The native addon, loaded on first use: what was built here, else the prebuild. */
export function addon(): Addon {
  if (loaded) return loaded;
  try {
    loaded = loader()(packageRoot);
    stopAtExit(loaded);
  } catch (cause) {
    checkListing(packageRoot);
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new AlpsError('ADDON_NOT_LOADED', explainLoadFailure(reason, packageRoot), { cause });
  }
  return loaded;
}

/** The loader takes a folder that cannot be listed, for want of a file descriptor say, for one without an addon. */
function checkListing(folder: string): void {
  try {
    readdirSync(folder);
  } catch (cause) {
    throw fileSystemError('load the native addon from', folder, cause);
  }
}

/**
 * Ends the devices' threads when the process ends, however it does: left alone, one could still use a library that the exiting process
 * has already taken down. Workers do not need it: their streams are closed with them, and the devices' threads, idle then, keep the addon
 * in the process (CMakeLists.txt).
 */
function stopAtExit(native: Addon): void {
  if (isMainThread && native.claimExit()) process.on('exit', () => native.stopDevices());
}
