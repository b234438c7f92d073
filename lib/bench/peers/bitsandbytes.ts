/** bitsandbytes under PyTorch: a four-bit weight with a separate adapter, as QLoRA is trained. */

import type { Peer } from '../peer.js';
import { findPython, torchFound, torchPrograms } from './torch.js';

export const bitsandbytesPeer: Peer = {
  name: 'bitsandbytes',
  find: () => {
    const here = findPython('torch', 'numpy', 'bitsandbytes') !== undefined;
    return here
      ? torchFound('bitsandbytes')
      : { missing: 'pip install bitsandbytes, beside torch' };
  },
  refuses: ({ format, device }) => {
    if (format !== 'nf4' && format !== 'fp4') return 'only nf4, fp4';
    return device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';
  },
  program: (job) => torchPrograms(job, 'bitsandbytes'),
};
