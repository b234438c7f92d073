/** The move rule of jax-js: what a call consumes, and that nothing stays behind. */

import { beforeAll, describe, expect, it } from 'vitest';
import { matmul, matmulInputGrad, memoryUsage, scope, Tensor } from '../../lib/index.js';
import {
  branches,
  chain,
  type LayerGradients,
  loraLinear,
  type SegmentLayer,
  segment,
} from '../../lib/jax/index.js';

/** The memory that jax-js computes in: it makes one when it is loaded. */
interface WasmMemory {
  readonly buffer: ArrayBuffer;
}
type MemoryClass = new (descriptor: object) => WasmMemory;
let memory: WasmMemory | undefined;
const { WebAssembly: wasm } = globalThis as unknown as { WebAssembly: { Memory: MemoryClass } };
wasm.Memory = class extends wasm.Memory {
  constructor(descriptor: object) {
    super(descriptor);
    memory = this;
  }
};
const { array, np, tree, jax } = await import('./setup.js');
type Jax = InstanceType<typeof jax.Array>;

const [M, D, r] = [16, 32, 2];
const params = () => ({ a: array('a', [r, D]), b: array('b', [D, r]), c: array('c', [D]) });
type Params = ReturnType<typeof params>;
const linear = (loraA = 'a') =>
  loraLinear({ w: array('w', [D, D]), loraA, loraB: 'b', loraAlpha: 2, format: 'nf4' });
const meanSquare = (y: Jax): Jax => np.mean(np.square(y));

/** A model with every way that an array can take. */
const model = chain(
  (b: { x: Jax; t: Jax }, p: Params) => ({
    n: np.multiply(b.x.ref, p.c),
    x: b.x,
    end: np.sin(b.t),
  }),
  branches({ l: ['n', linear()], m: ['n', linear()], n: 'n', x: 'x', end: 'end' }),
  (s: { l: Jax; m: Jax; n: Jax; x: Jax; end: Jax }) => ({
    h: s.l.add(s.m).add(s.n).add(s.x),
    e: s.end,
  }),
  branches({ y: ['h', linear()] }),
  branches({ z: ['y', linear()], y: 'y' }),
  (s: { y: Jax; z: Jax }, _: Params, b: { t: Jax }) => meanSquare(s.y.add(s.z).sub(b.t)),
);
const batch = () => ({ x: array('x', [M, D]), t: array('t', [M, D]) });

/** Tensors and bytes of this library. It waits for the queue, which holds operands until they are read. */
function ours(): { liveTensors: number; liveBytes: number } {
  scope(() => Tensor.zeros([1]).readSync());
  const { liveTensors, liveBytes } = memoryUsage('cpu');
  return { liveTensors, liveBytes };
}

const counts = (of: object): number[] =>
  tree.leaves(of as never).map((leaf) => (leaf as Jax).refCount);

describe('a call', () => {
  it('consumes params and batch, and gives what it returns to the caller', async () => {
    const [p, b] = [params(), batch()];
    const { value, grads } = await model.valueAndGrad(p, b);
    expect([...counts(p), ...counts(b)]).toEqual([0, 0, 0, 0, 0]);
    expect([value.refCount, ...counts(grads)]).toEqual([1, 1, 1, 1]);
  });

  it('keeps arrays that are passed with ref', async () => {
    const [p, b] = [params(), batch()];
    await model.valueAndGrad(tree.ref(p), tree.ref(b));
    const y = (await model.apply(tree.ref(p), tree.ref(b))) as unknown as Jax;
    expect(y.refCount).toBe(1);
    expect([...counts(p), ...counts(b)]).toEqual([1, 1, 1, 1, 1]);
  });

  it('takes one array twice if it has two references', async () => {
    const x = array('x', [M, D]);
    const { value } = await model.valueAndGrad(params(), { x: x.ref, t: x });
    expect(value.item()).toBeGreaterThan(0);
    expect(x.refCount).toBe(0);
  });

  it('runs after the ones before it', async () => {
    const losses = await Promise.all(
      [0, 1, 2].map(async () => (await model.valueAndGrad(params(), batch())).value.item()),
    );
    expect(new Set(losses).size).toBe(1);
  });
});

