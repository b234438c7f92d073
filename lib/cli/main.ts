#!/usr/bin/env node
/**
 * The `lowrank` command: selects the subcommand, and turns errors into one sentence and an exit
 * code.
 */

import { fileError } from '../checkpoint/files/file-access.js';
import { printable } from '../core/printable.js';
import { suggestion } from '../core/suggestion.js';
import { visible } from '../report/terminal.js';
import { UsageError } from './command/arguments.js';
import { exitCodeFor, exitCodeHelp, exitCodes } from './command/exit-codes.js';

/** One subcommand: gets the arguments after its name, returns the exit code. */
type Subcommand = (args: readonly string[]) => Promise<number>;

/** Loaded on use, so that `lowrank build` works without the addon. */
const kSubcommands: Readonly<Record<string, { about: string; load: () => Promise<Subcommand> }>> = {
  finetune: {
    about: 'QLoRA fine-tune of a model on text, chats or preferences; alone, of the bundled one',
    load: async () => (await import('./finetune/finetune.js')).finetuneCommand,
  },
  generate: {
    about: 'continue a text with a model, and with an adapter',
    load: async () => (await import('./generate/generate.js')).generateCommand,
  },
  chat: {
    about: 'chat with a model in its own template, and with an adapter',
    load: async () => (await import('./generate/chat.js')).chatCommand,
  },
  quantize: {
    about: 'quantise the linear layers of a checkpoint, in the layout of bitsandbytes',
    load: async () => (await import('./quantize/quantize.js')).quantizeCommand,
  },
  convert: {
    about: 'a LoRA adapter of PEFT to the GGUF of llama.cpp, and back',
    load: async () => (await import('./convert/convert.js')).convertCommand,
  },
  merge: {
    about: 'an adapter into its model; LoRA adapters to one: linear, TIES, DARE, SVD, ...',
    load: async () => (await import('./merge/merge.js')).mergeCommand,
  },
  aggregate: {
    about: 'LoRA adapters of clients to their average: FedAvg, FFA, FlexLoRA, HetLoRA',
    load: async () => (await import('./merge/merge.js')).aggregateCommand,
  },
  methods: {
    about: 'published methods, and how to use each',
    load: async () => (await import('./methods.js')).methodsCommand,
  },
  info: {
    about: 'devices, features, and why each is or is not there',
    load: async () => (await import('./info.js')).infoCommand,
  },
  bench: {
    about: 'microbenchmarks beside the machine’s roofline and other libraries',
    load: async () => (await import('./bench.js')).benchCommand,
  },
  emulate: {
    about: 'a CUDA kernel without a GPU: what its checks find, and what its accesses cost',
    load: async () => (await import('./emulate/emulate.js')).emulateCommand,
  },
  build: {
    about: 'build the native addon here, with CMake or node-gyp',
    load: async () => (await import('./build/build.js')).buildCommand,
  },
};

function help(): string {
  const rows = Object.entries(kSubcommands).map(
    ([name, { about }]) => `  ${name.padEnd(9)} ${about}`,
  );
  return `LoRA and QLoRA kernels for Node.js.

Usage: lowrank <command> [options]       lowrank <command> --help

Commands:
${rows.join('\n')}

${exitCodeHelp}
Environment:
  LOWRANK_DEVICE        default device
  LOWRANK_NUM_THREADS   threads of the CPU kernels (then OMP_NUM_THREADS)
  LOWRANK_ISA           force an instruction set: portable, avx2, avx512, ...
  LOWRANK_BINDING       path of the native addon
  LOWRANK_TRACE=1       one line per op on stderr, with its time
`;
}

async function run(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  const [topic] = rest;
  // `help bench` means `bench --help`; an unknown command gives an error.
  if (name === 'help' && topic !== undefined && !topic.startsWith('-'))
    return run([topic, '--help']);
  if (name === undefined || name === 'help' || name === '--help' || name === '-h') {
    (name === undefined ? process.stderr : process.stdout).write(help());
    return name === undefined ? exitCodes.usage : exitCodes.ok;
  }
  if (name === '--version' || name === '-v') {
    const { version } = await import('../environment/version.js');
    process.stdout.write(`${version()}\n`);
    return exitCodes.ok;
  }
  if (!Object.hasOwn(kSubcommands, name)) {
    const option = name.startsWith('-');
    const known = option ? ['--help', '--version'] : Object.keys(kSubcommands);
    const what = option ? 'an option' : 'a command';
    const hint = suggestion(name, known);
    throw new UsageError(`${printable(name)} is not ${what}${hint}. See: lowrank --help`);
  }
  const subcommand = await (kSubcommands[name] as (typeof kSubcommands)[string]).load();
  return subcommand(rest);
}

/** One clear sentence for a known error, a stack trace for an unknown one. */
function report(error: unknown): number {
  const code = (error as { code?: unknown } | null)?.code;
  const known = typeof code === 'string' ? exitCodeFor(code) : exitCodes.internal;
  if (known === exitCodes.internal || !(error instanceof Error)) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    process.stderr.write(`lowrank: this is a bug, please report it.\n${visible(text)}\n`);
    return exitCodes.internal;
  }
  process.stderr.write(`lowrank: ${visible(error.message)}\n`);
  return known;
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `lowrank info | head` closes the pipe early: nobody reads on, which is not an error.
  if (error.code === 'EPIPE') process.exit(exitCodes.ok);
  process.exit(report(fileError('output', 'stdout', error)));
});
// Messages that nobody reads (`2>&1 | head`), or that cannot be written, end nothing: results may
// go to a file.
process.stderr.on('error', () => {});

run(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.exitCode = report(error);
  },
);
