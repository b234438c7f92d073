/** captureStep: replays have the bits of calls and cost one launch; what cannot be captured is an error that breaks nothing. */
import { describe, expect, it } from 'vitest';
import {
  adamwStep,
  captureStep,
  combineRows,
  combineRowsBackward,
  DeviceSeed,
  embedding,
  expertsMatmul,
  expertsMatmulBackward,
  full,
  GroupedLora,
  globalNorm,
  Indices,
  LoraAdapter,
  launchCount,
  loraShrink,
  matmul,
  memoryUsage,
  multiplyAdd,
  resetPeakMemory,
  routeRows,
  scope,
  selectExperts,
  synchronize,
  Tensor,
  weightGrad,
  workspaceBytes,
} from '../../lib/index.js';
import { codeOf } from '../checkpoint/raw-file.js';

const device = 'cuda-emulated';
const random = (shape: readonly number[], seed: number) => Tensor.randn(shape, { seed, device });

/** A linear layer and what its optimiser keeps. */
function layer() {
  const w = random([12, 8], 1);
  const state = [Tensor.zeros([12, 8], { device }), Tensor.zeros([12, 8], { device })] as const;
  const lr = Tensor.from([0.1], [1], { device });
  const done = Tensor.zeros([1], { device });
  const x = random([5, 8], 2);
  const step = () => {
    const y = matmul(x, w);
    const dw = weightGrad(y, x);
    const norm = globalNorm([dw]);
    adamwStep([w], [dw], [state[0]], [state[1]], { lr, step: done, norm, maxNorm: 1 });
    return { y, norm };
  };
  return { w, x, lr, step };
}

/** Runs `body` and tells what it cost the host and the device. */
async function costOf(body: () => void) {
  await synchronize(device);
  resetPeakMemory(device);
  const before = { launches: launchCount(device), ...memoryUsage(device) };
  const workspace = workspaceBytes(device);
  body();
  await synchronize(device);
  const after = memoryUsage(device);
  return {
    launches: launchCount(device) - before.launches,
    bytes: after.peakBytes - before.liveBytes + workspaceBytes(device) - workspace,
    tensors: after.liveTensors - before.liveTensors,
  };
}

describe('a captured step', () => {
  it('replays with the bits of calls, one launch each, and allocates nothing', async () => {
    await scope(async () => {
      const [eager, graphed] = [layer(), layer()];
      const rates = [0.1, 0.03, 0.2];
      const expected = rates.map((rate) => {
        eager.lr.write([rate]);
        const { y, norm } = scope(eager.step);
        return [...y.readSync(), ...norm.readSync(), ...eager.w.readSync()];
      });
      const start = [...graphed.w.readSync()];
      const step = captureStep(graphed.step, { device });
      expect([...graphed.w.readSync()]).toEqual(start);
      expect(step.launches).toBeGreaterThan(3);
      const found: number[][] = [];
      const cost = await costOf(() => {
        for (const rate of rates) {
          graphed.lr.write([rate]);
          step.replay();
          const { y, norm } = step.result;
          found.push([...y.readSync(), ...norm.readSync(), ...graphed.w.readSync()]);
        }
      });
      expect(found).toEqual(expected);
      expect(new Set(found.map(String)).size).toBe(3);
      expect(cost).toEqual({ launches: 3, bytes: 0, tensors: 0 });
      step.dispose();
      step.dispose();
      expect(codeOf(() => step.replay())).toBe('ERR_DISPOSED');
    });
  });

  it('shares its memory among tensors that do not live at once, and frees it', async () => {
    const x = random([256, 1024], 3);
    await synchronize(device);
    const before = memoryUsage(device);
    const step = captureStep(
      () => {
        let y = multiplyAdd({ a: x, alpha: 2 });
        for (let i = 0; i < 9; i++) {
          const next = multiplyAdd({ a: y, alpha: 0.5 });
          y.dispose();
          y = next;
        }
        return y;
      },
      { device },
    );
    expect(memoryUsage(device).liveBytes - before.liveBytes).toBeLessThan(4 * x.byteLength);
    step.replay();
    expect(step.result.readSync()[5]).toBe((x.readSync()[5] as number) / 256);
    step.dispose();
    await synchronize(device);
    expect(memoryUsage(device)).toEqual({
      ...memoryUsage(device),
      liveBytes: before.liveBytes,
      liveTensors: before.liveTensors,
    });
    x.dispose();
  });

  it('reads ids and seeds that are written before a replay', () => {
    scope(() => {
      const table = random([7, 4], 4);
      const ids = Indices.from([0, 1], { limit: 7, device });
      const seed = DeviceSeed.from(5, { device });
      const step = captureStep(
        () => ({ rows: embedding(ids, table), mask: seed.plus(9).keepMask([3, 5], 0.5) }),
        { device },
      );
      for (const [a, b, s] of [
        [3, 6, 11],
        [2, 2, 2 ** 40 + 1],
      ] as const) {
        ids.write([a, b]);
        seed.write(s);
        step.replay();
        const all = table.readSync();
        expect([...step.result.rows.readSync()]).toEqual([
          ...all.slice(4 * a, 4 * a + 4),
          ...all.slice(4 * b, 4 * b + 4),
        ]);
        const expected = DeviceSeed.from(s + 9, { device: 'cpu' }).keepMask([3, 5], 0.5);
        expect(step.result.mask.readSync()).toEqual(expected.readSync());
      }
    });
  });

  it('routes rows to the experts that each replay chooses', async () => {
    await scope(async () => {
      const [M, k, E, N, K, r] = [9, 2, 5, 6, 8, 2] as const;
      const x = random([M, K], 5);
      const w = random([E * N, K], 6);
      const lora = { loraA: random([E, r, K], 7), loraB: random([E, N, r], 8), scaling: 2 };
      const router = random([E, K], 9);
      const body = () => {
        const { experts, gates } = selectExperts(matmul(x, router), { k });
        const route = routeRows(experts, { k, experts: E });
        const { y, h } = expertsMatmul(x, w, route, { lora });
        const out = combineRows(y, route, { gates });
        const { dy, dGates } = combineRowsBackward(out, route, { y, gates });
        const back = expertsMatmulBackward(dy as Tensor, w, route, {
          lora,
          x,
          h: h as Tensor,
        });
        return { out, dGates, ...back } as Record<string, Tensor>;
      };
      const step = captureStep(body, { device });
      const found: string[] = [];
      for (const seed of [1, 2, 3]) {
        x.write(await Tensor.randn([M, K], { seed, device: 'cpu' }).read());
        step.replay();
        const eager = scope(body);
        for (const [name, tensor] of Object.entries(eager)) {
          expect(await (step.result[name] as Tensor).read(), name).toEqual(await tensor.read());
        }
        found.push(String(await (eager.out as Tensor).read()));
      }
      expect(new Set(found).size).toBe(3);
      step.dispose();
    });
  });

  it('names a tensor that was freed, and works again in another step', () => {
    scope(() => {
      const { w, x, step } = layer();
      const captured = captureStep(() => step(), { device });
      captured.replay();
      const before = w.readSync();
      x.dispose();
      expect(() => captured.replay()).toThrow(
        /^replay: a tensor that matmul uses must be live, got a disposed one/,
      );
      expect(codeOf(() => captured.replay())).toBe('ERR_DISPOSED');
      expect(w.readSync()).toEqual(before);
    });
  });

  it('has no values before its first replay', async () => {
    const a = full([4], 3, { device });
    const step = captureStep(() => multiplyAdd({ a, alpha: 2 }), { device });
    await expect(step.result.read()).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
    step.replay();
    expect([...(await step.result.read())]).toEqual([6, 6, 6, 6]);
    step.dispose();
    a.dispose();
  });
});

