/** A parsed module as C++: one function a kernel, and its registration with the runtime. */
import { arithmetic } from './arithmetic.mjs';
import { Context, identifier, literal } from './context.mjs';
import { control } from './control.mjs';
import { convertInstructions } from './convert.mjs';
import { hopper } from './hopper.mjs';
import { Instruction } from './instruction.mjs';
import { Locations } from './locations.mjs';
import { memory } from './memory.mjs';
import { PtxError } from './parse.mjs';
import { bitsType, bytesOf } from './types.mjs';
import { warp } from './warp.mjs';

const kInstructions = {
  ...arithmetic,
  ...convertInstructions,
  ...memory,
  ...warp,
  ...hopper,
  ...control,
};

const alignUp = (value, alignment) => Math.ceil(value / alignment) * alignment;

/** One instruction as a C++ statement. */
function translateInstruction(statement, context) {
  context.line = statement.line;
  context.scope = statement.scope;
  const translate = kInstructions[statement.name];
  const instruction = new Instruction(statement);
  if (!translate) throw instruction.fail('an unknown instruction');
  let code;
  try {
    code = translate(instruction, context);
  } catch (error) {
    if (error instanceof PtxError) throw error;
    throw instruction.fail(error.message);
  }
  if (instruction.unused.length > 0) {
    throw instruction.fail(
      `modifiers that are not understood (.${instruction.unused.join(', .')})`,
    );
  }
  if (!statement.guard) return code;
  const { register, negated } = statement.guard;
  return `if (${negated ? '!' : ''}${context.bits(register, 'pred')}) { ${code} }`;
}

/** Static shared memory: offsets one after another, and the bytes of all. */
function layOutShared(variables, start) {
  let end = start;
  for (const variable of variables) {
    end = alignUp(end, variable.align);
    variable.offset = end;
    end += bytesOf(variable.type) * variable.count;
  }
  return end;
}

const isDynamic = (variable) => variable.external || variable.count === 0;

const sharedPlace = (variable) =>
  isDynamic(variable) ? 'dynamic_base' : `(shared_base + ${variable.offset}u)`;

/** A constant or global array, filled. */
function arrayDefinition(variable) {
  const element = bitsType(variable.type);
  const name = `g_${identifier(variable.name)}`;
  const values = (variable.initial ?? '')
    .replace(/[{}\s]/g, '')
    .split(',')
    .filter(Boolean)
    .map((text) => {
      const value = literal(text, variable.type);
      if (value === undefined) throw new PtxError(variable.line, `an initial value: ${text}`);
      return value;
    });
  const initial = values.length > 0 ? ` = {${values.join(', ')}}` : '';
  return `alignas(${variable.align}) static ${element} ${name}[${Math.max(variable.count, 1)}]${initial};`;
}

/** What a function holds besides instructions, given its names in C++. Returns the definitions. */
function declareVariables(fn, context, sharedStart) {
  const definitions = [];
  const shared = [];
  let serial = 0;
  for (const statement of fn.body) {
    context.line = statement.line;
    if (statement.kind === 'register') {
      context.declareRegisters(statement.type, statement.names, statement.scope);
    } else if (statement.kind === 'label') {
      statement.scope.labels.set(
        statement.name,
        `L_${identifier(statement.name)}_${statement.scope.id}`,
      );
    } else if (statement.kind === 'variable' && statement.space === 'shared') {
      if (!isDynamic(statement)) shared.push(statement);
    } else if (statement.kind === 'variable') {
      const name = `v_${identifier(statement.name)}_${serial++}`;
      const bytes = Math.max(bytesOf(statement.type) * statement.count, 1);
      definitions.push(`alignas(${statement.align}) unsigned char ${name}[${bytes}];`);
      statement.scope.variables.set(statement.name, {
        space: statement.space,
        place: `reinterpret_cast<uint64_t>(${name})`,
      });
    } else if (statement.kind === 'targets') {
      const lists = context.module.targets;
      if (!lists.has(fn)) lists.set(fn, new Map());
      lists.get(fn).set(statement.name, statement.targets);
    }
  }
  const sharedEnd = layOutShared(shared, sharedStart);
  for (const statement of fn.body) {
    if (statement.kind !== 'variable' || statement.space !== 'shared') continue;
    statement.scope.variables.set(statement.name, {
      space: 'shared',
      place: sharedPlace(statement),
    });
  }
  return { definitions, sharedEnd };
}

function bodyOf(fn, context, locations) {
  const lines = [];
  let count = 0;
  for (const statement of fn.body) {
    if (statement.kind === 'location') {
      const place = locations.read(statement);
      context.site = locations.site(place);
      // For a memory fault, whose place is that of the machine instruction.
      lines.push(`#line ${place.line} ${JSON.stringify(place.file)}`);
    } else if (statement.kind === 'label') {
      lines.push(`${statement.scope.labels.get(statement.name)}:;`);
    } else if (statement.kind === 'instruction') {
      lines.push(`  ${translateInstruction(statement, context)}`);
      count++;
    }
  }
  return { lines, count };
}

/** Registers of one type in one declaration. */
function registerDeclarations(registers) {
  const byType = new Map();
  for (const { type, name } of registers) {
    const cpp = bitsType(type);
    if (!byType.has(cpp)) byType.set(cpp, []);
    byType.get(cpp).push(`${name} = 0`);
  }
  return [...byType].map(([cpp, names]) => `  ${cpp} ${names.join(', ')};`);
}

