/**
 * Mutants of the kernels: each barrier, wait, commit and fence taken out, each comparison that keeps
 * an index inside taken for granted, each loop over data run once too often, each element that is
 * zeroed outside copied all the same. All of them stand in one copy of the sources, each behind
 * `LowrankMutant(id)`, so that one build serves for all.
 *
 * Nothing is left out in silence: a comparison is a mutant unless {@link NOT_BOUNDS} says what else
 * it is, and an ordering statement that cannot be taken out is an error.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** Statements whose only effect is to order others. */
const ORDERING_NAMES =
  '__syncthreads|__syncwarp|__threadfence\\w*|NamedBarrier\\w*|CpAsync(?:Wait|Commit)|Wgmma(?:Fence|Commit|Wait)' +
  '|ClusterSync|Fence\\w*|Barrier(?:Init|Wait|Arrive\\w*)|Init(?:Barriers|Ring)|ReleaseStage' +
  '|GridDependency\\w+|AtomicAddAcqRel|StoreRelease|LoadAcquire';
const ORDERING = new RegExp(`(?<![\\w.])(?:${ORDERING_NAMES})(?:<[^;()]*>)?\\(`, 'g');

/** Comparisons that keep nothing inside: `pattern` of the expression, and what it decides. */
export const NOT_BOUNDS = [
  { pattern: /^(v|value\[\w\]|normalised) > \w/, why: 'compares values' },
  {
    pattern:
      /\b(magnitude|largest|smallest|other|normalised|nearest|exact|size|rounded|value) (<|>|<=|>=) /,
    why: 'compares values',
  },
  {
    pattern: /^(v > s_tree\.node|bits < smallest|\(bits & 0x7fffffffu\) > )/,
    why: 'compares values',
  },
  { pattern: /^sum (<|<=) /, why: 'compares values' },
  { pattern: /^draw\.lane\[\w\] >= /, why: 'draws' },
  { pattern: /^(q|pair) < \d$/, why: 'picks a half by a constant' },
  { pattern: /^(part|part \+ factor_part|kParts) > \d$/, why: 'picks products of parts' },
  { pattern: /^(distance|half) > 0$/, why: 'ends a halving' },
  { pattern: /^i >= 0$/, why: 'ends a loop over constants' },
  {
    pattern:
      /^(warp < 4|threadIdx\.x >= kSmallMThreads|block >= p\.k_blocks|block < shrink_blocks)$/,
    why: 'picks a role',
  },
  { pattern: /^(slab|i) > 0$/, why: 'picks the first' },
  { pattern: /^at < kPiecesOfH$/, why: 'picks h or the factor' },
  { pattern: /^p_?\.(splits|split_pairs) > [01]$/, why: 'picks a form of the kernel' },
  { pattern: /^groups_per_block <= 32$/, why: 'picks a form of the kernel' },
  { pattern: /<= static_cast<int>\(sizeof\(Shared::tiles\)\)$/, why: 'a static_assert' },
];

const isComment = (line) => /^\s*\/\//.test(line);

/** From `from` to the bracket that closes what opened before it, or -1. */
function closing(text, from) {
  let depth = 1;
  for (let i = from; i < text.length; i++) {
    if ('([{'.includes(text[i])) depth += 1;
    if (')]}'.includes(text[i])) {
      depth -= 1;
      if (depth === 0) return i;
    }
  }
  return -1;
}

