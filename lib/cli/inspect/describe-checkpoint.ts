/** The facts of a checkpoint in words. */

import { escapeUnsafe, printable } from '../../core/printable.js';
import { grouped, mebibytes, table } from '../../report/terminal.js';
import type { CheckpointFacts } from './checkpoint-facts.js';

/** Names in files are untrusted text: they must not steer the terminal. */
export function describeCheckpoint(facts: CheckpointFacts): string {
  const { kind, files, bytes, tensors, elements, bitsPerWeight } = facts;
  const parts = files === 1 ? '' : `, ${grouped(files)} files`;
  const told = (['name', 'architecture', 'quantisation'] as const).flatMap((field) => {
    const value = facts[field];
    return value === undefined ? [] : [[field, printable(value).slice(1, -1)]];
  });
  const counts = (['layers', 'context', 'vocabulary'] as const).flatMap((field) => {
    const value = facts[field];
    return value === undefined ? [] : [[field, grouped(value)]];
  });
  const weights = bitsPerWeight === null ? '' : `, ${bitsPerWeight.toFixed(2)} bits a weight`;
  const head = [
    ['format', `${kind}${parts}, ${mebibytes(bytes)}`],
    ...told,
    ...counts,
    [
      bitsPerWeight === null ? 'elements' : 'weights',
      `${grouped(elements)} in ${grouped(tensors)} ${tensors === 1 ? 'tensor' : 'tensors'}${weights}`,
    ],
  ];
  const rows = facts.types.map((row) => [
    row.type,
    grouped(row.tensors),
    row.bitsPerWeight.toFixed(2),
    mebibytes(row.bytes),
  ]);
  const columns = [['type', 'tensors', 'bits a weight', 'bytes'], ...rows];
  const body = rows.length === 0 ? '' : `\n${table(columns, [1, 2, 3])}`;
  return table(head, []).split('\n').map(escapeUnsafe).join('\n') + body;
}
