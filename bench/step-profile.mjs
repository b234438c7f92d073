/**
 * Where a step of the bundled fine-tune goes: main-thread time of the training loop by module, from V8's own
 * profiler. Time in the addon is time that JavaScript waits for the kernels, or enqueues them.
 *
 *   node bench/step-profile.mjs [--steps 60] [--json] [options of lowrank finetune]
 *
 * Needs a build (`npm run build`). The first third of the steps, in which V8 still compiles, is left out.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const WARM_UP = 1 / 3;
/** Calls into V8's own C++ that move bytes. */
const COPIES = new Set(['set', 'slice', 'fill', 'copyWithin', 'from', 'subarray']);

const args = process.argv.slice(2);
const json = args.includes('--json');
const stepsAt = args.indexOf('--steps');
const steps = stepsAt < 0 ? 60 : Number(args[stepsAt + 1]);
if (!Number.isInteger(steps) || steps < 3) {
  console.error(`step-profile: --steps must be a whole number from 3 on, got ${args[stepsAt + 1]}`);
  process.exit(2);
}
const rest = args.filter(
  (arg, i) => arg !== '--json' && (stepsAt < 0 || (i !== stepsAt && i !== stepsAt + 1)),
);

const ADDON = 'the addon: kernels, and copies in and out';

/** Module of each line of a bundle: the bundler leaves its path above each. */
const bundles = new Map();
function moduleOf(url, line) {
  if (!bundles.has(url)) {
    const starts = [];
    readFileSync(fileURLToPath(url), 'utf8')
      .split('\n')
      .forEach((text, i) => {
        const found = /^\/\/ (lib\/\S+)$/.exec(text);
        if (found) starts.push([i, found[1]]);
      });
    bundles.set(url, starts);
  }
  let name = 'other code of ours';
  for (const [at, module] of bundles.get(url)) if (at <= line) name = module;
  return name;
}

/** What a node of the profile counts as; `above` is its caller's. */
function partOf(frame, above) {
  const { functionName, url, lineNumber } = frame;
  if (functionName === '(garbage collector)') return 'garbage collection';
  if (functionName === '(program)') return 'V8 (compiling, builtins)';
  if (url.includes('/dist/')) {
    const module = moduleOf(url, lineNumber);
    // What waits for the device, or hands work to it; the profiler counts native code as its caller's.
    return module.startsWith('lib/core/') ? ADDON : module;
  }
  if (url.includes('@tensorflow')) return 'TensorFlow.js (bookkeeping of tensors and gradients)';
  if (url.startsWith('wasm:')) return 'TensorFlow.js (wasm kernels)';
  if (url === '' && COPIES.has(functionName)) return 'copies between arrays';
  return above === '' ? 'node' : above;
}

const folder = mkdtempSync(join(tmpdir(), 'lowrank-profile-'));
let profile;
try {
  const main = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
  const run = spawnSync(
    process.execPath,
    [
      '--cpu-prof',
      '--cpu-prof-interval',
      '500',
      '--cpu-prof-dir',
      folder,
      main,
      'finetune',
      '--no-compare',
    ]
      .concat([
        '--steps',
        String(steps),
        '--eval-every',
        '0',
        '--save-every',
        '0',
        '--out',
        join(folder, 'adapter'),
      ])
      .concat(rest),
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  if (run.status !== 0) {
    console.error(
      `step-profile: lowrank finetune ended with ${run.status ?? run.signal}; is there a build?`,
    );
    process.exit(1);
  }
  const files = readdirSync(folder).filter((name) => name.endsWith('.cpuprofile'));
  // Workers write profiles too; the main thread's is the largest.
  const texts = files.map((name) => readFileSync(join(folder, name), 'utf8'));
  profile = JSON.parse(texts.reduce((a, b) => (b.length > a.length ? b : a)));
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const parts = new Map();
const training = new Set();
const byId = new Map(profile.nodes.map((node) => [node.id, node]));
(function walk(id, above, inside) {
  const node = byId.get(id);
  const part = partOf(node.callFrame, above);
  const here =
    inside || (part === 'lib/train/model-trainer.ts' && node.callFrame.functionName === 'train');
  parts.set(id, part);
  if (here) training.add(id);
  for (const child of node.children ?? []) walk(child, part, here);
})(profile.nodes[0].id, '', false);

// The collector and V8 itself hang from the root: they count as training between its first and last sample.
const isTraining = (id) => training.has(id);
const first = profile.samples.findIndex(isTraining);
const last = profile.samples.length - 1 - [...profile.samples].reverse().findIndex(isTraining);
const from = first + Math.floor((last - first) * WARM_UP);
const times = new Map();
let total = 0;
for (let i = from; i <= last; i++) {
  const id = profile.samples[i];
  const part = parts.get(id);
  if (!training.has(id) && !part.startsWith('V8') && part !== 'garbage collection') continue;
  const ms = (profile.timeDeltas[i] ?? 0) / 1000;
  times.set(part, (times.get(part) ?? 0) + ms);
  total += ms;
}
const measured = steps * (1 - WARM_UP);
const rows = [...times]
  .map(([part, ms]) => ({ part, msPerStep: ms / measured, share: ms / total }))
  .sort((a, b) => b.msPerStep - a.msPerStep);
if (json) {
  console.log(JSON.stringify({ steps, msPerStep: total / measured, rows }, null, 2));
} else {
  console.log(`a step: ${(total / measured).toFixed(1)} ms on the main thread`);
  for (const { part, msPerStep, share } of rows) {
    if (share < 0.005) continue;
    const bar = '#'.repeat(Math.round(share * 40));
    console.log(
      `${msPerStep.toFixed(1).padStart(7)} ms ${(share * 100).toFixed(0).padStart(3)} %  ${part.padEnd(56)} ${bar}`,
    );
  }
}
