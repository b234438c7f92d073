// Each rule of the golden data is shown an answer that it must refuse.
import { describe, expect, it } from 'vitest';
import type { GoldenCase, GoldenTensor, Rule } from './case-file.js';
import { checkRule, RuleBook } from './rules.js';

const f32 = (values: number[], shape = [values.length]): GoldenTensor => ({
  dtype: 'F32',
  shape,
  bytes: new Uint8Array(Float32Array.from(values).buffer),
});
const u8 = (values: number[], shape = [values.length]): GoldenTensor => ({
  dtype: 'U8',
  shape,
  bytes: Uint8Array.from(values),
});

function golden(tensors: Record<string, GoldenTensor>, rules: Rule[] = []): GoldenCase {
  const tensor = (name: string): GoldenTensor => {
    const found = tensors[name];
    if (found === undefined) throw new Error(`no ${name}`);
    return found;
  };
  return {
    id: 'made/up',
    params: {},
    rules,
    tensor,
    has: (name: string) => name in tensors,
    numbers: (name: string) => Float64Array.from(new Float32Array(tensor(name).bytes.buffer)),
  } as unknown as GoldenCase;
}

const why = 'made up';

describe('golden rules', () => {
  it('absolute: within atol of the reference, not of the tensor', () => {
    const data = golden({ y: f32([1, 2]), ref: f32([1.5, 2.5]) });
    const rule: Rule = { tensor: 'y', rule: 'absolute', reference: 'ref', atol: 0.125, why };
    expect(() => checkRule(data, rule, [1.625, 2.375])).not.toThrow();
    expect(() => checkRule(data, rule, [1, 2])).toThrow('y[0]');
    expect(() => checkRule(data, rule, [1.5, Number.NaN])).toThrow('y[1]');
    expect(() => checkRule(data, rule, [1.5])).toThrow('1 entries');
  });

  it('absolute: outliers by share and by size', () => {
    const data = golden({ y: f32([0, 0, 0, 0]) });
    const rule: Rule = { tensor: 'y', rule: 'absolute', atol: 0.1, outlierFraction: 0.25, why };
    expect(() => checkRule(data, rule, [9, 0, 0, 0])).not.toThrow();
    expect(() => checkRule(data, rule, [9, 9, 0, 0])).toThrow('y[1]');
    expect(() => checkRule(data, { ...rule, outlierAtol: 1 }, [9, 0, 0, 0])).toThrow('y[0]');
    expect(() => checkRule(data, rule, [Number.NaN, 0, 0, 0])).toThrow('y[0]');
  });

  it('absolute: up to the sign of rows or columns', () => {
    const data = golden({ y: f32([1, 2, 3, 4], [2, 2]) });
    const rule: Rule = { tensor: 'y', rule: 'absolute', atol: 0.1, why };
    expect(() => checkRule(data, { ...rule, upToSign: 'rows' }, [-1, -2, 3, 4])).not.toThrow();
    expect(() => checkRule(data, { ...rule, upToSign: 'rows' }, [-1, 2, -3, 4])).toThrow();
    expect(() => checkRule(data, { ...rule, upToSign: 'columns' }, [-1, 2, -3, 4])).not.toThrow();
    expect(() => checkRule(data, rule, [-1, -2, 3, 4])).toThrow();
  });

  it('relative: atol + rtol · |ref|', () => {
    const data = golden({ y: f32([100, 0]) });
    const rule: Rule = { tensor: 'y', rule: 'relative', rtol: 0.01, atol: 0.5, why };
    expect(() => checkRule(data, rule, [101.5, 0.5])).not.toThrow();
    expect(() => checkRule(data, rule, [101.6, 0])).toThrow('y[0]');
    expect(() => checkRule(data, rule, [100, 0.6])).toThrow('y[1]');
  });

  it('bytes and values: -0 equals 0 for values only', () => {
    const data = golden({ y: f32([0, 1]) });
    const raw = (values: number[]): Uint8Array => new Uint8Array(Float32Array.from(values).buffer);
    expect(() => checkRule(data, { tensor: 'y', rule: 'bytes', why }, raw([0, 1]))).not.toThrow();
    expect(() => checkRule(data, { tensor: 'y', rule: 'bytes', why }, raw([-0, 1]))).toThrow();
    expect(() => checkRule(data, { tensor: 'y', rule: 'values', why }, [-0, 1])).not.toThrow();
    expect(() => checkRule(data, { tensor: 'y', rule: 'values', why }, [0, 1.0000001])).toThrow();
  });

  const codebook = [-1, -0.5, 0, 0.25, 1];
  const context = { count: 4, blocksize: 2, codebook };

  it('u8: neighbours only near a boundary, the alternative outside its own mask', () => {
    const data = golden({
      q: u8([1, 1, 2, 2]),
      near: u8([0, 1, 0, 0]),
      cuda: u8([1, 1, 4, 0]),
      nearCuda: u8([0, 0, 0, 1]),
    });
    const rule: Rule = { tensor: 'q', rule: 'u8', mask: 'near', alternative: 'cuda', why };
    expect(() => checkRule(data, rule, [1, 2, 2, 2], context)).not.toThrow();
    expect(() => checkRule(data, rule, [2, 1, 2, 2], context)).toThrow('q[0]');
    expect(() => checkRule(data, rule, [1, 3, 2, 2], context)).toThrow('q[1]');
    expect(() => checkRule(data, rule, [1, 1, 4, 2], context)).toThrow('q[2]');
    const both: Rule = { ...rule, alternativeMask: 'nearCuda' };
    expect(() => checkRule(data, both, [1, 1, 4, 2], context)).not.toThrow();
    expect(() => checkRule(data, both, [1, 1, 2, 0], context)).toThrow('q[3]');
  });

  it('nibbles: high one first, blocks of another kind, codes for the same number', () => {
    const data = golden({ q: u8([0x12, 0x20]), kind: u8([0, 1]), cuda: u8([0x12, 0x44]) });
    const rule: Rule = {
      tensor: 'q',
      rule: 'nibbles',
      blockKind: 'kind',
      alternative: 'cuda',
      equivalentNibbles: [[0, 3]],
      why,
    };
    expect(() => checkRule(data, rule, [0x12, 0x20], context)).not.toThrow();
    expect(() => checkRule(data, rule, [0x21, 0x20], context)).toThrow('q[0]');
    expect(() => checkRule(data, rule, [0x12, 0x44], context)).not.toThrow();
    expect(() => checkRule(data, rule, [0x12, 0x23], context)).not.toThrow();
    expect(() => checkRule(data, rule, [0x12, 0x11], context)).toThrow('q[2]');
    expect(() => checkRule(data, rule, [0x12, 0x20])).toThrow('codebook');
  });

  it('lets a share of int8 codes be a neighbour', () => {
    const data = golden({ y: f32([1, -2, 3, 4]) }, []);
    const rule: Rule = { tensor: 'y', rule: 'int8', maxDiff: 1, maxDiffFraction: 0.25, why };
    expect(() => checkRule(data, rule, [1, -3, 3, 4])).not.toThrow();
    expect(() => checkRule(data, rule, [1, -4, 3, 4])).toThrow('is code -4');
    expect(() => checkRule(data, rule, [1, -3, 3, 5])).toThrow('is code 5');
    expect(() => checkRule(data, rule, [1, Number.NaN, 3, 4])).toThrow('is code NaN');
    const exact: Rule = { tensor: 'y', rule: 'int8', why };
    expect(() => checkRule(data, exact, [1, -2, 3, 4])).not.toThrow();
    expect(() => checkRule(data, exact, [1, -2, 3, 3])).toThrow('is code 3');
  });

  it('bits: NaN where NaN is expected, and infinities', () => {
    const data = golden({ y: f32([Number.NaN, Number.POSITIVE_INFINITY, 1]) });
    const rule: Rule = { tensor: 'y', rule: 'bits', why };
    const right = [Number.NaN, Number.POSITIVE_INFINITY, 1];
    expect(() => checkRule(data, rule, right)).not.toThrow();
    expect(() => checkRule(data, rule, [0, ...right.slice(1)])).toThrow('y[0] is 0');
    expect(() => checkRule(data, rule, [Number.NaN, Number.NaN, 1])).toThrow('y[1] is NaN');
    expect(() => checkRule(data, rule, [Number.NaN, 3e38, 1])).toThrow('y[1]');
    expect(() => checkRule(data, { ...rule, rule: 'values' }, right)).toThrow('y[0] is NaN');
  });

  it('bytes: any NaN code for a NaN code, a row as its alternative as a whole', () => {
    const data = golden({ q: u8([0, 3, 1, 1], [2, 2]), other: u8([2, 0, 2, 0], [2, 2]) });
    const rule: Rule = { tensor: 'q', rule: 'bytes', why };
    const levels = { codebook: [0, 1, Number.NaN, Number.NaN] };
    const nan: Rule = { ...rule, nan: 'any NaN code' };
    expect(() => checkRule(data, nan, [0, 2, 1, 1], levels)).not.toThrow();
    expect(() => checkRule(data, nan, [2, 3, 1, 1], levels)).toThrow('q[0] is byte 2');
    expect(() => checkRule(data, nan, [0, 1, 1, 1], levels)).toThrow('q[1] is byte 1');
    expect(() => checkRule(data, nan, [0, 3, 1, 1])).toThrow('codebook');
    expect(() => checkRule(data, rule, [0, 2, 1, 1], levels)).toThrow('q[1] is byte 2');
    const either: Rule = { ...rule, alternative: 'other' };
    expect(() => checkRule(data, either, [0, 3, 2, 0])).not.toThrow();
    expect(() => checkRule(data, either, [2, 3, 1, 1])).toThrow('q[0] is byte 2');
    expect(() => checkRule(data, rule, [0, 3, 2, 0])).toThrow('q[2] is byte 2');
  });

  it('quantised: the rms error of what was made, decoded', () => {
    const data = golden({ q: u8([1, 2]), w: f32([1, 2, 3, 4]) });
    const rule: Rule = {
      tensor: 'q',
      rule: 'quantised',
      from: ['w'],
      peerRmsErr: 0.5,
      factor: 2,
      why,
    };
    expect(() => checkRule(data, rule, [2, 3, 4, 5])).not.toThrow();
    expect(() => checkRule(data, rule, [2, 3, 4, 5.01])).toThrow('rms error of 1.0');
    expect(() => checkRule(data, rule, [1, 2, 3, Number.NaN])).toThrow('rms error of NaN');
    expect(() => checkRule(data, rule, [1, 2])).toThrow('2 decoded values, expected 4');
  });

  it('two rules for one tensor are two rules', () => {
    const rules: Rule[] = [
      { tensor: 'y', rule: 'values', why },
      { tensor: 'y', rule: 'quantised', from: ['y'], peerRmsErr: 0, factor: 1, why },
    ];
    const book = new RuleBook(golden({ y: f32([1]) }, rules));
    book.check('y', [1]);
    expect(() => book.finish()).toThrow('never applied: y');
    book.apply(rules[1] as Rule, [1]);
    expect(() => book.finish()).not.toThrow();
  });

  it('a case cannot pass by leaving a rule out', () => {
    const rules: Rule[] = [
      { tensor: 'y', rule: 'values', why },
      { tensor: 'z', rule: 'values', why },
    ];
    const book = new RuleBook(golden({ y: f32([1]), z: f32([2]) }, rules));
    book.check('y', [1]);
    expect(() => book.finish()).toThrow('never applied: z');
    expect(() => book.waive('z', '')).toThrow('reason');
    expect(() => book.waive('q', 'not there')).toThrow('no rule');
    expect(() => book.check('z', [3])).toThrow('z[0]');
    book.check('z', [2]);
    expect(() => book.finish()).not.toThrow();
  });
});
