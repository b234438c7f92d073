/** Ends the process in the middle of long kernels: exit DEVICE exit|throw|wait */
import type { Device } from '../../../lib/index.js';
import { queueLongWork } from './long-kernel.js';

const [device, how] = process.argv.slice(2) as [Device, string];

queueLongWork(device, 'lora')
  .read()
  .then(
    () => console.log('finished'),
    () => console.log('failed'),
  );
setTimeout(() => {
  console.log(Date.now());
  console.log('ready');
  if (how === 'exit') process.exit(7);
  if (how === 'throw') throw new Error('on purpose');
}, 60);
