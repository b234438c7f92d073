// Bad input to the ops of a layer of experts.
import { describe, it } from 'vitest';
import {
  combineRows,
  combineRowsBackward,
  ExpertRoute,
  expertsMatmul,
  expertsMatmulBackward,
  Indices,
  quantize,
  routeRows,
  scope,
  selectExperts,
  selectExpertsBackward,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, hostile, impostors } from './harness.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  const draw = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
  const other = device === 'cpu' ? 'reference' : 'cpu';
  const [M, k, E, N, K, r] = [3, 2, 4, 6, 8, 2] as const;
  const ids = (where = device) => Indices.from([0, 3, 1, 0, 2, 3], { limit: E, device: where });

  it('routeRows and selectExperts', async () => {
    await scope(async () => {
      const [logits, dGates] = [draw([M, E], 1), draw([M, k], 2)];
      const selected = selectExperts(logits, { k });
      const route = (...args: unknown[]) => callWith(routeRows, ...args);
      const select = (...args: unknown[]) => callWith(selectExperts, ...args);
      const back = (...args: unknown[]) => callWith(selectExpertsBackward, ...args);
      const gone = ids();
      gone.dispose();
      const cases: BadCase[] = [
        bad(1, 'routeRows: no arguments', 'ERR_TYPE', () => route()),
        bad(1, 'selectExperts: no arguments', 'ERR_TYPE', () => select()),
        ...impostors(logits).flatMap(([kind, what, value]) => [
          bad(kind, `experts: ${what}`, 'ERR_TYPE', () => route(value, { k, experts: E })),
          bad(kind, `logits: ${what}`, 'ERR_TYPE', () => select(value, { k })),
          bad(kind, `dGates: ${what}`, 'ERR_TYPE', () => back(value, logits, selected)),
          bad(kind, `gates: ${what}`, 'ERR_TYPE', () =>
            back(dGates, logits, { ...selected, gates: value }),
          ),
        ]),
        bad(14, 'k: 0', 'ERR_VALUE', () => route(ids(), { k: 0, experts: E })),
        bad(12, 'k: above the experts', 'ERR_VALUE', () => route(ids(), { k: 5, experts: E })),
        bad(16, 'k: a fraction', 'ERR_VALUE', () => route(ids(), { k: 1.5, experts: E })),
        bad(12, 'experts: too many', 'ERR_VALUE', () => route(ids(), { k, experts: 1025 })),
        bad(17, 'experts: NaN', 'ERR_VALUE', () => route(ids(), { k, experts: Number.NaN })),
        bad(22, 'k: does not divide', 'ERR_SHAPE', () => route(ids(), { k: 4, experts: E })),
        bad(31, 'experts: disposed', 'ERR_DISPOSED', () => route(gone, { k, experts: E })),
        bad(12, 'selectExperts: k above E', 'ERR_VALUE', () => select(logits, { k: 5 })),
        bad(14, 'logits: no expert', 'ERR_SHAPE', () => select(draw([3, 0], 1), { k: 1 })),
        bad(12, 'logits: too many', 'ERR_SHAPE', () => select(draw([1, 1025], 1), { k: 1 })),
        bad(35, 'softmax: unknown', 'ERR_VALUE', () => select(logits, { k, softmax: 'some' })),
        bad(22, 'dGates: another shape', 'ERR_SHAPE', () =>
          back(draw([M, 3], 1), logits, selected),
        ),
        bad(24, 'dGates: bf16', 'ERR_DTYPE', () =>
          back(dGates.to({ dtype: 'bf16' }), logits, selected),
        ),
        bad(22, 'experts: too few', 'ERR_SHAPE', () =>
          back(dGates, logits, { ...selected, experts: Indices.from([0], { limit: E, device }) }),
        ),
        bad(26, 'experts: beyond the logits', 'ERR_VALUE', () =>
          back(dGates, logits, {
            ...selected,
            experts: Indices.from([0, 1, 2, 3, 4, 5], { limit: 6, device }),
          }),
        ),
        bad(26, 'experts: with holes', 'ERR_VALUE', () =>
          back(dGates, logits, {
            ...selected,
            experts: Indices.from([0, 1, 2, 3, 0, -1], { limit: E, holes: true, device }),
          }),
        ),
        bad(32, 'dGates: another device', 'ERR_DEVICE', () =>
          back(Tensor.zeros([M, k], { device: other }), logits, selected),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => route(ids(), hostile('k'))),
        bad(33, 'a getter that throws', 'HOSTILE', () => select(logits, hostile('softmax'))),
      ];
      await checkCases('routeRows', device, {
        watched: [logits, dGates],
        cases,
        valid: () =>
          scope(async () => [await selectExpertsBackward(dGates, logits, selected).read()]),
      });
    });
  });

  it('expertsMatmul and combineRows', async () => {
    await scope(async () => {
      const route = routeRows(ids(), { k, experts: E });
      const [x, w, dy, bias] = [
        draw([M, K], 1),
        draw([E * N, K], 2),
        draw([M * k, N], 3),
        draw([E, N], 4),
      ];
      const [loraA, loraB] = [draw([E, r, K], 5), draw([1, N, r], 6)];
      const lora = { loraA, loraB, scaling: 2 };
      const h = expertsMatmul(x, w, route, { lora }).h as Tensor;
      const gates = draw([M, k], 7);
      const forward = (...args: unknown[]) => callWith(expertsMatmul, ...args);
      const backward = (...args: unknown[]) => callWith(expertsMatmulBackward, ...args);
      const combine = (...args: unknown[]) => callWith(combineRows, ...args);
      const spread = (...args: unknown[]) => callWith(combineRowsBackward, ...args);
      const gone = routeRows(ids(), { k, experts: E });
      gone.dispose();
      const ofLora = (change: object) => () =>
        forward(x, w, route, { lora: { ...lora, ...change } });
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => forward()),
        bad(1, 'combineRows: no arguments', 'ERR_TYPE', () => combine()),
        bad(3, 'a route by hand', 'ERR_TYPE', () => Reflect.construct(ExpertRoute, [{}, 1, { k }])),
        ...impostors(x).flatMap(([kind, what, value]) => [
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => forward(value, w, route)),
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => forward(x, value, route)),
          bad(kind, `route: ${what}`, 'ERR_TYPE', () => forward(x, w, value)),
          bad(kind, `dy: ${what}`, 'ERR_TYPE', () => backward(value, w, route)),
          bad(kind, `y: ${what}`, 'ERR_TYPE', () => combine(value, route)),
          bad(kind, `dOut: ${what}`, 'ERR_TYPE', () => spread(value, route)),
          bad(kind, `loraA: ${what}`, 'ERR_TYPE', ofLora({ loraA: value })),
        ]),
        bad(31, 'route: disposed', 'ERR_DISPOSED', () => forward(x, w, gone)),
        bad(22, 'x: another K', 'ERR_SHAPE', () => forward(draw([M, 7], 1), w, route)),
        bad(22, 'x: another number of rows', 'ERR_SHAPE', () => forward(draw([4, K], 1), w, route)),
        bad(22, 'x: rows, not slots', 'ERR_SHAPE', () => forward(x, w, route, { gather: false })),
        bad(22, 'w: E does not divide', 'ERR_SHAPE', () =>
          forward(x, draw([E * N + 1, K], 1), route),
        ),
        bad(23, 'w: three dimensions', 'ERR_SHAPE', () => forward(x, draw([E, N, K], 1), route)),
        bad(25, 'w: a block of two experts', 'ERR_SHAPE', () =>
          forward(x, quantize(w, { format: 'nf4' }), route),
        ),
        bad(35, 'w: zero-points', 'ERR_UNSUPPORTED', () =>
          forward(
            draw([M, 64], 1),
            quantize(draw([E * N, 64], 2), { format: 'int4', zeroPoints: true }),
            route,
          ),
        ),
        bad(24, 'w: f16 with bf16', 'ERR_DTYPE', () =>
          forward(x.to({ dtype: 'bf16' }), w.to({ dtype: 'f16' }), route),
        ),
        bad(22, 'bias: another N', 'ERR_SHAPE', () =>
          forward(x, w, route, { bias: draw([E, 5], 1) }),
        ),
        bad(23, 'bias: a vector', 'ERR_SHAPE', () =>
          forward(x, w, route, { bias: draw([E * N], 1) }),
        ),
        bad(3, 'gather: a number', 'ERR_TYPE', () => forward(x, w, route, { gather: 1 })),
        bad(3, 'lora: a number', 'ERR_TYPE', () => forward(x, w, route, { lora: 1 })),
        bad(35, 'lora: an unknown field', 'ERR_VALUE', ofLora({ loraC: loraA })),
        bad(22, 'loraA: another E', 'ERR_SHAPE', ofLora({ loraA: draw([2, r, K], 1) })),
        bad(23, 'loraA: a matrix', 'ERR_SHAPE', ofLora({ loraA: draw([r, K], 1) })),
        bad(22, 'loraB: another r', 'ERR_SHAPE', ofLora({ loraB: draw([E, N, 3], 1) })),
        bad(29, 'scaling: NaN', 'ERR_VALUE', ofLora({ scaling: Number.NaN })),
        bad(2, 'scaling: missing', 'ERR_TYPE', ofLora({ scaling: undefined })),
        bad(22, 'dy: rows, not slots', 'ERR_SHAPE', () => backward(draw([M, N], 1), w, route)),
        bad(2, 'dLoraA without x', 'ERR_VALUE', () =>
          backward(dy, w, route, { lora, h, needs: ['dLoraA'] }),
        ),
        bad(2, 'dLoraB without h', 'ERR_VALUE', () =>
          backward(dy, w, route, { lora, x, needs: ['dLoraB'] }),
        ),
        bad(2, 'dLoraA without lora', 'ERR_VALUE', () =>
          backward(dy, w, route, { x, needs: ['dLoraA'] }),
        ),
        bad(24, 'x: another dtype', 'ERR_DTYPE', () =>
          backward(dy, w, route, { lora, x: x.to({ dtype: 'bf16' }), h }),
        ),
        bad(22, 'h: another r', 'ERR_SHAPE', () =>
          backward(dy, w, route, { lora, x, h: draw([M * k, 3], 1) }),
        ),
        bad(35, 'needs: unknown', 'ERR_VALUE', () => backward(dy, w, route, { needs: ['dw'] })),
        bad(22, 'y: rows, not slots', 'ERR_SHAPE', () => combine(draw([M, N], 1), route)),
        bad(22, 'gates: another k', 'ERR_SHAPE', () =>
          combine(dy, route, { gates: draw([M, 3], 1) }),
        ),
        bad(24, 'gates: bf16', 'ERR_DTYPE', () =>
          combine(dy, route, { gates: gates.to({ dtype: 'bf16' }) }),
        ),
        bad(2, 'dGates without y', 'ERR_VALUE', () =>
          spread(draw([M, N], 1), route, { needs: ['dGates'] }),
        ),
        bad(22, 'y: another N', 'ERR_SHAPE', () =>
          spread(draw([M, N], 1), route, { y: draw([M * k, 5], 1) }),
        ),
        bad(35, 'dtype: unknown', 'ERR_DTYPE', () =>
          spread(draw([M, N], 1), route, { dtype: 'f64' }),
        ),
        bad(32, 'w: another device', 'ERR_DEVICE', () =>
          forward(x, Tensor.zeros([E * N, K], { device: other }), route),
        ),
        bad(32, 'route: another device', 'ERR_DEVICE', () =>
          forward(x, w, routeRows(ids(other), { k, experts: E })),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => forward(x, w, route, hostile('bias'))),
      ];
      await checkCases('expertsMatmul', device, {
        watched: [x, w, dy, bias, loraA, loraB, h, gates],
        cases,
        valid: () =>
          scope(async () => {
            const { y } = expertsMatmul(x, w, route, { bias, lora });
            const { dx, dLoraA } = expertsMatmulBackward(dy, w, route, { lora, x, h });
            const all = [y, combineRows(y, route, { gates }), dx as Tensor, dLoraA as Tensor];
            return Promise.all(all.map((tensor) => tensor.read()));
          }),
      });
    });
  });
});
