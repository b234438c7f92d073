// Blockwise quantisation against the peer's own bytes, on both CPU devices.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  matmul,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  scope,
} from '../../lib/index.js';
import { codebookOf, exact, unpackNibbles } from '../oracle.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { bytesOf, dtypeNames, floats, tensorOf, weightOf } from './library.js';
import { RuleBook } from './rules.js';

type BitsandbytesState = Awaited<ReturnType<QuantizedWeight['toBitsandbytes']>>;

const DEVICES = ['cpu', 'reference'] as const;
type Device = (typeof DEVICES)[number];

const ids = (pattern: RegExp): string[] => caseIds('quant').filter((id) => pattern.test(id));

const dtypeOf = (golden: GoldenCase) => {
  const dtype = dtypeNames[String(golden.params.dtype ?? 'f32')];
  if (dtype === undefined) throw new Error(`${golden.id}: dtype ${String(golden.params.dtype)}`);
  return dtype;
};

async function partBytes(weight: QuantizedWeight, key: string): Promise<Uint8Array> {
  const part = (await weight.toBitsandbytes())[key];
  if (part === undefined) throw new Error(`no ${key}`);
  return bytesOf(part.data);
}

/**
 * The peer writes absmax 1e-38 for a short tail of zeros on the CPU and 0 by its CUDA rule, which is
 * ours: that one entry is compared as 0.
 */
function withPeerZeroTail(golden: GoldenCase, tensor: string, mine: Uint8Array): Uint8Array {
  const expected = floats(golden.tensor(tensor));
  const kinds = golden.has('aux.block_kind') ? golden.tensor('aux.block_kind').bytes : undefined;
  const patched = Float32Array.from(new Float32Array(mine.slice().buffer));
  patched.forEach((value, block) => {
    if (kinds?.[block] === 1 && value === 0) patched[block] = expected[block] as number;
  });
  return bytesOf(patched);
}