/** The operands around an operator at [start, end): up to a bracket, a comma or a weaker operator. */
function operands(text, start, end) {
  let left = start;
  for (let depth = 0; left > 0; left--) {
    const c = text[left - 1];
    if (')]'.includes(c)) depth += 1;
    if ('(['.includes(c)) {
      if (depth === 0) break;
      depth -= 1;
    }
    if (depth !== 0) continue;
    if (/[?:;,!{]/.test(c) && text.slice(left - 2, left) !== '::' && text[left] !== ':') break;
    if (/(&&|\|\||[^=<>!]=|\breturn)\s$/.test(text.slice(Math.max(0, left - 8), left))) break;
  }
  let right = end;
  for (let depth = 0; right < text.length; right++) {
    const c = text[right];
    if ('(['.includes(c)) depth += 1;
    if (')]'.includes(c)) {
      if (depth === 0) break;
      depth -= 1;
    }
    if (depth !== 0) continue;
    if (/[?;,{}]/.test(c)) break;
    if (c === ':' && text[right + 1] !== ':' && text[right - 1] !== ':') break;
    if (/^\s(&&|\|\|)/.test(text.slice(right, right + 3))) break;
  }
  return [left, right];
}

/** Is it known when the kernel is compiled? */
const isConstant = (expression) =>
  (expression.replace(/static_cast<\w+>/g, '').match(/[A-Za-z_]\w*/g) ?? []).every((name) =>
    /^(k[A-Z]\w*|Tile|Slab|Stage|Source|Shared|Product|Group|Src|Dst|T|Tag|sizeof|u|l)$/.test(name),
  );

/** Where the condition of a loop stands in a line, [start, end), and whether it counts by constants. */
function loopOf(code) {
  const loop = /\b(?:for \(([^;]*);|while \()/.exec(code);
  if (loop === null) return undefined;
  const start = loop.index + loop[0].length;
  const semicolon = loop[1] === undefined ? code.lastIndexOf(')') : code.indexOf(';', start);
  const from = loop[1]?.split('=')[1];
  return {
    start,
    end: semicolon < 0 ? code.length : semicolon,
    byConstants: from !== undefined && isConstant(from),
  };
}

function orderingEdits(code, where) {
  const edits = [];
  for (const match of code.matchAll(ORDERING)) {
    const close = closing(code, match.index + match[0].length);
    const before = code.slice(0, match.index).trimEnd();
    if (/\b(void|uint32_t|int)$/.test(before)) continue; // its definition
    if (match[0] === 'AtomicAddAcqRel(' && before.endsWith(' =')) continue; // for its value
    if (match[0] === 'LoadAcquire(' && before.endsWith('while (')) {
      // A wait: it ends at once.
      const end = closing(code, match.index);
      const condition = code.slice(match.index, end);
      edits.push({
        kind: 'ordering',
        what: `while (${condition})`,
        start: match.index,
        end,
        mutate: (id) => `!LowrankMutant(${id}) && ${condition}`,
      });
      continue;
    }
    if (close < 0 || code[close + 1] !== ';' || (before !== '' && !/[;{})]$/.test(before))) {
      throw new Error(`${where}: ${match[0]}...) is no statement of its own on one line`);
    }
    const statement = code.slice(match.index, close + 2);
    edits.push({
      kind: 'ordering',
      what: statement.slice(0, -1),
      start: match.index,
      end: close + 2,
      mutate: (id) => `if (!LowrankMutant(${id})) ${statement}`,
    });
  }
  return edits;
}

/** `a < b` where it is left out or weakened; undefined where it bounds nothing. */
function boundEdit(code, match, loop) {
  const operator = match[1];
  const end = match.index + match[0].length;
  const [left, right] = operands(code, match.index, end);
  const a = code.slice(left, match.index).trim();
  const b = code.slice(end, right).trim();
  if (a === '' || b === '') return undefined;
  const expression = `${a} ${operator} ${b}`;
  const inLoop = loop !== undefined && match.index >= loop.start && match.index < loop.end;
  if (isConstant(a) && isConstant(b)) return undefined;
  if (inLoop && loop.byConstants && isConstant(b)) return undefined;
  if (NOT_BOUNDS.some(({ pattern }) => pattern.test(expression))) return undefined;
  // A loop has to end: it gets one turn more. Elsewhere the outcome of an index inside is taken:
  // below a bound, or something left.
  const below = operator.startsWith('<');
  const leftOver = /left|inside|count$/.test(a) || (b === '0' && /octet_left/.test(a));
  const inside = leftOver && (b === '0' || /^\d+$/.test(b)) ? !below : below;
  const weakened = `${a} ${operator.includes('=') ? operator[0] : `${operator}=`} ${b}`;
  return {
    kind: inLoop ? 'loop' : 'bound',
    what: expression,
    start: left + code.slice(left).match(/^\s*/)[0].length,
    end: right - code.slice(left, right).match(/\s*$/)[0].length,
    mutate: (id) => `(LowrankMutant(${id}) ? ${inLoop ? weakened : inside} : (${expression}))`,
  };
}

/** The lesser of an index and its bound: the index alone. */
function leastEdits(code) {
  const edits = [];
  for (const match of code.matchAll(/(?<![\w:>])(?:Base::|this->)?(?:Least|min)\(/g)) {
    const open = match.index + match[0].length;
    const close = closing(code, open);
    if (close < 0 || /\bint64_t $/.test(code.slice(0, match.index))) continue;
    let comma = open;
    for (let depth = 0; comma < close && !(depth === 0 && code[comma] === ','); comma++) {
      if ('(['.includes(code[comma])) depth += 1;
      if (')]'.includes(code[comma])) depth -= 1;
    }
    const [first, second] = [code.slice(open, comma), code.slice(comma + 1, close).trim()];
    const index = /^all_/.test(first) ? second : first;
    const call = code.slice(match.index, close + 1);
    edits.push({
      kind: 'bound',
      what: call,
      start: match.index,
      end: close + 1,
      mutate: (id) => `(LowrankMutant(${id}) ? (${index}) : (${call}))`,
    });
  }
  return edits;
}

/**
 * Uses of what an earlier comparison said: the source size of a copy, a skipped entry. Arguments are
 * none: `inside` may be a number there, which the edit would make 1.
 */
function flagEdits(code) {
  const edits = [];
  const uses =
    /(?<!bool |int |int32_t |, )(!?)(?<![\w.])((?:entry\.)?(?:inside|present))(?= \?| &&|\) )/g;
  for (const match of code.matchAll(uses)) {
    if (/^ (=|[<>]=?) /.test(code.slice(match.index + match[0].length))) continue;
    const size = /^ \? (?:16|8|4)u? : 0/.exec(code.slice(match.index + match[0].length))?.[0];
    edits.push({
      kind: 'zero-fill',
      what: `${match[0]}${size ?? ''}`,
      start: match.index,
      end: match.index + match[0].length,
      mutate: (id) =>
        match[1] === '!'
          ? `(!LowrankMutant(${id}) && ${match[0]})`
          : `(LowrankMutant(${id}) || ${match[0]})`,
    });
  }
  return edits;
}

function editsOf(line, where) {
  const code = line.replace(/\/\/.*$/, '');
  const edits = [...orderingEdits(code, where), ...leastEdits(code), ...flagEdits(code)];
  if (!/\bconstexpr\b|static_assert|^\s*template\b|\\$|Least\(int64_t/.test(code)) {
    const loop = loopOf(code);
    for (const match of code.matchAll(/ (<|<=|>|>=) /g)) {
      const edit = boundEdit(code, match, loop);
      if (edit !== undefined) edits.push(edit);
    }
  }
  // Of nested ones the outer one stays.
  edits.sort((x, y) => x.start - y.start || y.end - x.end);
  return edits.filter((edit, i) => !edits.slice(0, i).some((other) => other.end > edit.start));
}

export const MAX_MUTANTS = 4096;
const SWITCH_H =
  '#pragma once\n/// Is this mutant the one that runs?\nbool LowrankMutant(int id);\n';
/** LOWRANK_MUTANT is the one that runs; of LOWRANK_MUTANTS_REACHED, a file, byte i is set at mutant i. */
const SWITCH_CPP = `#include "mutant.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cstdlib>
constexpr size_t kMutants = ${MAX_MUTANTS};
static char g_nowhere[kMutants];
static char* Reached() {
  const char* path = std::getenv("LOWRANK_MUTANTS_REACHED");
  const int file = path == nullptr ? -1 : open(path, O_RDWR);
  if (file < 0) return g_nowhere;
  void* bytes = mmap(nullptr, kMutants, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return bytes == MAP_FAILED ? g_nowhere : static_cast<char*>(bytes);
}
static int Active() {
  const char* value = std::getenv("LOWRANK_MUTANT");
  return value == nullptr ? -1 : std::atoi(value);
}
static char* const g_reached = Reached();
static const int g_active = Active();
bool LowrankMutant(int id) {
  g_reached[id] = 1;
  return id == g_active;
}
`;

/** Writes a file only where it changes, so that what is built from it stays up to date. */
function update(path, text) {
  let old;
  try {
    old = readFileSync(path, 'utf8');
  } catch {}
  if (old !== text) writeFileSync(path, text);
}

/** Each fault beside the statement or expression that it takes the place of, the first of its text. */
function withFaults(file, lines, planted) {
  const out = [...lines];
  for (const [id, fault] of planted.entries()) {
    if (fault.file !== basename(file)) continue;
    const at = lines.findIndex((line) => line.includes(fault.from));
    if (at < 0) throw new Error(`${file} has no ${fault.from}`);
    out[at] = out[at].replace(fault.from, () =>
      fault.expression
        ? `(LowrankMutant(${id}) ? (${fault.to}) : (${fault.from}))`
        : `if (LowrankMutant(${id})) { ${fault.to} } else { ${fault.from} }`,
    );
  }
  return out;
}

/** Files of kernels below `folder`/cuda, in the order of their names: a file may change its room and keep its place. */
function kernelFiles(folder) {
  return readdirSync(join(folder, 'cuda'), { recursive: true })
    .filter((file) => /\.cuh?$/.test(file))
    .map((file) => join('cuda', file))
    .sort((a, b) => (basename(a) < basename(b) ? -1 : 1));
}

/**
 * Writes copies of the kernels of `root` below `target`/cuda, those whose name `only` matches with their
 * mutants, and gives the mutants: {id, file, line, statement, kind, what, nth}. `nth` counts equal
 * texts of a file from 1. Of the .cu files, which are the ones to be compiled, those whose name `kernels`
 * matches are written. Fault i of `planted` is switched on by its number.
 */
export function writeMutants(root, target, { only = /./, kernels = /./, planted = [] } = {}) {
  const mutants = [];
  mkdirSync(join(target, 'cuda'), { recursive: true });
  const files = kernelFiles(root).filter((file) => {
    const name = basename(file);
    return !/^(ptx|gpu)/.test(name) && (name.endsWith('.cuh') || kernels.test(name));
  });
  // What is there of another choice, or from where a file was before, would be compiled too.
  const old = kernelFiles(target).filter((file) => !files.includes(file));
  for (const file of old) rmSync(join(target, file));
  for (const file of files) {
    const times = new Map();
    const lines = readFileSync(join(root, file), 'utf8').split('\n');
    const out = withFaults(file, lines, planted).map((line, i) => {
      if (isComment(line) || /^\s*#/.test(line) || !only.test(basename(file))) return line;
      const text = line;
      let from = 0;
      let mutated = '';
      for (const edit of editsOf(line, `${file}:${i + 1}`)) {
        const id = mutants.length;
        const nth = (times.get(edit.what) ?? 0) + 1;
        times.set(edit.what, nth);
        mutants.push({
          id,
          file,
          line: i + 1,
          statement: line.trim(),
          kind: edit.kind,
          what: edit.what,
          nth,
        });
        mutated += text.slice(from, edit.start) + edit.mutate(id);
        from = edit.end;
      }
      return mutated + text.slice(from);
    });
    mkdirSync(dirname(join(target, file)), { recursive: true });
    update(join(target, file), out.join('\n'));
  }
  update(join(target, 'mutant.h'), SWITCH_H);
  update(join(target, 'mutant.cpp'), SWITCH_CPP);
  return mutants;
}
