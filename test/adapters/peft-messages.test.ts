// What a config says reaches messages, and through them terminals: as text that moves no cursor, shortened.
import { expect, it } from 'vitest';
import {
  adapterFromPeft,
  LowrankError,
  methodOfPeft,
  NormAdapter,
  TokenRows,
} from '../../lib/index.js';

const place = { inFeatures: 4, outFeatures: 2, device: 'cpu' } as const;
const hostile = `MI\u001b[2J\u202eSS\u009b${'x'.repeat(200)}`;

const readers: readonly (readonly [string, (config: Record<string, unknown>) => unknown])[] = [
  ['adapterFromPeft', (config) => adapterFromPeft({ config, tensors: new Map() }, 'lin', place)],
  ['methodOfPeft', (config) => methodOfPeft(config, 'lin')],
  ['NormAdapter.fromPeft', (config) => NormAdapter.fromPeft({ config, tensors: new Map() }, 'lin')],
  ['TokenRows.fromPeft', (config) => TokenRows.fromPeft({ config, tensors: new Map() }, 'lin')],
];

/** The error of a call: typed, of one line, without a control character. */
function refused(call: () => unknown): LowrankError {
  let error: unknown;
  try {
    call();
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(LowrankError);
  const { message } = error as LowrankError;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
  expect(message).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e]/);
  expect(message).not.toContain('x'.repeat(100));
  return error as LowrankError;
}

it.each(readers)('peft_type in messages of %s', (_, read) => {
  const error = refused(() => read({ peft_type: hostile }));
  expect(error.code).toBe('ERR_UNSUPPORTED');
  expect(error.message).toContain('"MI\\u001b[2J\\u202eSS\\u009bx');
});

it.each(readers)('a peft_type that is no text is refused by %s all the same', (_, read) => {
  for (const value of [Object.create(null), Symbol('s'), 3n, [], {}, 3, null, undefined])
    expect(refused(() => read({ peft_type: value })).code).toBe('ERR_UNSUPPORTED');
});

it.each([
  ['init_weights of MISS', { peft_type: 'MISS', r: 2, init_weights: hostile }],
  ['act_fn of PEANUT', { peft_type: 'PEANUT', r: 2, act_fn: hostile }],
  ['config_A_B of GLORA', { peft_type: 'GLORA', r: 2, config_A_B: hostile }],
  ['module_dropout of OFT', { peft_type: 'OFT', r: 2, module_dropout: hostile }],
  ['a method of its own', { peft_type: 'LOWRANK', lowrank_method: hostile }],
])('%s', (_, config) => {
  const error = refused(() => adapterFromPeft({ config, tensors: new Map() }, 'lin', place));
  expect(error.message).toContain('MI\\u001b[2J\\u202eSS\\u009bx');
});
