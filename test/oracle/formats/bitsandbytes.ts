/** The checkpoint state of a 4-bit layer of bitsandbytes. */
import { dequantiseBlocks, unnestAbsmax, unpackNibbles } from '../quantise.js';
import { type DiskTensor, numbersOf } from './tensors.js';

/** codebook[code] · absmax, where absmax may be quantised itself. */
export function decodeBitsandbytes(state: Readonly<Record<string, DiskTensor>>): Float64Array {
  const part = (name: string): DiskTensor => {
    const found = state[name];
    if (found === undefined) throw new Error(`oracle: no ${name}`);
    return found;
  };
  const format = Object.hasOwn(state, 'weight.quant_state.bitsandbytes__fp4') ? 'fp4' : 'nf4';
  const json = part(`weight.quant_state.bitsandbytes__${format}`);
  const { blocksize, shape, nested_offset } = JSON.parse(new TextDecoder().decode(json.bytes)) as {
    blocksize: number;
    shape: [number, number];
    nested_offset?: number;
  };
  const absmax =
    nested_offset === undefined
      ? Float32Array.from(numbersOf(part('weight.absmax')))
      : unnestAbsmax(
          {
            offset: Math.fround(nested_offset),
            absmax8bit: part('weight.absmax').bytes,
            nestedAbsmax: Float32Array.from(numbersOf(part('weight.nested_absmax'))),
          },
          numbersOf(part('weight.nested_quant_map')),
        );
  const codes = unpackNibbles(part('weight').bytes, shape[0] * shape[1]);
  const codebook = numbersOf(part('weight.quant_map'));
  return dequantiseBlocks({ format, blocksize, codes, absmax }, codebook);
}
