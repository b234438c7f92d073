// coreScale against float64, its gradients against differences; and checkGradients against gradients
// that are right and wrong.
import { describe, expect, it } from 'vitest';
import {
  type CoreParts,
  checkGradients,
  coreScale,
  coreScaleBackward,
  type GradientReport,
  loraExpand,
  loraExpandBackward,
  loraShrink,
  loraShrinkBackward,
  mapTensor,
  multiplyAdd,
  scope,
  Tensor,
} from '../../lib/index.js';
import {
  abs,
  type Bounded,
  bound,
  exact,
  type Matrix,
  multiplyAdd64,
  timesTransposed,
} from '../oracle.js';
import { DEVICES, operand, seeded } from './operands.js';

const VARIANTS = ['dIn', 'core', 'dOut', 'matrix'] as const;
type Variant = (typeof VARIANTS)[number];
/** Every sensible set of parts. */
const SETS: readonly (readonly Variant[])[] = [
  ['dIn'],
  ['dOut'],
  ['core'],
  ['matrix'],
  ['dIn', 'dOut'],
  ['dIn', 'core', 'dOut'],
  ['dIn', 'matrix'],
  ['matrix', 'dOut'],
  ['dIn', 'matrix', 'dOut'],
];
const SHAPES = [
  { M: 0, r: 3, p: 3 },
  { M: 1, r: 1, p: 1 },
  { M: 17, r: 8, p: 8 },
  { M: 65, r: 64, p: 64 },
  { M: 6, r: 5, p: 7 },
];

function make(parts: readonly Variant[], r: number, p: number, seed: number, device: string) {
  const width = parts.includes('matrix') ? p : r;
  const part = (i: number, rows: number, cols: number, shape: number[]) =>
    operand(rows, cols, { seed: seeded(seed, i), device: device as 'cpu', shape });
  return {
    width,
    dIn: parts.includes('dIn') ? part(1, 1, r, [r]) : undefined,
    core: parts.includes('matrix')
      ? part(2, p, r, [p, r])
      : parts.includes('core')
        ? part(2, 1, r, [r])
        : undefined,
    dOut: parts.includes('dOut') ? part(3, 1, width, [width]) : undefined,
  };
}

const tensors = (made: ReturnType<typeof make>): CoreParts => ({
  ...(made.dIn === undefined ? {} : { dIn: made.dIn.tensor }),
  ...(made.core === undefined ? {} : { core: made.core.tensor }),
  ...(made.dOut === undefined ? {} : { dOut: made.dOut.tensor }),
});

describe.each(DEVICES)('%s', (device) => {
  it('h2 = C(h . dIn) . dOut for every set of parts', async () => {
    for (const [index, parts] of SETS.entries()) {
      for (const { M, r, p } of SHAPES) {
        await scope(async () => {
          const made = make(parts, r, p, index, device);
          const h = operand(M, r, { seed: seeded(index, 9), device });
          const times = ({ value, p: size }: Bounded, b: Matrix | undefined): Bounded => ({
            value: multiplyAdd64(value, b, undefined, 1, 1).value,
            p: multiplyAdd64(size, b === undefined ? b : abs(b), undefined, 1, 1).value,
          });
          let expected = times({ value: h.matrix, p: abs(h.matrix) }, made.dIn?.matrix);
          const core = made.core?.matrix;
          expected =
            core !== undefined && parts.includes('matrix')
              ? {
                  value: timesTransposed(expected.value, core),
                  p: timesTransposed(expected.p, abs(core)),
                }
              : times(expected, core);
          expected = times(expected, made.dOut?.matrix);
          const { h2, saved } = coreScale(h.tensor, tensors(made));
          expect(h2.shape).toEqual([M, made.width]);
          bound(`h2 ${parts} [${M}, ${r}]`, await h2.read(), expected);
          saved.dispose();
          expect(h.tensor.disposed).toBe(false);
        });
      }
    }
  });

  it('keeps what it needs, frees it once, and gives the same gradients twice', async () => {
    await scope(async () => {
      const made = make(['dIn', 'matrix', 'dOut'], 8, 8, 1, device);
      const h = operand(6, 8, { seed: 2, device, shape: [2, 3, 8] });
      const dh2 = operand(6, 8, { seed: 3, device, shape: [2, 3, 8] });
      const { saved } = coreScale(h.tensor, tensors(made));
      h.tensor.dispose();
      const once = coreScaleBackward(dh2.tensor, saved, { keep: true });
      const twice = coreScaleBackward(dh2.tensor, saved);
      expect(saved.disposed).toBe(true);
      expect(Object.keys(once).sort()).toEqual(['dCore', 'dDIn', 'dDOut', 'dh']);
      expect(once.dh.shape).toEqual([2, 3, 8]);
      expect([once.dDIn?.shape, once.dCore?.shape, once.dDOut?.shape]).toEqual([[8], [8, 8], [8]]);
      for (const name of ['dh', 'dDIn', 'dCore', 'dDOut'] as const) {
        const second = await (twice[name] as Tensor).read();
        exact(name, await (once[name] as Tensor).read(), second);
      }
    });
  });
});

