/** A start of one's own: `lowrank finetune --init examples/own-start/orthonormal-rows.ts --set share=0.2`. */

import { defineStart, svd, Tensor } from 'lowrank';

export default defineStart({
  start: 'orthonormal-rows',
  reference: 'nobody: an example of a start of one’s own',
  from: 'weight',
  defaults: { share: 0.1 },
  replacesBase: true,
  check: ({ share }) => (share > 0 ? undefined : ['share', 'above 0', String(share)]),
  factors: ({ w, N, device }, { r, scaling, seed, settings: { share } }) => {
    const { u, s, v } = svd(w, { r, seed });
    const values = u.readSync().map((x, at) => (share * x * (s[at % r] ?? 0)) / scaling);
    return { loraA: v, loraB: Tensor.from(values, [N, r], { device }), base: 'residual' };
  },
});
