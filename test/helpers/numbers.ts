import { join } from 'node:path';
import { instructionSets as allSets, Device, type InstructionSet } from '../../src/device/device.js';

process.env.ALPS_CUDA_LIBRARY ??= join(process.cwd(), 'build', 'Release', 'libalps_cuda_host.so');

/** Devices on which every op gives equal bits: thread counts differ. */
export const threadCounts = [1, 2, 3, 17] as const;

/** Instruction sets of the hand-written loops that this machine has. */
export function instructionSets(): InstructionSet[] {
  return allSets.filter((isa) => {
    try {
      return Device.open('cpu', { isa }).info().isa === isa;
    } catch {
      return false;
    }
  });
}

/**
 * Where ops are tested: the instruction sets, and the CUDA kernels, on the processor (native/cuda/host) or, where ALPS_CUDA_LIBRARY
 * names the library for GPUs, on one.
 */
export function opDevices(): string[] {
  return [...instructionSets(), 'cuda'];
}

/** One of {@link opDevices}. */
export function opDevice(name: string): Device {
  return name === 'cuda' ? Device.open('cuda:0') : Device.open('cpu', { isa: name as InstructionSet });
}

/** CUDA devices on which every op gives equal bits: blocks and threads run in another order on each. */
export function cudaOrders(): Device[] {
  return ['', 'order=1', 'order=2'].map((settings) => Device.openKernels('cuda:0', settings));
}

/** CUDA devices whose blocks of loops over elements have other sizes than usual. */
export function cudaBlockSizes(): Device[] {
  return ['block=32', 'block=96,order=3', 'block=1024'].map((settings) => Device.openKernels('cuda:0', settings));
}

// Jest looks a global up anew each time, which takes longer than what it then computes.
const { sqrt, log, cos, imul, PI: pi } = Math;
const { isFinite: holds } = Number;

/** A generator of uniform numbers in [0, 1), the same for the same seed (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = imul(t ^ (t >>> 15), t | 1);
    t ^= t + imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Standard normal numbers. */
export function normal(seed: number, length: number): Float32Array<ArrayBuffer> {
  const next = random(seed);
  return Float32Array.from({ length }, () => sqrt(-2 * log(1 - next())) * cos(2 * pi * next()));
}

/** Normalised mean squared error: Σ(a − b)² / Σb². NaN or infinity in `actual` gives NaN. */
export function nmse(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    if (!holds(actual[i] as number)) return Number.NaN;
    error += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return norm === 0 ? error : error / norm;
}

/** op(a) op(b) in float64; a is [m, k] (or [k, m] transposed), b [k, n] (or [n, k]). */
export function product(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  m: number,
  n: number,
  k: number,
  transposeA = false,
  transposeB = false,
): Float64Array {
  const out = new Float64Array(m * n);
  const left = (i: number, l: number) => a[transposeA ? l * m + i : i * k + l]!;
  for (let i = 0; i < m; i++) {
    if (transposeB) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let l = 0; l < k; l++) sum += left(i, l) * b[j * k + l]!;
        out[i * n + j] = sum;
      }
    } else {
      // Along the rows of b as they lie.
      for (let l = 0; l < k; l++) {
        const factor = left(i, l);
        for (let j = 0; j < n; j++) out[i * n + j]! += factor * b[l * n + j]!;
      }
    }
  }
  return out;
}

/** float32 to bfloat16 bits, round to nearest even. */
export function toBf16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const floats = Float32Array.from(values);
  const bits = new Uint32Array(floats.buffer);
  return Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16);
}

/** bfloat16 bits to float32. */
export function fromBf16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i]! << 16;
  return new Float32Array(out.buffer);
}