const device = 'reference';

/** A VeRA-like layer: all of x, loraA, core, dOut, loraB trained, with dropout. */
function layer(seed: number) {
  const [M, N, K, r] = [7, 9, 12, 4];
  const part = (i: number, rows: number, cols: number, shape = [rows, cols]): Tensor =>
    operand(rows, cols, { seed: seeded(seed, i), device, shape }).tensor;
  const w = part(1, N, K);
  const drop = { dropout: 0.3, seed: 5 };
  const scaling = 1.5;
  const inputs = {
    x: part(2, M, K),
    loraA: part(3, r, K),
    core: part(4, r, r),
    dOut: part(5, 1, r, [r]),
    loraB: part(6, N, r),
  };
  type Inputs = Record<string, Tensor>;
  const halves = (given: Inputs) => {
    const { x, loraA, core, dOut, loraB } = given as typeof inputs;
    const h = loraShrink(x, loraA, drop);
    const { h2, saved } = coreScale(h, { core, dOut });
    return { x, loraA, loraB, h2, saved };
  };
  return {
    inputs,
    forward: (given: Inputs): Tensor => {
      const { x, loraB, h2 } = halves(given);
      return loraExpand(x, w, h2, loraB, { scaling });
    },
    backward:
      (bug: 'none' | 'scaling' | 'transposed' | 'gate') =>
      (dy: Tensor, given: Inputs): Record<string, Tensor> => {
        const { x, loraA, loraB, h2, saved } = halves(given);
        const over = loraExpandBackward(dy, h2, loraB, bug === 'scaling' ? {} : { scaling });
        const { dh, dCore, dDOut } = coreScaleBackward(over.dh as Tensor, saved);
        const dropped = bug === 'gate' ? {} : drop;
        const under = loraShrinkBackward(dy, w, dh, loraA, { x, ...dropped });
        const core = dCore as Tensor;
        const values = core.readSync();
        const turned = values.map((_, i) => values[(i % r) * r + Math.floor(i / r)] as number);
        return {
          x: under.dx as Tensor,
          loraA: under.dLoraA as Tensor,
          core: bug === 'transposed' ? Tensor.from(turned, [r, r], { device }) : core,
          dOut: dDOut as Tensor,
          loraB: over.dLoraB as Tensor,
        };
      },
  };
}

const failing = (reports: readonly GradientReport[]): string[] =>
  reports.filter(({ passed }) => !passed).map(({ name }) => name);