describe.each(DEVICES)('quant on %s', (device: Device) => {
  it.each(ids(/\/q4_(bs|ties)/))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const x = tensorOf(golden.tensor('in.x'), device);
      const blocksize = Number(golden.params.blocksize);
      const dtype = dtypeOf(golden);
      for (const format of ['nf4', 'fp4'] as const) {
        const codebook = codebookOf(format);
        const weight = quantize(x, { format, blocksize });
        const packed = await partBytes(weight, 'weight');
        rules.check(`out.${format}.packed`, packed, { count: x.size, blocksize, codebook });
        const absmaxName = `out.${format}.absmax`;
        const absmax = await partBytes(weight, 'weight.absmax');
        const patched = withPeerZeroTail(golden, absmaxName, absmax);
        if (rules.has(absmaxName)) rules.check(absmaxName, patched);
        else exact(id, patched, golden.tensor(absmaxName).bytes);
        const peer = weightOf(
          {
            format,
            blocksize,
            dtype,
            shape: x.shape,
            codebook,
            codes: golden.tensor(`out.${format}.packed`).bytes,
            absmax: floats(golden.tensor(absmaxName)),
          },
          device,
        );
        for (const [name, type] of [
          [`out.${format}.dequant`, dtype],
          [`out.${format}.dequant_f32`, 'f32'],
        ] as const) {
          if (rules.has(name)) rules.check(name, await dequantize(peer, { dtype: type }).read());
        }
      }
      rules.finish();
    });
  });

  it.each(ids(/\/dq_/))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const format = golden.params.quant_type as 'nf4' | 'fp4';
      const blocksize = Number(golden.params.blocksize);
      const dtype = dtypeOf(golden);
      const x = tensorOf(golden.tensor('in.x'), device);
      const weight = quantize(x, { format, blocksize, doubleQuant: true });
      const state = await weight.toBitsandbytes();
      const part = (key: string): Uint8Array => bytesOf((state[key] as { data: Uint8Array }).data);
      // No rule is given for the codes: the same but at a decision boundary and for FP4's two zeros.
      const codesIn = (packed: Uint8Array): Uint8Array => unpackNibbles(packed, x.size);
      const peerCodes = codesIn(golden.tensor('out.packed').bytes);
      const values = golden.numbers('in.x');
      const book = codebookOf(format);
      const scaleOf = floats(golden.tensor('out.absmax_fp32'));
      codesIn(part('weight')).forEach((code, i) => {
        const peerCode = peerCodes[i] as number;
        if (code === peerCode || (format === 'fp4' && code % 8 === 0 && peerCode % 8 === 0)) return;
        const value = (values[i] as number) / (scaleOf[Math.floor(i / blocksize)] as number);
        const [mine, theirs] = [book[code] as number, book[peerCode] as number];
        const gap = Math.abs(Math.abs(mine - value) - Math.abs(theirs - value));
        expect(gap, `${id} code ${i}`).toBeLessThan(6e-7);
      });
      const map = floats(golden.tensor('aux.nested_code'));
      exact(id, part('weight.nested_quant_map'), golden.tensor('aux.nested_code').bytes);
      exact(id, part('weight.quant_map'), golden.tensor('aux.quant_map').bytes);
      const absmax8bit = part('weight.absmax');
      rules.check('out.absmax_u8', absmax8bit, {
        count: absmax8bit.length,
        blocksize: 256,
        codebook: map,
      });
      const json = JSON.parse(
        new TextDecoder().decode(part(`weight.quant_state.bitsandbytes__${format}`)),
      );
      rules.check('out.offset', [json.nested_offset]);
      const nested = new Float32Array(Uint8Array.from(part('weight.nested_absmax')).buffer);
      rules.check('out.nested_absmax', nested);

      const nestedPeer = {
        absmax8bit: golden.tensor('out.absmax_u8').bytes,
        nestedAbsmax: floats(golden.tensor('out.nested_absmax')),
        nestedCodebook: map,
        offset: floats(golden.tensor('out.offset'))[0] as number,
      };
      const peer = { format, blocksize, dtype, codebook: codebookOf(format), shape: x.shape };
      // Every code the one whose value is 1: what comes out is the scale of each block.
      const ones = format === 'nf4' ? 0xff : 0x33;
      const scales = weightOf(
        {
          ...peer,
          nested: nestedPeer,
          codes: new Uint8Array(Math.ceil(x.size / 2)).fill(ones),
        },
        device,
      );
      const spread = await dequantize(scales, { dtype: 'f32' }).read();
      const reconstructed = Array.from(absmax8bit, (_, block) => spread[block * blocksize] ?? 0);
      rules.check('out.absmax_reconstructed', reconstructed);

      const codes = golden.tensor('out.packed').bytes;
      const absmax = floats(golden.tensor('out.absmax_reconstructed'));
      const flat = weightOf({ ...peer, codes, absmax }, device);
      rules.check('out.dequant_f32', await dequantize(flat, { dtype: 'f32' }).read());
      const whole = weightOf({ ...peer, codes, nested: nestedPeer }, device);
      rules.check('out.dequant', await dequantize(whole, { dtype }).read());
      rules.finish();
    });
  });

  it('quant/q8_nested_bs256', async () => {
    await scope(async () => {
      const golden = loadCase('quant/q8_nested_bs256');
      const rules = new RuleBook(golden);
      const codebook = floats(golden.tensor('aux.code'));
      const peer = weightOf(
        {
          format: 'int8',
          blocksize: 256,
          dtype: 'f32',
          shape: golden.tensor('in.x').shape,
          codebook,
          codes: golden.tensor('out.q').bytes,
          nested: {
            absmax8bit: golden.tensor('out.absmax_u8').bytes,
            nestedAbsmax: floats(golden.tensor('out.nested_absmax')),
            nestedCodebook: codebook,
            offset: floats(golden.tensor('out.offset'))[0] as number,
          },
        },
        device,
      );
      rules.check('out.dequant', await dequantize(peer).read());
      rules.finish();
    });
  });

  it.each(ids(/\/q8_(dynamic_signed|dynamic_unsigned|linear)/))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const blocksize = Number(golden.params.blocksize);
      const codebook = floats(golden.tensor('aux.code'));
      const x = tensorOf(golden.tensor('in.x'), device);
      // The dynamic map is the format's own, others are given.
      const own = golden.params.map === 'dynamic_signed';
      const weight = quantize(x, { format: 'int8', blocksize, ...(own ? {} : { codebook }) });
      const codes = await partBytes(weight, 'weight');
      rules.check('out.q', codes, { count: x.size, blocksize, codebook });
      const absmax = await partBytes(weight, 'weight.absmax');
      rules.check('out.absmax', withPeerZeroTail(golden, 'out.absmax', absmax));
      const dtype = dtypeOf(golden);
      const peer = weightOf(
        {
          format: 'int8',
          blocksize,
          dtype,
          shape: x.shape,
          codebook,
          codes: golden.tensor('out.q').bytes,
          absmax: floats(golden.tensor('out.absmax')),
        },
        device,
      );
      rules.check('out.dequant', await dequantize(peer, { dtype }).read());
      rules.finish();
    });
  });

  it('quant/q8_maps', async () => {
    await scope(async () => {
      const id = 'quant/q8_maps';
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const weight = quantize(tensorOf(golden.tensor('out.linear'), device), { format: 'int8' });
      const map = await partBytes(weight, 'weight.quant_map');
      rules.check('out.dynamic_signed', new Float32Array(Uint8Array.from(map).buffer));
      exact(id, map, golden.tensor('out.dynamic_signed').bytes);
      for (const name of ['dynamic_unsigned', 'linear', 'fp8_e5m2', 'fp8_e4m3']) {
        rules.waive(`out.${name}`, 'the map of a format that the library does not have');
      }
      rules.finish();
    });
  });

  it('quant/q4_quant_storage', async () => {
    await scope(async () => {
      const id = 'quant/q4_quant_storage';
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const weight = quantize(tensorOf(golden.tensor('in.x'), device), {
        format: 'nf4',
        blocksize: 64,
      });
      const packed = await partBytes(weight, 'weight');
      for (const storage of ['u8', 'bf16', 'f16', 'f32'])
        rules.check(`out.packed_${storage}`, packed);
      exact(id, await partBytes(weight, 'weight.absmax'), golden.tensor('out.absmax').bytes);
      rules.finish();
    });
  });

  it('quant/embedding_nf4', async () => {
    await scope(async () => {
      const id = 'quant/embedding_nf4';
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const w = tensorOf(golden.tensor('in.W'), device);
      const weight = quantize(w, { format: 'nf4', blocksize: 64 });
      exact(id, await partBytes(weight, 'weight'), golden.tensor('out.packed').bytes);
      exact(id, await partBytes(weight, 'weight.absmax'), golden.tensor('out.absmax').bytes);
      const table = await dequantize(weight).read();
      const width = w.shape[1] as number;
      const rows = Array.from(golden.numbers('in.ids'), (row) =>
        Array.from(table.subarray(row * width, (row + 1) * width)),
      );
      rules.check('out.y', rows.flat());
      rules.finish();
    });
  });
});

