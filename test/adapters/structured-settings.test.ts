// Settings that do not fit the layer are refused by name, with what was expected and what came.
import { describe, expect, it } from 'vitest';
import { type AdapterPlace, adapterMethods, LowrankError, memoryUsage } from '../../lib/index.js';

/** Of a layer with N = 24 and K = 32. */
const REFUSED: readonly (readonly [
  method: string,
  settings: Record<string, unknown>,
  text: RegExp,
])[] = [
  ['bdlora', { side: 'c' }, /side must be a, b or none, got "c"/],
  ['bdlora', { r: 4, blocks: 3 }, /blocks must be a divisor of r \(4\) and of K \(32\), got 3/],
  ['bdlora', { r: 5, blocks: 5, side: 'b' }, /blocks must be a divisor of .*N \(24\), got 5/],
  ['boft', { blockSize: 5 }, /blockSize must be such that 1 x blockSize divides 32, got 5/],
  ['boft', { blockSize: 4, factors: 0 }, /factors must be an integer from 1 to 30, got 0/],
  ['boft', { blockSize: 1, factors: 2 }, /blockSize must be even if there is more than one factor/],
  ['boft', { blockSize: 4, factors: 5 }, /blockSize must be such that 16 x blockSize divides 32/],
  ['c3a', { blockSize: 5 }, /blockSize must be a divisor of K \(32\) and of N \(24\), got 5/],
  [
    'c3a',
    { blockSize: 8, init: 'ones' },
    /init must be one of zeros, gaussian, xavier, got "ones"/,
  ],
  ['gralora', { r: 8, k: 3 }, /k must be a divisor of K \(32\), of N \(24\) and of r \(8\), got 3/],
  ['gralora', { r: 8, hybridR: -1 }, /hybridR must be not negative, got -1/],
  ['hra', { r: 0 }, /^hra.create: r must be an integer from 1 to 2147483647, got 0$/],
  ['hra', { r: 33, gramSchmidt: true }, /r must be from 1 to K \(32\), with gramSchmidt, got 33/],
  ['ir-qlora', { r: 3 }, /r must be a divisor of K \(32\) and of N \(24\), got 3/],
  ['gralora', { r: -1 }, /^gralora.create: r must be an integer from 1 to 2147483647, got -1$/],
  ['lora', { r: 1.5 }, /^lora.create: r must be an integer from 1 to 2147483647, got 1.5$/],
  ['krona', { leftN: 5 }, /leftN must be a divisor of N \(24\), or 0, got 5/],
  ['krona', { leftK: 5 }, /leftK must be a divisor of K \(32\), or 0, got 5/],
  ['lokr', { factor: 0 }, /factor must be a positive integer, or -1, got 0/],
  ['lokr', { r: 0 }, /^lokr.create: r must be an integer from 1 to 2147483647, got 0$/],
  ['melora', { minis: 5 }, /minis must be a divisor of K \(32\) and of N \(24\), got 5/],
  ['miss', { form: 'odd' }, /form must be one of plain, bat, mini, got "odd"/],
  ['miss', { form: 'mini', miniR: 5 }, /miniR must be a divisor of N \(24\), got 5/],
  ['miss', { form: 'bat', r: 6 }, /r must be a divisor of K \(32\) and of N \(24\), got 6/],
  ['mora', { kind: 'folding' }, /kind must be rotation or sharing, got "folding"/],
  ['oft', { blocks: 5 }, /blocks must be a divisor of 32, got 5/],
  ['oft', { blockSize: 5 }, /blockSize must be a divisor of 32, got 5/],
  ['oft', { blockSize: 8, eps: 0 }, /eps must be above 0, got 0/],
  ['psoft', { r: 25 }, /r must be from 1 to 24, got 25/],
  ['psoft', { r: 4 }, /weight must be given \(the base weight\), got none/],
  ['qalora', { groupSize: 5 }, /groupSize must be a divisor of K \(32\), got 5/],
  ['qalora', { pool: 'sum' }, /pool must be groups, mean or size, got "sum"/],
  [
    'waveft',
    { wavelet: 'db11', frequencies: 8 },
    /^waveft.create: wavelet must be one of db1 to db10, sym2 to sym10, coif1 to coif3, got "db11"$/,
  ],
  ['waveft', { wavelet: 'toString', frequencies: 8 }, /wavelet must be one of db1/],
  ['kadaptation', { n: 5 }, /^kadaptation.create: n must be a divisor of 24 and 32, got 5$/],
  ['kadaptation', { n: 4, terms: 0 }, /terms must be an integer of at least 1, got 0/],
  ['kadaptation', { n: 4, leftRank: 5 }, /leftRank must be an integer from 0 to n \(4\), got 5/],
  ['lora-xs', { r: 25 }, /^lora-xs.create: r must be from 1 to 24, got 25$/],
  ['tinylora', { r: 25 }, /^tinylora.create: r must be from 1 to 24, got 25$/],
  ['road', { variant: 3 }, /variant must be 1, 2 or 4, got 3/],
  ['deft', { scaling: 0 }, /^deft.create: scaling must be other than 0 .*, got 0$/],
  ['deft-qr', { scaling: 0 }, /^deft-qr.create: scaling must be other than 0 .*, got 0$/],
  ['hydralora', { experts: 0 }, /^hydralora.create: experts must be at least 1, got 0$/],
  ['lily', { experts: 0 }, /^lily.create: experts must be at least 1, got 0$/],
  ['lora-dropout', { p: 1.5 }, /^lora-dropout.create: p must be in \[0, 1\), got 1.5$/],
  ['loramoe', { experts: 0 }, /^loramoe.create: experts must be at least 1, got 0$/],
  ['poly', { nSkills: 0 }, /^poly.create: nSkills must be at least 1, got 0$/],
  ['poly', { nTasks: 0 }, /^poly.create: nTasks must be at least 1, got 0$/],
  ['private-lora', { rA: 0 }, /^private-lora.create: rA must be at least 1, got 0$/],
  ['private-lora', { rB: 0 }, /^private-lora.create: rB must be at least 1, got 0$/],
  ['psoft', { r: 4, loraAlpha: 0 }, /^psoft.create: loraAlpha must be other than 0 .*, got 0$/],
  ['unilora', { length: 0 }, /^unilora.create: length must be at least 1, got 0$/],
  [
    'vblora',
    { vectorLength: 8, topK: 1.5 },
    /^vblora.create: topK must be an integer from 1 to 256, got 1.5$/,
  ],
  [
    'vblora',
    { vectorLength: 8, bankBound: -1 },
    /^vblora.create: bankBound must be not negative, got -1$/,
  ],
  [
    'vblora',
    { vectorLength: 8, logitsStd: -1 },
    /^vblora.create: logitsStd must be not negative, got -1$/,
  ],
  ['velora', { groups: 1.5 }, /^velora.create: groups must be an integer from 1 to 32, got 1.5$/],
  ['road', { groupSize: 5 }, /groupSize must be an even divisor of N \(24\), got 5/],
];

describe('settings that do not fit', () => {
  it.each(REFUSED)('%s %j', (name, settings, text) => {
    const before = memoryUsage('cpu').liveTensors;
    const method = adapterMethods.find((candidate) => candidate.method === name);
    const place = { inFeatures: 32, outFeatures: 24, device: 'cpu', ...settings } as AdapterPlace;
    let error: unknown;
    try {
      method?.create(place);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(LowrankError);
    expect((error as LowrankError).code).toBe('ERR_VALUE');
    expect((error as LowrankError).message).toMatch(text);
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });
});