describe('checkGradients', () => {
  it('passes every gradient of every set of parts, by orders of magnitude', () => {
    for (const [index, parts] of SETS.entries()) {
      scope(() => {
        const made = make(parts, 5, parts.includes('matrix') ? 7 : 5, index, device);
        const h = operand(6, 5, { seed: seeded(index, 9), device }).tensor;
        const reports = checkGradients({
          inputs: { h, ...tensors(made) },
          forward: ({ h: value, ...rest }) => coreScale(value as Tensor, rest).h2,
          backward: (dh2, { h: value, ...rest }) => {
            const { saved } = coreScale(value as Tensor, rest);
            const { dh, dDIn, dCore, dDOut } = coreScaleBackward(dh2, saved);
            return {
              h: dh,
              ...(dDIn === undefined ? {} : { dIn: dDIn }),
              ...(dCore === undefined ? {} : { core: dCore }),
              ...(dDOut === undefined ? {} : { dOut: dDOut }),
            };
          },
        });
        expect(reports.length).toBe(1 + Object.keys(tensors(made)).length);
        expect(failing(reports)).toEqual([]);
        for (const { worst } of reports) expect(worst).toBeLessThan(1e-4);
      });
    }
  });

  it('passes a whole layer, and finds what is planted: scaling, transpose, gate', () => {
    scope(() => {
      const { inputs, forward, backward } = layer(1);
      const check = (bug: Parameters<typeof backward>[0]): GradientReport[] =>
        checkGradients({ inputs, forward, backward: backward(bug) });
      const right = check('none');
      expect(failing(right)).toEqual([]);
      for (const { worst } of right) expect(worst).toBeLessThan(1e-4);
      const wrong = {
        scaling: ['x', 'loraA', 'core', 'dOut', 'loraB'],
        transposed: ['core'],
        gate: ['x', 'loraA'],
      } as const;
      for (const [bug, names] of Object.entries(wrong)) {
        const reports = check(bug as keyof typeof wrong);
        expect(failing(reports)).toEqual(names);
        const worst = reports.filter(({ passed }) => !passed).map((report) => report.worst);
        for (const value of worst) expect(value).toBeGreaterThan(0.05);
      }
    });
  });

  it('passes curved functions, and finds one element that is wrong among many', () => {
    scope(() => {
      const a = operand(16, 16, { seed: 1, device }).tensor;
      const forward = ({ a: value }: Record<string, Tensor>): Tensor =>
        mapTensor(value as Tensor, 'tanh');
      const slope = (value: Tensor): Tensor => {
        const squares = mapTensor(mapTensor(value, 'tanh'), 'square');
        return multiplyAdd({ a: squares, alpha: -1, c: Tensor.from([1], [1], { device }) });
      };
      const backward = (dy: Tensor, { a: value }: Record<string, Tensor>) => ({
        a: multiplyAdd({ a: dy, b: slope(value as Tensor) }),
      });
      expect(failing(checkGradients({ inputs: { a }, forward, backward }))).toEqual([]);
      const broken = (dy: Tensor, given: Record<string, Tensor>) => {
        const values = backward(dy, given).a.readSync();
        values[77] = -(values[77] as number);
        return { a: Tensor.from(values, [16, 16], { device }) };
      };
      expect(failing(checkGradients({ inputs: { a }, forward, backward: broken }))).toEqual(['a']);
      expect(checkGradients({ inputs: { a }, forward, backward: () => ({}) })).toEqual([]);
    });
  });

  it('a gradient lost in rounding passes only if it is as small', () => {
    scope(() => {
      const x = operand(3, 8, { seed: 1, device }).tensor;
      const w = operand(5, 8, { seed: 2, device }).tensor;
      const loraA = operand(2, 8, { seed: 3, device }).tensor;
      const loraB = Tensor.zeros([5, 2], { device });
      const forward = (given: Record<string, Tensor>): Tensor =>
        loraExpand(x, w, loraShrink(x, given.loraA as Tensor), loraB);
      const check = (value: number): boolean | undefined => {
        const gradient = Tensor.from(new Float32Array(16).fill(value), [2, 8], { device });
        const reports = checkGradients({
          inputs: { loraA },
          forward,
          backward: () => ({ loraA: gradient }),
        });
        return reports[0]?.passed;
      };
      expect([check(0), check(1)]).toEqual([true, false]);
    });
  });
});