const STATES = ids(/\/state_dict_(nf4|fp4)[^.]*$/);

describe.each(DEVICES)('checkpoint state on %s', (device: Device) => {
  it.each(STATES)('%s', async (id) => {
    await scope(async () => {
      const file = loadCase(id);
      const golden = loadCase(`${id}.expected`);
      const rules = new RuleBook(golden);
      for (const layer of ['fc1', 'fc2']) {
        const names = [...file.tensors.keys()].filter((name) => name.startsWith(`${layer}.weight`));
        const state: Record<string, { dtype: 'U8'; shape: number[]; data: Uint8Array }> = {};
        for (const name of names) {
          const { dtype, shape, bytes } = file.tensor(name);
          const View = dtype === 'U8' ? Uint8Array : dtype === 'F32' ? Float32Array : Uint16Array;
          state[name.slice(layer.length + 1)] = {
            dtype: dtype as 'U8',
            shape: [...shape],
            data: new View(bytes.buffer as ArrayBuffer) as Uint8Array,
          };
        }
        const weight = QuantizedWeight.fromBitsandbytes(state, { device });
        rules.check(`out.${layer}.weight`, await dequantize(weight).read());

        // Out again: the peer's keys and bytes (its codes as U8, the default storage).
        const back = await weight.toBitsandbytes();
        expect(Object.keys(back).sort()).toEqual(Object.keys(state).sort());
        for (const [key, part] of Object.entries(state)) {
          exact(
            `${id} ${key}`,
            bytesOf((back[key] as { data: Uint8Array }).data),
            bytesOf(part.data),
          );
        }

        // And from the dense weight: the same codes, and the same state but for the double
        // quantisation, where the peer's CPU code may take a neighbouring 8-bit level.
        const dense = tensorOf(golden.tensor(`in.${layer}.weight`), device);
        const fresh = quantize(dense, {
          format: weight.format as QuantFormat,
          blocksize: weight.blocksize,
          doubleQuant: weight.doubleQuant,
        });
        const freshState = await fresh.toBitsandbytes();
        expect(Object.keys(freshState)).toEqual(Object.keys(back));
        const codesIn = (packed: BitsandbytesState): Uint8Array => {
          const data = bytesOf((packed.weight as { data: Uint8Array }).data);
          const codes = unpackNibbles(data, 2 * data.length);
          // FP4 has two codes for zero; the peer's CPU code picks one by another rule.
          return weight.format === 'fp4' ? codes.map((code) => (code === 8 ? 0 : code)) : codes;
        };
        exact(`${id} codes`, codesIn(freshState), codesIn(back));
        const bookOf = (packed: BitsandbytesState) =>
          packed['weight.quant_map']?.data as Float32Array;
        exact(`${id} codebook`, bookOf(freshState), bookOf(back));
        const scales = freshState['weight.absmax']?.data as Uint8Array | Float32Array;
        const peerScales = back['weight.absmax']?.data as Uint8Array | Float32Array;
        const widest = weight.doubleQuant ? 1 : 0;
        scales.forEach((value: number, block: number) => {
          expect(Math.abs(value - (peerScales[block] as number))).toBeLessThanOrEqual(widest);
        });
      }
      rules.finish();
    });
  });

  it('a product with the weight of a checkpoint equals that with its dequantised values', async () => {
    await scope(async () => {
      const file = loadCase('quant/state_dict_fp4');
      const state = Object.fromEntries(
        [...file.tensors]
          .filter(([name]) => name.startsWith('fc1.weight'))
          .map(([name, { dtype, shape, bytes }]) => [
            name.slice(4),
            {
              dtype: dtype as 'U8',
              shape: [...shape],
              data: dtype === 'U8' ? bytes : floats(file.tensor(name)),
            },
          ]),
      );
      const weight = QuantizedWeight.fromBitsandbytes(state, { device });
      const identity = new Float32Array(48 * 48);
      for (let k = 0; k < 48; k++) identity[k * 49] = 1;
      const x = tensorOf(
        { dtype: 'F32', shape: [48, 48], bytes: new Uint8Array(identity.buffer) },
        device,
      );
      const product = await matmul(x, weight).read();
      const dense = await dequantize(weight).read();
      for (let k = 0; k < 48; k++) {
        for (let n = 0; n < 64; n++) expect(product[k * 64 + n]).toBe(dense[n * 48 + k]);
      }
    });
  });
});
