/**
 * Does a kernel store to global memory before it waits for the launches that it overlaps? Every path
 * through its PTX is followed from the entry to the first `griddepcontrol.wait`; native/cuda/plans/plan.h
 * says why none may come past a store (LaunchStep).
 *
 * A condition counts as either way: of one that is asked twice, before the wait and before the store,
 * paths are followed that no launch can take.
 */

/** Spaces whose stores no other launch sees: all but `global`, and none, which is any. */
const kOwnSpace = /^(shared|local|param)(::|$)/;

/** Does the instruction write global memory, or memory that may be global? */
function storesGlobally({ name, modifiers }) {
  const own = modifiers.some((modifier) => kOwnSpace.test(modifier));
  if (name === 'st' || name === 'red' || name === 'atom' || name === 'multimem') return !own;
  // Its target's space comes first.
  if (name === 'cp' && (modifiers.includes('bulk') || modifiers.includes('reduce'))) {
    return modifiers.find((modifier) => /^(global|shared)(::|$)/.test(modifier)) === 'global';
  }
  return false;
}

/** Where control may go on from statement `at`. */
function following(body, labels, lists, at) {
  const { kind, name, modifiers, operands, guard } = body[at];
  if (kind !== 'instruction') return [at + 1];
  const next = guard === undefined ? [] : [at + 1];
  if (name === 'ret' || name === 'exit' || name === 'trap') return next;
  if (name === 'bra') return [...next, labels.get(operands[0])];
  if (name === 'brx') return [...next, ...lists.get(operands[1]).map((label) => labels.get(label))];
  if (name === 'griddepcontrol' && modifiers[0] === 'wait') return next;
  return [at + 1];
}

/**
 * @param {{name: string, body: object[]}} entry a kernel as parse() gives it
 * @returns {string[]} the stores to global memory that a path reaches before a wait
 */
export function storesBeforeWait({ name, body }) {
  const labels = new Map();
  const lists = new Map();
  body.forEach((statement, at) => {
    if (statement.kind === 'label') labels.set(statement.name, at);
    if (statement.kind === 'targets') lists.set(statement.name, statement.targets);
  });
  const seen = new Set();
  const open = [0];
  const stores = [];
  while (open.length > 0) {
    const at = open.pop();
    if (at >= body.length || seen.has(at)) continue;
    seen.add(at);
    const statement = body[at];
    if (statement.kind === 'instruction') {
      if (statement.name === 'call') throw new Error(`${name}: calls ${statement.operands}`);
      if (storesGlobally(statement)) stores.push(statement.text.replace(/\s+/g, ' '));
    }
    open.push(...following(body, labels, lists, at));
  }
  return stores;
}
