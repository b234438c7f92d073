/** bitsandbytes under PyTorch: a four-bit weight with a separate adapter, as QLoRA is trained. */

import type { Peer } from '../peer.js';
import { findPython, torchPrograms } from './torch.js';

export const bitsandbytesPeer: Peer = {
  name: 'bitsandbytes',
  find: () => {
    const python = findPython('torch', 'numpy', 'bitsandbytes');
    const version = python?.versions[2];
    return version === undefined
      ? { missing: 'pip install bitsandbytes, beside torch' }
      : { version };
  },
  refuses: ({ format, device }) => {
    if (format !== 'nf4' && format !== 'fp4') return 'only nf4, fp4';
    return device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';
  },
  program: (job) => torchPrograms(job, 'bitsandbytes'),
};
