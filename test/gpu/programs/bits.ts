/**
 * Bits of one device against another's: a line of JSON a case.
 *
 *   bits --device cuda --against cuda-emulated [--quick] [--plant]
 *
 * Against a host device zeros have no sign: which one a sum of nothing has is nobody's promise.
 */
import { parseArgs } from 'node:util';
import { type Device, scope } from '../../../lib/index.js';
import { kernelCases } from '../../emulator/cases.js';
import { type IntegerCase, integerCases } from '../integer-cases.js';

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    against: { type: 'string', default: 'cuda-emulated' },
    quick: { type: 'boolean', default: false },
    plant: { type: 'boolean', default: false },
  },
});
const device = values.device as Device;
const against = values.against as Device;
const signedZeros = against.startsWith('cuda');

async function bitsOf(one: IntegerCase, on: Device): Promise<Map<string, Uint32Array>> {
  const bits = new Map<string, Uint32Array>();
  await one.run(on, async (name, result) => {
    const numbers = await result.read();
    const plain = signedZeros ? numbers : numbers.map((value) => value + 0);
    bits.set(name, new Uint32Array(plain.buffer, plain.byteOffset, plain.length));
  });
  return bits;
}

/** Where two results part, or undefined. */
function difference(
  ours: Map<string, Uint32Array>,
  theirs: Map<string, Uint32Array>,
): string | undefined {
  if (ours.size !== theirs.size) return `${ours.size} results in place of ${theirs.size}`;
  for (const [name, expected] of theirs) {
    const actual = ours.get(name);
    const at = expected.findIndex((word, i) => actual?.[i] !== word);
    if (at >= 0 || actual?.length !== expected.length) {
      const words = [actual?.[at], expected[at]].map((word) => word?.toString(16) ?? 'nothing');
      return `${name}[${at}]: ${words[0]}, on ${against} ${words[1]}`;
    }
  }
  return undefined;
}

let failures = 0;
async function judge(name: string, compare: () => Promise<string | undefined>): Promise<void> {
  const error = await scope(compare).catch((thrown: Error) => thrown.message);
  failures += error === undefined ? 0 : 1;
  console.log(JSON.stringify({ case: name, passed: error === undefined, error }));
}

const streaming = kernelCases().filter(({ name }) => /^(quantize|cast|random) /.test(name));
for (const { name, run } of streaming) {
  await judge(name, async () => {
    const [ours, theirs] = [await run(device), await run(against)];
    return ours === theirs ? undefined : `hash ${ours}, on ${against} ${theirs}`;
  });
}
for (const [i, one] of integerCases().entries()) {
  // Prime to the number of shapes, so that all of them take part.
  if (values.quick && (one.large || i % 9 !== 0)) continue;
  await judge(one.name, async () => {
    const ours = await bitsOf(one, device);
    if (values.plant) for (const words of ours.values()) words.reverse();
    return difference(ours, await bitsOf(one, against));
  });
}
process.exitCode = failures === 0 ? 0 : 1;