describe('1,000 calls', () => {
  it('leave no array, no tensor and no byte', async () => {
    const [p, b] = [params(), batch()];
    const step = async () => {
      const { value, grads } = await model.valueAndGrad(tree.ref(p), tree.ref(b));
      tree.dispose(grads as never);
      value.dispose();
    };
    for (let i = 0; i < 20; i++) await step();
    const before = ours();
    const bytes = memory?.buffer.byteLength ?? 0;
    for (let i = 0; i < 1000; i++) await step();
    expect(ours()).toEqual(before);
    expect([...counts(p), ...counts(b)]).toEqual([1, 1, 1, 1, 1]);
    // A leak of the smallest array at each call would take 128 kB: two pages.
    expect(bytes).toBeGreaterThan(0);
    expect((memory?.buffer.byteLength ?? 0) - bytes).toBeLessThanOrEqual(65536);
  });
});

describe('a layer of your own', () => {
  /** Fails where it is told to. */
  class Failing implements SegmentLayer<{ w: Tensor; dispose(): void }> {
    readonly op = 'failing';
    readonly device = 'cpu';
    readonly parameters = { w: 'w' };
    fails = '';
    outShape(x: readonly number[]): readonly number[] {
      return x;
    }
    forward({ x, parameters }: { x: Tensor; parameters: Readonly<Record<string, Tensor>> }) {
      const y = matmul(x, parameters.w as Tensor);
      if (this.fails === 'forward') throw new Error('forward fails');
      return { y, saved: { w: parameters.w as Tensor, dispose() {} } };
    }
    backward(dy: Tensor, saved: { w: Tensor; dispose(): void }): LayerGradients {
      const dx = matmulInputGrad(dy, saved.w);
      if (this.fails === 'backward') throw new Error('backward fails');
      return { dx, parameters: {} };
    }
    dispose(): void {}
  }
  const layer = new Failing();
  const failing = chain(
    (x: Jax, p: { w: Jax; c: Jax }) => np.multiply(x, p.c),
    segment(layer),
    (y: Jax) => meanSquare(y),
  );
  const ownParams = () => ({ w: array('w', [D, D]), c: array('c', [D]) });

  it('gets gradients through the chain', async () => {
    layer.fails = '';
    const loss = (p: { w: Jax; c: Jax }, x: Jax) =>
      meanSquare(np.matmul(np.multiply(x, p.c), np.transpose(p.w)));
    const [, expected] = jax.valueAndGrad(loss)(ownParams(), array('x', [M, D]));
    const { grads } = await failing.valueAndGrad(ownParams(), array('x', [M, D]));
    const [found, wanted] = [await grads.c.data(), await expected.c.data()];
    for (let i = 0; i < D; i++) expect(found[i]).toBeCloseTo(wanted[i] as number, 5);
  });

  it.each(['forward', 'backward'])('that fails in its %s pass leaves nothing', async (where) => {
    layer.fails = where;
    const before = ours();
    const [p, x] = [ownParams(), array('x', [M, D])];
    await expect(failing.valueAndGrad(tree.ref(p), x.ref)).rejects.toThrow(`${where} fails`);
    expect(ours()).toEqual(before);
    expect([...counts(p), x.refCount]).toEqual([1, 1, 1]);
    layer.fails = '';
    const { value } = await failing.valueAndGrad(p, x);
    expect(value.item()).toBeGreaterThan(0);
  });
});

describe('dispose', () => {
  it('frees what a segment made, and keeps what was passed to it', () => {
    const before = ours();
    const w = Tensor.from(new Float32Array(D * D), [D, D]);
    const borrowed = loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 1 });
    const made = loraLinear({
      w: array('w', [D, D]),
      bias: array('c', [D]),
      loraA: 'a',
      loraB: 'b',
      loraAlpha: 1,
    });
    for (const each of [borrowed, made, made]) each.dispose();
    expect(w.disposed).toBe(false);
    w.dispose();
    expect(ours()).toEqual(before);
  });

  it('of a chain frees its programs; the next call compiles again', async () => {
    model.dispose();
    const { value } = await model.valueAndGrad(params(), batch());
    expect(value.refCount).toBe(1);
  });
});

beforeAll(() => {
  if (memory === undefined) throw new Error('jax-js has made no WebAssembly.Memory');
});
