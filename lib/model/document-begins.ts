/**
 * The row of its sequence at which each row's document begins, from rows of T segments: what the `documents` of
 * a decoder's tokens and of attention holds.
 * @example
 * documents.write(documentBegins(segments, T)); // before a replay
 */
export function documentBegins(segments: Int32Array, T: number): Int32Array {
  const begins = new Int32Array(segments.length);
  for (let m = 0; m < segments.length; m++) {
    const same = m % T !== 0 && segments[m] === segments[m - 1];
    begins[m] = same ? (begins[m - 1] as number) : m % T;
  }
  return begins;
}
