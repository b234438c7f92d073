/**
 * Matches regular expressions from a file in time linear in the text.
 *
 * PEFT configs contain regular expressions (`target_modules`, `rank_pattern`, `alpha_pattern`). In
 * JavaScript's RegExp, 30 characters of them can block the process for hours. Here a pattern becomes a
 * Thompson automaton whose states all advance together, so matching takes at most (pattern size) ·
 * (text length) steps, and a budget limits even that.
 *
 * The language is Python's `re` without what cannot be matched this way: literals, `.`, classes,
 * `\d \w \s` and their complements, groups (plain, `(?:...)`, named), `
 * `, `* + ? {m,n}` greedy or lazy, `^ $ \A \Z \b \B`. Rejected: backreferences, lookaround, inline
 * flags, atomic groups, possessive quantifiers. Whether a text matches does not depend on greediness,
 * so lazy means the same as greedy.
 */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { type CharTest, type Node, parsePattern } from './regex-syntax.js';

/** Maximum number of states in a compiled pattern; `{m,n}` is expanded and counts in full. */
const kMaxStates = 20_000;
/** Maximum number of nodes visited while compiling: `(((){1000}){1000}){1000}` has no states, but 10^9 nodes. */
const kMaxCompileSteps = 200_000;

/** The common budget of all patterns that share it. */
export interface MatchBudget {
  /** States visited while matching. */
  steps: number;
  /** States of all compiled patterns, because ten thousand small patterns can each expand to many. */
  states: number;
}

/** A budget that is ample for real adapters: seconds and 100 MB at worst, not hours. */
export function matchBudget(): MatchBudget {
  return { steps: 100_000_000, states: 1_000_000 };
}

/** A state: one character test, a split, an assertion, or acceptance. */
type State =
  | { readonly kind: 'char'; readonly test: CharTest; next: number }
  | { readonly kind: 'split'; next: number; other: number }
  | { readonly kind: 'assert'; readonly assertion: string; next: number }
  | { readonly kind: 'accept' };

/**
 * A compiled pattern.
 *
 * @example
 * new LinearRegex('op', '.*\\.(q_proj|v_proj)').fullMatch('model.layers.0.q_proj'); // true
 */
export class LinearRegex {
  private readonly states: State[] = [];
  private readonly start: number;
  private compileSteps = 0;

  /**
   * @param op the call that reads the file, for messages
   * @param pattern a pattern in Python's syntax
   * @param budget shared by several patterns; by default the pattern has its own
   * @throws LowrankError `ERR_FILE` for an invalid pattern · `ERR_UNSUPPORTED` for a construct that
   * cannot be matched in linear time, or a pattern that is too large
   */
  constructor(
    private readonly op: string,
    readonly pattern: string,
    private readonly budget: MatchBudget = matchBudget(),
  ) {
    const accept = this.push({ kind: 'accept' });
    this.start = this.compile(parsePattern(op, pattern), accept);
  }

  /**
   * Does the pattern match the whole text (Python's `re.fullmatch`)?
   *
   * @throws LowrankError `ERR_UNSUPPORTED` if the budget is exhausted
   */
  fullMatch(text: string): boolean {
    const { budget } = this;
    const chars = [...text];
    const marks = new Int32Array(this.states.length).fill(-1);
    let current: number[] = [];
    budget.steps -= this.follow(this.start, chars, 0, marks, current);
    for (let at = 0; at < chars.length && current.length > 0; at++) {
      budget.steps -= current.length + 1;
      if (budget.steps < 0) throw this.tooLarge('one that matches within the step limit');
      const char = chars[at] as string;
      const next: number[] = [];
      for (const index of current) {
        const state = this.states[index] as State;
        if (state.kind === 'char' && state.test(char)) {
          budget.steps -= this.follow(state.next, chars, at + 1, marks, next);
        }
      }
      current = next;
    }
    return current.some((index) => this.states[index]?.kind === 'accept');
  }

  /**
   * Adds a state and everything reachable from it without a character. Iterative, each state once.
   * @returns the number of visited states
   */
  private follow(
    from: number,
    chars: readonly string[],
    at: number,
    marks: Int32Array,
    into: number[],
  ): number {
    const pending = [from];
    let visits = 0;
    while (pending.length > 0) {
      const index = pending.pop() as number;
      visits++;
      if (marks[index] === at) continue;
      marks[index] = at;
      const state = this.states[index] as State;
      if (state.kind === 'split') {
        pending.push(state.next, state.other);
      } else if (state.kind === 'assert') {
        if (holds(state.assertion, chars, at)) pending.push(state.next);
      } else {
        into.push(index);
      }
    }
    return visits;
  }

  private push(state: State): number {
    if (this.states.length >= kMaxStates || --this.budget.states < 0) {
      throw this.tooLarge(`of at most ${kMaxStates} states`);
    }
    this.states.push(state);
    return this.states.length - 1;
  }

  /** Compiles back to front: a match of `node` continues at `next`. The parser limits the depth. */
  private compile(node: Node, next: number): number {
    if (++this.compileSteps > kMaxCompileSteps) throw this.tooLarge('less deeply repeated');
    switch (node.kind) {
      case 'char':
        return this.push({ kind: 'char', test: node.test, next });
      case 'assert':
        return this.push({ kind: 'assert', assertion: node.assertion, next });
      case 'sequence':
        return node.items.reduceRight((after, item) => this.compile(item, after), next);
      case 'choice':
        return node.items
          .map((item) => this.compile(item, next))
          .reduceRight((other, first) => this.push({ kind: 'split', next: first, other }));
      case 'repeat':
        return this.compileRepeat(node.item, node.min, node.max, next);
    }
  }

  private compileRepeat(item: Node, min: number, max: number, next: number): number {
    let at = next;
    if (max === Number.POSITIVE_INFINITY) {
      const loop: State = { kind: 'split', next: 0, other: next };
      at = this.push(loop);
      loop.next = this.compile(item, at);
    } else {
      for (let i = min; i < max; i++) {
        at = this.push({ kind: 'split', next: this.compile(item, at), other: next });
      }
    }
    for (let i = 0; i < min; i++) at = this.compile(item, at);
    return at;
  }

  private tooLarge(expected: string): LowrankError {
    const text = `${this.op}: pattern ${printable(this.pattern)} must be ${expected}`;
    return new LowrankError('ERR_UNSUPPORTED', `${text}, got a larger one`, { op: this.op });
  }
}

function isWord(char: string | undefined): boolean {
  return char !== undefined && /[\p{L}\p{N}_]/u.test(char);
}

function holds(assertion: string, chars: readonly string[], at: number): boolean {
  switch (assertion) {
    case '^':
    case 'A':
      return at === 0;
    case '$': // Python's $ also matches before a final line feed
      return at === chars.length || (at === chars.length - 1 && chars[at] === '\n');
    case 'Z':
      return at === chars.length;
    default: {
      const boundary = isWord(chars[at - 1]) !== isWord(chars[at]);
      return boundary === (assertion === 'b');
    }
  }
}
