/** That a kernel which stores before it waits for the launches before it is found, on whichever path. */
import { describe, expect, it } from 'vitest';

type Kernel = { readonly name: string; readonly kind: 'entry' | 'func' };
const load = (file: string) => import(new URL(file, import.meta.url).href);
const { parse } = (await load('../../cuda/emulator/ptx/parse.mjs')) as {
  parse(text: string): { functions: Kernel[] };
};
const { storesBeforeWait } = (await load('grid-wait.mjs')) as {
  storesBeforeWait(kernel: Kernel): string[];
};

const WAIT = 'griddepcontrol.wait;';
const STORE = 'st.global.f32 [%rd1], %f1;';

function storesOf(...body: string[]): string[] {
  const text = `.version 8.0\n.target sm_90a\n.visible .entry k(.param .b64 p) {\n${body.join('\n')}\nret;\n}\n`;
  const entry = parse(text).functions[0];
  if (entry === undefined) throw new Error('no kernel');
  return storesBeforeWait(entry);
}

describe('a store to global memory before the wait', () => {
  it('is found, and one after it is not', () => {
    expect(storesOf(STORE, WAIT)).toHaveLength(1);
    expect(storesOf(WAIT, STORE)).toEqual([]);
    expect(storesOf(STORE)).toHaveLength(1);
  });

  it('is found on a path that skips a wait', () => {
    const maybe = ['@%p1 bra L;', WAIT, 'L:'];
    expect(storesOf(...maybe, STORE)).toHaveLength(1);
    expect(storesOf(...maybe, WAIT, STORE)).toEqual([]);
    expect(storesOf(`@%p1 ${WAIT}`, STORE)).toHaveLength(1);
    expect(storesOf('@%p1 ret;', STORE, WAIT)).toHaveLength(1);
    expect(storesOf('@%p1 bra L;', 'bra.uni M;', 'L:', STORE, 'M:', WAIT)).toHaveLength(1);
  });

  it('is found behind a branch back, and behind one by a table', () => {
    expect(storesOf('bra M;', 'L:', STORE, 'bra N;', 'M:', 'bra L;', 'N:', WAIT)).toHaveLength(1);
    const table = ['T: .branchtargets L, M;', 'brx.idx %r1, T;', 'L:', WAIT, STORE, 'ret;', 'M:'];
    expect(storesOf(...table, STORE)).toHaveLength(1);
    expect(storesOf(...table, WAIT, STORE)).toEqual([]);
  });

  it('is one of any kind, and none to shared memory', () => {
    for (const store of [
      'st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};',
      'st.u32 [%rd1], %r1;',
      'red.global.add.u32 [%rd1], %r1;',
      'atom.acq_rel.gpu.global.add.u32 %r1, [%rd1], %r2;',
      'cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [%r3];',
      'cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], %r2;',
    ]) {
      expect({ store, found: storesOf(store, WAIT).length }).toEqual({ store, found: 1 });
    }
    const own = [
      'st.shared.u32 [%r1], %r2;',
      'st.shared::cluster.u32 [%r1], %r2;',
      'atom.shared.add.u32 %r1, [%r2], %r3;',
      'cp.async.cg.shared.global [%r1], [%rd1], 16;',
      'cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];',
    ];
    expect(storesOf(...own, WAIT)).toEqual([]);
  });

  it('is not looked for behind a call', () => {
    expect(() => storesOf('call.uni other, ();', WAIT)).toThrow('k: calls');
  });
});
