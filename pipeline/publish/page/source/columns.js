// Columns as columns.py writes them: base64 of a little-endian typed array.

const KINDS = {
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
  i4: Int32Array,
  f4: Float32Array,
  f8: Float64Array,
};
const DIGITS = 6; // of a number that came as a 32-bit float

export function decoded({ type, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return new KINDS[type](bytes.buffer);
}

// The very number that Python has. A 32-bit float names at most one number of six digits.
export function exact(column, index) {
  const value = column[index];
  return column instanceof Float32Array && Number.isFinite(value) ? Number(value.toPrecision(DIGITS)) : value;
}

// A threshold as it compares with a column: rounding is monotone, so the result is Python's for
// thresholds of up to six digits.
export function comparable(column, threshold) {
  return column instanceof Float32Array ? Math.fround(threshold) : threshold;
}