const kPrologue = [
  '  const Block& block = *thread->block;',
  '  const uint32_t shared_base = uint32_t(block.shared_base - block.shared_window);',
  '  const uint32_t dynamic_base = uint32_t(block.dynamic_shared - block.shared_window);',
  '  uint32_t carry = 0;',
];

function translateEntry(module, fn, locations) {
  const context = new Context(module, fn);
  let paramBytes = 0;
  for (const param of fn.params) {
    paramBytes = alignUp(paramBytes, param.align);
    const place = `(reinterpret_cast<uint64_t>(params) + ${paramBytes})`;
    context.symbols.set(param.name, { space: 'param', place });
    paramBytes += param.bytes;
  }
  const { definitions, sharedEnd } = declareVariables(fn, context, module.sharedBytes);
  const { lines, count } = bodyOf(fn, context, locations);
  const threads = (fn.directives.get('reqntid') ?? fn.directives.get('maxntid') ?? [1024]).reduce(
    (product, extent) => product * extent,
  );
  const minBlocks = fn.directives.get('minnctapersm')?.[0] ?? 1;
  const name = `Kernel_${fn.name}`;
  const code = [
    `static void ${name}([[maybe_unused]] const void* params) {`,
    '  const Thread* const thread = current;',
    ...kPrologue,
    ...definitions.map((line) => `  ${line}`),
    ...registerDeclarations(context.registers),
    ...lines,
    '}',
    `static const bool ${name}_registered = RegisterKernel({"${fn.name}", ${name}, ${paramBytes}, ${threads}, ${minBlocks}, ${sharedEnd}, Hooks::kOnRequest, ${module.version}});`,
  ].join('\n');
  return { code, count };
}

function functionHead(fn) {
  const params = [...fn.returns, ...fn.params].map((_, n) => `unsigned char* p${n}`);
  return `static void Function_${identifier(fn.name)}(${['const Thread* thread', ...params].join(', ')})`;
}

/** A .func: results and parameters are pointers to the caller's .param variables. */
function translateFunction(module, fn, locations) {
  const context = new Context(module, fn);
  [...fn.returns, ...fn.params].forEach((param, n) => {
    context.symbols.set(param.name, {
      space: 'param',
      place: `reinterpret_cast<uint64_t>(p${n})`,
    });
  });
  const { definitions, sharedEnd } = declareVariables(fn, context, module.sharedBytes);
  if (sharedEnd !== module.sharedBytes) throw new PtxError(fn.line, 'shared memory of a function');
  const { lines } = bodyOf(fn, context, locations);
  return [
    `${functionHead(fn)} {`,
    ...kPrologue,
    ...definitions.map((line) => `  ${line}`),
    ...registerDeclarations(context.registers),
    ...lines,
    '}',
  ].join('\n');
}

/** Spreads kernels over `parts` by their number of instructions, the largest first. */
function distribute(kernels, parts) {
  const bins = Array.from({ length: parts }, () => ({ count: 0, codes: [] }));
  for (const { code, count } of [...kernels].sort((a, b) => b.count - a.count)) {
    const bin = bins.reduce((least, other) => (other.count < least.count ? other : least));
    bin.codes.push(code);
    bin.count += count;
  }
  return bins.map((bin) => bin.codes);
}

/**
 * @param parsed what parse() returned
 * @param root the repository, for the names of source files
 * @param parts how many files to make
 * @returns their texts, the number of kernels and of instructions
 */
export function emit(parsed, root, parts) {
  const locations = new Locations(parsed.files, root);
  const shared = parsed.variables.filter((variable) => variable.space === 'shared');
  const arrays = parsed.variables.filter((variable) => variable.space !== 'shared');
  const module = {
    version: parsed.version,
    symbols: new Map(),
    functions: new Map(),
    targets: new Map(),
    sharedBytes: 0,
  };
  module.sharedBytes = layOutShared(
    shared.filter((variable) => !isDynamic(variable)),
    0,
  );
  for (const variable of shared) {
    module.symbols.set(variable.name, { space: 'shared', place: sharedPlace(variable) });
  }
  for (const variable of arrays) {
    const place = `reinterpret_cast<uint64_t>(g_${identifier(variable.name)})`;
    module.symbols.set(variable.name, { space: variable.space, place });
  }
  const functions = parsed.functions.filter((fn) => fn.kind === 'func' && fn.body);
  for (const fn of functions) module.functions.set(fn.name, `Function_${identifier(fn.name)}`);
  const entries = parsed.functions.filter((fn) => fn.kind === 'entry');
  const functionCodes = functions.map((fn) => translateFunction(module, fn, locations));
  const kernels = entries.map((fn) => translateEntry(module, fn, locations));
  // A variable without a value is written to by kernels: all must see the same one.
  const together = arrays.some((variable) => variable.initial === undefined);
  const groups = distribute(kernels, together ? 1 : parts);
  while (groups.length < parts) groups.push([]);
  const files = [...locations.used].map(
    ([file, constant]) => `static const char ${constant}[] = ${JSON.stringify(file)};`,
  );
  const head = [
    '#include "cuda/emulator/ptx/support.h"',
    'namespace lowrank::emu::ptx {',
    'namespace {',
    ...files,
    ...arrays.map(arrayDefinition),
    ...functions.map((fn) => `${functionHead(fn)};`),
    ...functionCodes,
  ];
  return {
    texts: groups.map((codes) =>
      [...(codes.length > 0 ? [...head, ...codes, '}', '}'] : []), ''].join('\n'),
    ),
    kernels: kernels.length,
    instructions: kernels.reduce((sum, kernel) => sum + kernel.count, 0),
  };
}
