/** Every dtype of the safetensors format, with its width in bits. A tensor of a dtype below 8 bits must still fill whole bytes. */
export const dtypeBits = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  I64: 64,
  U64: 64,
  F64: 64,
  C64: 64,
} as const;

export type SafetensorsDtype = keyof typeof dtypeBits;

/** The dtypes that weights can be pruned in, and their names on a device. */
export const floatDtypes = { F32: 'float32', BF16: 'bfloat16', F16: 'float16', F64: 'float64' } as const;

export function isFloatDtype(dtype: SafetensorsDtype): dtype is keyof typeof floatDtypes {
  return Object.hasOwn(floatDtypes, dtype);
}

/** Floats of at most 8 bits: they mean nothing without the scales of a quantised checkpoint. */
export function isQuantizedDtype(dtype: SafetensorsDtype): boolean {
  return dtype.startsWith('F') && dtypeBits[dtype] <= 8;
}

/** The dtypes that {@link toFloat32} and {@link fromFloat32} know. */
export type SmallFloatDtype = 'F32' | 'BF16' | 'F16';

/**
 * A tensor's bytes as float32, exactly. For small tensors; large ones are converted on a device.
 * @param bytes little-endian elements, at any alignment
 */
export function toFloat32(bytes: Uint8Array, dtype: SmallFloatDtype): Float32Array<ArrayBuffer> {
  const { buffer } = new Uint8Array(bytes);
  if (dtype === 'F32') return new Float32Array(buffer);
  const halves = new Uint16Array(buffer);
  if (dtype === 'F16') return Float32Array.from(halves, fromHalf);
  return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
}

/** The bytes of float32 values in a dtype, rounded to nearest, ties to even; too large gives infinity, NaN stays NaN. */
export function fromFloat32(values: Float32Array, dtype: SmallFloatDtype): Uint8Array<ArrayBuffer> {
  const bits = new Uint32Array(new Float32Array(values).buffer);
  if (dtype === 'F32') return new Uint8Array(bits.buffer);
  return new Uint8Array(Uint16Array.from(bits, dtype === 'F16' ? toHalf : toBfloat16).buffer);
}

function toBfloat16(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return ((bits >>> 16) & 0x8000) | 0x7fc0;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function toHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and above round to infinity
  if (magnitude >= 0x38800000) {
    // Normal in both: round away 13 bits of the fraction, move the exponent's bias from 127 to 15.
    return sign | ((magnitude + 0xfff + ((magnitude >>> 13) & 1) - 0x38000000) >>> 13);
  }
  // Subnormal as a half: a multiple of 2^-24. The product is exact in float64.
  const steps = new Float32Array(Uint32Array.of(magnitude).buffer)[0]! * 2 ** 24;
  const below = Math.floor(steps);
  const up = steps - below > 0.5 || (steps - below === 0.5 && below % 2 === 1);
  return sign | (below + (up ? 1 : 0));
}

function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}