describe('what cannot be captured', () => {
  const a = () => full([2, 4], 1, { device });
  const cases: readonly (readonly [string, RegExp, (x: Tensor) => unknown])[] = [
    ['a read', /^readSync: /, (x) => x.readSync()],
    ['an awaited read', /^read: /, (x) => void x.read().catch(() => {})],
    ['host values', /^Tensor\.from: data/, () => Tensor.from([1], [1], { device })],
    ['a write', /^write: /, (x) => x.write(new Float32Array(8))],
    ['ids of the host', /^Indices\.from: /, () => Indices.from([1], { limit: 2, device })],
    [
      'a random tensor by number',
      /^Tensor\.randn: seed must be a DeviceSeed/,
      () => random([2], 1),
    ],
    ['dropout by number', /^loraShrink: seed/, (x) => loraShrink(x, x, { dropout: 0.5, seed: 1 })],
    ['a copy to another device', /^to: /, (x) => x.to({ device: 'cpu' })],
    ['another step', /^captureStep: /, () => captureStep(() => 1, { device })],
    ['a wrong operand', /^matmul: /, (x) => matmul(x, full([3, 5], 1, { device }))],
  ];
  it.each(cases)('%s: its error names the op, and nothing is kept', async (name, message, body) => {
    const x = a();
    await synchronize(device);
    const before = memoryUsage(device);
    const run = () =>
      captureStep(
        () => {
          multiplyAdd({ a: x, alpha: 2 });
          return body(x);
        },
        { device },
      );
    if (name === 'an awaited read') expect(() => run().dispose()).not.toThrow();
    else expect(run).toThrow(message);
    if (name !== 'a wrong operand' && name !== 'an awaited read') {
      expect(codeOf(run)).toBe('ERR_UNSUPPORTED');
    }
    await synchronize(device);
    const after = memoryUsage(device);
    expect([after.liveBytes, after.liveTensors]).toEqual([before.liveBytes, before.liveTensors]);
    expect([...x.readSync()]).toEqual([1, 1, 1, 1, 1, 1, 1, 1]);
    x.dispose();
  });

  it('an op that the queue rejects is named, and changes and poisons nothing', () => {
    scope(() => {
      const x = a();
      const w = a();
      const adapters = new GroupedLora({ inFeatures: 4, outFeatures: 2, device });
      const [loraA, loraB] = [full([2, 4], 1, { device }), full([2, 2], 1, { device })];
      adapters.add('one', new LoraAdapter({ loraA, loraB, loraAlpha: 2 }));
      const sum = a();
      const attempt = () =>
        captureStep(
          () => {
            const { y } = adapters.forward(x, w, [null, 'one']);
            weightGrad(y, x, { accumulateInto: sum });
          },
          { device },
        );
      expect(attempt).toThrow(
        /^groupedForward: cannot be captured into a graph: its table of adapters/,
      );
      expect([...sum.readSync()]).toEqual([1, 1, 1, 1, 1, 1, 1, 1]);
      const step = captureStep(() => matmul(x, w), { device });
      step.replay();
      expect([...step.result.readSync()]).toEqual([4, 4, 4, 4]);
    });
  });

  it('a body that is no synchronous function, and a device without graphs', () => {
    expect(codeOf(() => captureStep(3 as never))).toBe('ERR_TYPE');
    expect(codeOf(() => captureStep(async () => 1, { device }))).toBe('ERR_TYPE');
    expect(() => captureStep(() => 1, { device: 'cpu' })).toThrow(
      'captureStep: device must be a CUDA device, got cpu',
    );
    const thrown = new Error('mine');
    expect(() =>
      captureStep(
        () => {
          throw thrown;
        },
        { device },
      ),
    ).toThrow(thrown);
  });
});
