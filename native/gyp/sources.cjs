// Prints parts of native/sources.json for binding.gyp, paths relative to this folder, one a line.
//   node sources.cjs plain                  every source without instruction-set flags
//   node sources.cjs isa NAME sources|flags the sources of one instruction set, or its flags
const { join, relative } = require('node:path');
const list = require('../sources.json');

const root = join(__dirname, '..', '..');
const here = (file) => relative(__dirname, join(root, file));
const runsOn = ({ arch }) => arch === 'any' || arch === process.arch;

const [mode, name, what] = process.argv.slice(2);
if (mode === 'plain') {
  const unflagged = list.isa.filter((row) => runsOn(row) && row.flags.length === 0);
  const plain = [...list.core, ...list.cpu, ...list.cuda_host, ...list.addon];
  const files = [...plain, ...unflagged.flatMap((row) => row.sources)];
  console.log(files.map(here).join('\n'));
} else {
  const rows = list.isa.filter((row) => runsOn(row) && row.set === name);
  const values = what === 'flags' ? rows.flatMap((row) => row.flags) : rows.flatMap((row) => row.sources.map(here));
  // A static library needs a source: on other processors the portable list's first file stands in
  // for a set that is not built there.
  const empty = what === 'sources' && values.length === 0 ? [here('native/core/runtime/trace.cpp')] : [];
  console.log([...values, ...empty].join('\n'));
}
