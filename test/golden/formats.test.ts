// The oracle of weight formats against the peers: every rule of every case of `formats`.
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { transposeBytes } from '../oracle/formats/bits.js';
import {
  type IntegerConfig,
  type IntegerTensors,
  integerCodes,
  integerZeros,
} from '../oracle/formats/compressed-tensors.js';
import { decodeGguf } from '../oracle/formats/gguf.js';
import {
  decodeGptq,
  type GptqConfig,
  type GptqTensors,
  gptqZeros,
} from '../oracle/formats/gptq.js';
import { layerOf } from '../oracle/formats/layouts.js';
import { e8m0 } from '../oracle/formats/minifloat.js';
import { decodeMx, encodeMx, mxScales } from '../oracle/formats/mx.js';
import { dim } from '../oracle/formats/tensors.js';
import { exact, nmse } from '../oracle.js';
import { caseIds, loadCase } from './case-file.js';
import { ANSWERS, codebookOf } from './formats/answers.js';
import { RuleBook } from './rules.js';

const FOLDER = join(import.meta.dirname, 'formats');

describe('weight formats', () => {
  it('has an answer for every group', () => {
    // Files of GGUF have a manifest and a test of their own: gguf-file.test.ts.
    const folders = readdirSync(FOLDER).filter(
      (name) => name !== 'gguf_file' && statSync(join(FOLDER, name)).isDirectory(),
    );
    const listed = new Set(caseIds('formats').map((id) => id.split('/')[1]));
    expect(Object.keys(ANSWERS).sort()).toEqual(folders.sort());
    expect([...listed].sort()).toEqual(folders.sort());
  });

  describe.each(Object.entries(ANSWERS))('%s', (group, answersOf) => {
    it.each(caseIds(`formats/${group}`))('%s', (id) => {
      const golden = loadCase(id);
      const book = new RuleBook(golden);
      const answers = answersOf(golden);
      for (const rule of golden.rules) {
        const key = rule.rule === 'quantised' ? `${rule.tensor}, quantised` : rule.tensor;
        const answer = answers[key];
        if (answer === undefined) throw new Error(`${id}: no answer for ${key}`);
        book.apply(rule, answer(), { codebook: codebookOf(golden) });
      }
      book.finish();
    });
  });
});

/** Tensors of the golden data that no rule names. */
describe('beside the rules', () => {
  it('GPTQ version 1 by field differs where a zero-point is 0', () => {
    const golden = loadCase('formats/gptq/w4_v1_zero_of_0');
    const layer = layerOf(golden.tensors, 'in.') as unknown as GptqTensors;
    const config = golden.params as unknown as GptqConfig;
    const byField = gptqZeros(layer, config, true);
    const [groups, N] = [dim(layer.scales, 0), dim(layer.scales, 1)];
    const expected = golden.numbers('aux.zeros_by_field');
    expect([...transposeBytes(byField, groups, N)]).toEqual([...expected]);
    exact('weight', decodeGptq(layer, config, true), golden.numbers('aux.dequant_by_field'));
    const whole = gptqZeros(layer, config);
    const others = whole.filter((zero, i) => zero !== byField[i]);
    expect(others).toHaveLength(golden.params.fieldsThatDiffer as number);
  });

  it.each(caseIds('formats/compressed_tensors'))('%s: codes and zero-points as stored', (id) => {
    const golden = loadCase(id);
    const layer = layerOf(golden.tensors, 'out.') as unknown as IntegerTensors;
    const config = golden.params as unknown as IntegerConfig;
    exact('codes', integerCodes(layer, config), golden.numbers('out.codes'));
    const { weight_zero_point, weight_scale } = layer;
    expect(weight_zero_point !== undefined).toBe(golden.has('out.zeros'));
    if (weight_zero_point === undefined) return;
    const zeros = integerZeros(weight_zero_point, weight_scale, config);
    exact('zeros', zeros, golden.numbers('out.zeros'));
  });

  it('power-of-two scales of FP8 are the same in F32 and as bytes', () => {
    const golden = loadCase('formats/fp8/block128_ue8m0');
    const bytes = Array.from(golden.tensor('out.scale_e8m0').bytes, e8m0);
    expect(bytes).toEqual([...golden.numbers('out.scale')]);
  });

  it('MXFP8 blocks with NaN or infinity', () => {
    const golden = loadCase('formats/mx/nonfinite');
    const w = golden.numbers('in.w');
    const scales = mxScales('FLOOR', w, 64, 'e4m3fn');
    const stored = golden.tensor('out.mxfp8_scale_e8m0');
    expect(scales).toEqual(stored.bytes);
    const codes = { ...golden.tensor('in.w'), bytes: encodeMx(w, scales, 'e4m3fn') };
    exact('weight', decodeMx(codes, stored, 'e4m3fn'), golden.numbers('out.mxfp8_dequant'));
  });

  it('codes of NaN in a scale are numbers in GGUF', () => {
    const mxfp4 = decodeGguf('MXFP4', Uint8Array.of(255, 0x21, ...new Uint8Array(15)));
    expect([mxfp4[0], mxfp4[16], mxfp4[1]]).toEqual([2 ** 127, Number.POSITIVE_INFINITY, 0]);
    const nvfp4 = decodeGguf(
      'NVFP4',
      Uint8Array.of(127, 126, 0, 255, ...new Uint8Array(32).fill(2)),
    );
    expect([nvfp4[0], nvfp4[16], nvfp4[32], nvfp4[48]]).toEqual([0, 448, 0, 480]);
  });

  it('the float64 references of LoRA are those of the oracle', () => {
    for (const id of caseIds('formats/lora')) {
      const golden = loadCase(id);
      const answers = ANSWERS.lora?.(golden);
      for (const rule of golden.rules) {
        if (rule.reference === undefined) continue;
        const reference = golden.numbers(rule.reference);
        const mine = answers?.[rule.tensor]?.() ?? [];
        nmse(`${id} ${rule.tensor}`, mine, reference, 1e-24);
      }
    }
  });
});
