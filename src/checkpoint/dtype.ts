/** Every dtype of the safetensors format, with its width in bits. Sub-byte dtypes must fill whole bytes together. */
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
