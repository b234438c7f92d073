/** An ONNX model with one MatMulNBits node, encoded by hand: the protocol buffers take a page. */

/** Wire types. */
const kVarint = 0;
const kBytes = 2;

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) + 128);
    rest = Math.floor(rest / 128);
  }
  return [...bytes, rest];
}

const integer = (field: number, value: number) =>
  Buffer.from([...varint(8 * field + kVarint), ...varint(value)]);
const bytes = (field: number, value: Uint8Array) =>
  Buffer.concat([Buffer.from([...varint(8 * field + kBytes), ...varint(value.length)]), value]);
const text = (field: number, value: string) => bytes(field, Buffer.from(value));
const message = (field: number, ...parts: Uint8Array[]) => bytes(field, Buffer.concat(parts));

/** TensorProto.DataType */
const kFloat = 1;
const kUint8 = 2;
/** AttributeProto.AttributeType */
const kInt = 2;

const attribute = (name: string, value: number) =>
  message(5, text(1, name), integer(3, value), integer(20, kInt));

const tensor = (name: string, dims: readonly number[], type: number, data: Uint8Array) =>
  message(
    5,
    ...dims.map((dim) => integer(1, dim)),
    integer(2, type),
    text(8, name),
    bytes(9, data),
  );

/** ValueInfoProto of a float matrix. */
const matrix = (field: number, name: string, dims: readonly number[]) => {
  const shape = message(2, ...dims.map((dim) => message(1, integer(1, dim))));
  return message(field, text(1, name), message(2, message(1, integer(1, kFloat), shape)));
};

export interface MatMulNBits {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly blocksize: number;
  /** 0: its own choice, which is f32; 4: activations in int8. */
  readonly accuracyLevel: number;
  /** [N, K / blocksize, blocksize / 2] */
  readonly codes: Uint8Array;
  /** [N · K / blocksize] */
  readonly scales: Float32Array;
}

/** The model: input `x` [M, K], output `y` [M, N]. */
export function matMulNBitsModel(given: MatMulNBits): Uint8Array {
  const { M, K, N, blocksize, accuracyLevel, codes, scales } = given;
  const node = message(
    1,
    ...['x', 'codes', 'scales'].map((name) => text(1, name)),
    text(2, 'y'),
    text(4, 'MatMulNBits'),
    attribute('K', K),
    attribute('N', N),
    attribute('bits', 4),
    attribute('block_size', blocksize),
    attribute('accuracy_level', accuracyLevel),
    text(7, 'com.microsoft'),
  );
  const graph = message(
    7,
    node,
    text(2, 'g'),
    tensor('codes', [N, K / blocksize, blocksize / 2], kUint8, codes),
    tensor('scales', [(N * K) / blocksize], kFloat, new Uint8Array(scales.buffer)),
    matrix(11, 'x', [M, K]),
    matrix(12, 'y', [M, N]),
  );
  const opset = (domain: string, version: number) =>
    message(8, text(1, domain), integer(2, version));
  return Buffer.concat([integer(1, 8), graph, opset('', 17), opset('com.microsoft', 1)]);
}

/** Symmetric four-bit blocks, as MatMulNBits decodes them without zero points: scale · (code - 8). */
export function quantizeBlocks(
  w: Float32Array,
  blocksize: number,
): { codes: Uint8Array; scales: Float32Array } {
  const codes = new Uint8Array(w.length / 2);
  const scales = new Float32Array(w.length / blocksize);
  for (let block = 0; block < scales.length; block++) {
    const start = block * blocksize;
    let most = 0;
    for (let i = start; i < start + blocksize; i++) {
      const value = w[i] as number;
      if (Math.abs(value) > Math.abs(most)) most = value;
    }
    const scale = most / -8;
    scales[block] = scale;
    for (let i = start; i < start + blocksize; i++) {
      const level = scale === 0 ? 0 : Math.round((w[i] as number) / scale);
      const code = Math.max(0, Math.min(15, level + 8));
      const at = i >> 1;
      codes[at] = (codes[at] as number) | (i % 2 === 0 ? code : code << 4);
    }
  }
  return { codes, scales };
}
