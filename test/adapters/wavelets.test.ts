// The filters of wavelets by what defines them, and folders of PEFT's that name one.
import { describe, expect, it } from 'vitest';
import { waveletFilter } from '../../lib/adapters/methods/spectral/wavelets.js';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  Tensor,
} from '../../lib/index.js';

const named = (family: string, first: number, last: number): string[] =>
  Array.from({ length: last - first + 1 }, (_, i) => `${family}${first + i}`);
const NAMES = [...named('db', 1, 10), ...named('sym', 2, 10), ...named('coif', 1, 3)];

/** The beginnings of those that their definition leaves open: which roots, and which end is first. As PEFT has them. */
const BEGINS: Readonly<Record<string, readonly number[]>> = {
  db2: [0.4829629131, 0.8365163037],
  db10: [0.0266700579, 0.1881768001, 0.5272011889],
  sym2: [0.4829629131, 0.8365163037],
  sym3: [0.332670553, 0.8068915093],
  sym4: [0.0322231006, -0.0126039673, -0.0992195436],
  sym5: [0.0195388827, -0.021101834, -0.1753280899],
  sym6: [-0.0078007083, 0.0017677119, 0.0447249018],
  sym7: [0.0102681767, 0.0040102449, -0.1078082377],
  sym8: [0.0018899503, -0.0003029205, -0.0149522583],
  sym9: [0.00106949, -0.0004731545, -0.010264064],
  sym10: [-0.0004593294, 0.0000570361, 0.0045931736],
  // Times the root of 2.
  coif1: [-0.0514297285, 0.2389297285, 0.6028594569].map((v) => v * Math.SQRT2),
  coif2: [0.0115875967, -0.029320138, -0.0476395903].map((v) => v * Math.SQRT2),
  coif3: [-0.0026824187, 0.0055031267, 0.0165835605].map((v) => v * Math.SQRT2),
};

describe.each(NAMES)('%s', (name) => {
  const h = waveletFilter(name) as readonly number[];
  const order = Number(/\d+$/.exec(name)?.[0]);
  const isCoiflet = name.startsWith('coif');

  it('has as many values as its order says', () => {
    expect(h.length).toBe((isCoiflet ? 6 : 2) * order);
  });

  it('is orthogonal to its shifts by two', () => {
    for (let shift = 0; shift < h.length; shift += 2) {
      const sum = h.reduce((total, v, i) => total + v * (h[i + shift] ?? 0), 0);
      expect(Math.abs(sum - (shift === 0 ? 1 : 0)), `${shift}`).toBeLessThan(1e-15 * h.length);
    }
  });

  it('has the vanishing moments of its order', () => {
    const moments = (isCoiflet ? 2 : 1) * order;
    for (let p = 0; p < moments; p++) {
      const terms = h.map((v, i) => (-1) ** i * ((i + 1) / h.length) ** p * v);
      expect(Math.abs(terms.reduce((a, b) => a + b, 0)), `${p}`).toBeLessThan(1e-14);
    }
    expect(Math.abs(h.reduce((a, b) => a + b, 0) - Math.SQRT2)).toBeLessThan(1e-14);
    // A coiflet's low-pass filter has them too, around its centre.
    for (let p = 1; isCoiflet && p < moments; p++) {
      const terms = h.map((v, i) => ((i - 2 * order) / h.length) ** p * v);
      expect(Math.abs(terms.reduce((a, b) => a + b, 0)), `${p}`).toBeLessThan(1e-14);
    }
  });

  it('begins as the peer’s', () => {
    for (const [i, value] of (BEGINS[name] ?? []).entries()) {
      expect(Math.abs((h[i] as number) - value)).toBeLessThan(1e-9);
    }
    // Of Daubechies' most lies at the beginning.
    const centre = h.reduce((sum, v, i) => sum + i * v * v, 0);
    if (name.startsWith('db')) expect(centre).toBeLessThanOrEqual((h.length - 1) / 2 + 1e-12);
  });
});

describe('a folder of PEFT’s', () => {
  const place = { inFeatures: 16, outFeatures: 12, device: 'cpu' } as const;
  const folderOf = (fields: Readonly<Record<string, unknown>>, count = 5) => ({
    config: { peft_type: 'WAVEFT', n_frequency: 5, scaling: 2, random_loc_seed: 3, ...fields },
    tensors: new Map([
      [
        'base_model.model.lin.waveft_spectrum',
        {
          dtype: 'F32',
          shape: [count],
          data: Float32Array.from({ length: count }, (_, i) => i + 1),
        },
      ],
    ]) as Parameters<typeof adapterFromPeft>[0]['tensors'],
  });

  it('is read with its wavelet, and written with it', async () => {
    const adapter = adapterFromPeft(folderOf({ wavelet_family: 'sym2' }), 'lin', place);
    expect(adapter.config).toMatchObject({ wavelet: 'sym2', transform: true, frequencies: 5 });
    const { config } = await adaptersToPeft(new Map([['lin', adapter]]));
    expect(config.wavelet_family).toBe('sym2');
  });

  it.each(['db11', 'coif4', 'haar', 7])('is refused where the wavelet is %s', (family) => {
    expect(() => adapterFromPeft(folderOf({ wavelet_family: family }), 'lin', place)).toThrow(
      `adapterFromPeft: wavelet_family must be one of db1 to db10, sym2 to sym10, coif1 to coif3, got ${JSON.stringify(family)}`,
    );
  });

  it('may name any wavelet where nothing is transformed', () => {
    const folder = folderOf({ wavelet_family: 'db30', use_idwt: false });
    expect(adapterFromPeft(folder, 'lin', place).config).toMatchObject({ transform: false });
  });

  it('may have a share of the coefficients for each layer', () => {
    const folder = folderOf({ proportional_parameters: true }, 9);
    expect(adapterFromPeft(folder, 'lin', place).config).toMatchObject({ frequencies: 9 });
  });

  it('has a pattern where layers have other numbers of coefficients', async () => {
    const made = [7, 7, 4].map(
      (frequencies) => adapters.waveft.create({ ...place, frequencies }) as unknown as Adapter,
    );
    const folder = await adaptersToPeft(new Map(made.map((each, i) => [`layer.${i}`, each])));
    expect(folder.config.n_frequency).toBe(7);
    for (const [i, { config }] of made.entries()) {
      expect(adapterFromPeft(folder, `layer.${i}`, place).config).toEqual(config);
    }
  });

  it('moves other entries by a longer filter', () => {
    const entries = (wavelet: string) => {
      const adapter = adapters.waveft.create({ ...place, wavelet, frequencies: 1 });
      adapter.parameters.spectrum?.write([1]);
      const zeros = Tensor.zeros([12, 16], { device: 'cpu' });
      const merged = adapter.merge(zeros).weight as Tensor;
      return merged.readSync().filter((value) => value !== 0).length;
    };
    expect(entries('db1')).toBe(4);
    expect(entries('db2')).toBeGreaterThan(4);
  });
});
