/**
 * Mutants of the kernels: each barrier, wait, commit and fence taken out, each comparison with a
 * bound taken for granted. All of them stand in one copy of the sources at once, each behind
 * `LowrankMutant(id)`, so that one build serves for all.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

/** Statements whose only effect is to order others. */
const ORDERING =
  /(?<![\w.])(__syncthreads|__syncwarp|CpAsync(?:Wait|Commit)|Wgmma(?:Fence|Commit|Wait)|ClusterSync|Fence\w*|Barrier(?:Init|Wait|Arrive\w*)|ReleaseStage|GridDependency\w+|AtomicAddAcqRel|StoreRelease)(<[^;()]*>)?\(/g;

/** Names of what an index is held to. */
const BOUND =
  /(\bp_?\.(M|N|K|P|r|elems|blocks|rows|cols|panel_n|splits|share|slice_k)\b|\bpass\.C\b|\w*left\w*|\blimit\b|\bend\b|\brows\b|\bcols\b|\bcount\b|\bslabs\b|\bR\b|\bC\b|shrink\.rows)/;

/** Where the sources cannot be read as statements and expressions of one line. */
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
    if (
      depth === 0 &&
      /[?:;,!{]/.test(c) &&
      text.slice(left - 2, left) !== '::' &&
      text[left] !== ':'
    )
      break;
    if (
      depth === 0 &&
      /(&&|\|\||[^=<>!]=|\breturn)\s$/.test(text.slice(Math.max(0, left - 8), left))
    )
      break;
  }
  let right = end;
  for (let depth = 0; right < text.length; right++) {
    const c = text[right];
    if ('(['.includes(c)) depth += 1;
    if (')]'.includes(c)) {
      if (depth === 0) break;
      depth -= 1;
    }
    if (
      depth === 0 &&
      (/[?;,{}]/.test(c) || (c === ':' && text[right + 1] !== ':' && text[right - 1] !== ':'))
    )
      break;
    if (depth === 0 && /^\s(&&|\|\|)/.test(text.slice(right, right + 3))) break;
  }
  return [left, right];
}

/** Edits of one line: {start, end, text, what}. `next` gives the id of a mutant. */
function editsOf(line, next) {
  const code = line.replace(/\/\/.*$/, '');
  const edits = [];
  for (const match of code.matchAll(ORDERING)) {
    const close = closing(code, match.index + match[0].length);
    if (close < 0 || code[close + 1] !== ';') continue; // not a whole statement
    const before = code.slice(0, match.index).trimEnd();
    if (before !== '' && !/[;{})]$/.test(before)) continue; // a value is used
    const statement = code.slice(match.index, close + 2);
    const id = next('ordering', statement.slice(0, -1));
    edits.push({
      start: match.index,
      end: close + 2,
      text: `if (!LowrankMutant(${id})) ${statement}`,
    });
  }
  // A loop over a bound alone would not end.
  const header = /^\s*for \(.*;(.*);.*\) ?\{?$/.exec(code);
  for (const match of code.matchAll(/ (<|<=|>|>=) /g)) {
    const [left, right] = operands(code, match.index, match.index + match[0].length);
    const [a, b] = [
      code.slice(left, match.index).trim(),
      code.slice(match.index + match[0].length, right).trim(),
    ];
    if (a === '' || b === '' || /^(template|class|typename)/.test(a)) continue;
    if (
      /\bconstexpr\b|static_assert|#pragma|^\s*for \(/.test(code) &&
      !(header && /&&/.test(header[1]))
    )
      continue;
    const zero = b === '0';
    if (zero ? !/left|count/.test(a) : !BOUND.test(b) && !/left/.test(a)) continue;
    // What holds for an index inside: below its bound, or something left.
    const inside = zero ? match[1].startsWith('>') : match[1].startsWith('<');
    const expression = code.slice(left, right).trim();
    const lead = code.slice(left, right).match(/^\s*/)[0];
    const trail = code.slice(left, right).match(/\s*$/)[0];
    const id = next('bound', expression);
    edits.push({
      start: left,
      end: right,
      text: `${lead}(LowrankMutant(${id}) ? ${inside} : (${expression}))${trail}`,
    });
  }
  // Nested comparisons keep the outer one.
  edits.sort((x, y) => x.start - y.start || y.end - x.end);
  return edits.filter((edit, i) => !edits.slice(0, i).some((other) => other.end > edit.start));
}

/**
 * Writes mutated copies of the kernels below `target`/cuda and gives the mutants:
 * {id, file, line, kind, what}.
 */
export function writeMutants(root, target, only) {
  const mutants = [];
  mkdirSync(join(target, 'cuda'), { recursive: true });
  writeFileSync(
    join(target, 'mutant.h'),
    '#pragma once\n/// Is this mutant the one that runs?\nbool LowrankMutant(int id);\n',
  );
  writeFileSync(
    join(target, 'mutant.cpp'),
    `#include "mutant.h"
#include <atomic>
#include <cstdio>
#include <cstdlib>
static std::atomic<bool> g_reached[10000];
static void Write() {
  if (const char* path = std::getenv("LOWRANK_MUTANTS_REACHED")) {
    if (std::FILE* file = std::fopen(path, "a")) {
      for (int i = 0; i < 10000; ++i) if (g_reached[i].load()) std::fprintf(file, "%d\\n", i);
      std::fclose(file);
    }
  }
}
static int Active() {
  if (std::getenv("LOWRANK_MUTANTS_REACHED")) std::atexit(Write);
  const char* value = std::getenv("LOWRANK_MUTANT");
  return value == nullptr ? -1 : std::atoi(value);
}
static const int g_active = Active();
bool LowrankMutant(int id) {
  g_reached[id].store(true, std::memory_order_relaxed);
  return id == g_active;
}
`,
  );
  for (const file of readdirSync(join(root, 'cuda')).sort()) {
    if (!/\.cuh?$/.test(file) || /^(ptx|gpu)/.test(file)) continue;
    const lines = readFileSync(join(root, 'cuda', file), 'utf8').split('\n');
    const out = lines.map((line, i) => {
      if (isComment(line) || /^\s*#/.test(line)) return line;
      const found = [];
      const edits = editsOf(line, (kind, what) => {
        const id = mutants.length + found.length;
        found.push({ id, file: `cuda/${basename(file)}`, line: i + 1, kind, what });
        return id;
      });
      // Ids of edits that were dropped again stay unused.
      const used = new Set(edits.map(({ text }) => Number(/LowrankMutant\((\d+)\)/.exec(text)[1])));
      if (only && !only.test(file)) return line;
      for (const mutant of found) mutants.push({ ...mutant, used: used.has(mutant.id) });
      return edits.reduceRight(
        (text, edit) => text.slice(0, edit.start) + edit.text + text.slice(edit.end),
        line,
      );
    });
    // __LINE__ and reports keep naming the original.
    writeFileSync(join(target, 'cuda', file), out.join('\n'));
  }
  return mutants.filter(({ used }) => used).map(({ used, ...mutant }) => mutant);
}
