/** What a model will see of its data, before it is trained. */

import { DataSource } from '../data/data-source.js';
import type { DataUnit } from '../data/documents.js';
import { learnedOf } from '../data/documents.js';
import { openModel } from '../model/gguf/open-model.js';
import { openTokenizer, type TextTokenizer } from '../text/tokenizer.js';
import { type FinetuneOptions, requireLength } from './finetune-files.js';

const kOp = 'finetune';

/** A part of a text that is learned as a whole, or not at all. */
export interface ShownPart {
  readonly text: string;
  readonly learned: boolean;
}

/** A text as the model sees it. */
export interface ShownText {
  readonly file: string;
  readonly line: number;
  /** Of a preference. */
  readonly answer?: 'chosen' | 'rejected';
  readonly tokens: number;
  readonly learned: number;
  /** The decoded tokens, with special ones. */
  readonly parts: readonly ShownPart[];
}

/** {@link previewData}'s result. */
export interface DataPreview {
  readonly texts: readonly ShownText[];
  readonly notes: readonly string[];
  /** Sequences of `seqLen` tokens to train on, and to evaluate on. */
  readonly sequences: readonly [train: number, heldOut: number];
  readonly seqLen: number;
  /** Targets that are learned, of both. */
  readonly learned: number;
}

/**
 * Reads, renders and tokenises the data of a run; reads no weights and writes nothing.
 * @param count the texts of this many examples are shown, of plain text so many sequences
 * @throws LowrankError as `finetune` for the same data
 */
export async function previewData(options: FinetuneOptions, count: number): Promise<DataPreview> {
  const source = DataSource.open(kOp, options);
  const model = openModel(options.model);
  requireLength(options.seqLen, model.decoder.maxPositionEmbeddings);
  const tokenizer = await openTokenizer(kOp, model, undefined, undefined, options.tokenizer, {
    template: options.chatTemplate,
  });
  try {
    const { data, notes, units } = await source.prepare(tokenizer);
    const { train, heldOut } = data;
    const texts: ShownText[] = [];
    for (const unit of units.filter(({ example }) => example < count)) {
      texts.push(...(await shownUnit(unit, tokenizer)));
    }
    for (let i = 0; source.plain && i < Math.min(count, train.count); i++) {
      const { ids } = train.batch([i]);
      const text = await tokenizer.decode(Array.from(ids), undefined, true);
      const place = { file: options.data[0] as string, line: 0 };
      texts.push({
        ...place,
        tokens: ids.length,
        learned: ids.length,
        parts: [{ text, learned: true }],
      });
    }
    const learned = train.learned + heldOut.learned;
    const sequences = [train.count, heldOut.count] as const;
    return { texts, notes, sequences, seqLen: options.seqLen, learned };
  } finally {
    await tokenizer.close();
  }
}

async function shownUnit(unit: DataUnit, tokenizer: TextTokenizer): Promise<ShownText[]> {
  const found: ShownText[] = [];
  for (const [i, document] of unit.documents.entries()) {
    const { ids, learned } = document;
    const parts: ShownPart[] = [];
    const add = async (begin: number, end: number, isLearned: boolean): Promise<void> => {
      if (begin >= end) return;
      const part = Array.from(ids.subarray(begin, end));
      parts.push({ text: await tokenizer.decode(part, undefined, true), learned: isLearned });
    };
    let at = 0;
    for (const [begin, end] of learned) {
      await add(at, begin, false);
      await add(begin, end, true);
      at = end;
    }
    await add(at, ids.length, false);
    const pair = unit.documents.length > 1;
    found.push({
      ...unit.place,
      ...(pair ? { answer: i === 0 ? ('chosen' as const) : ('rejected' as const) } : {}),
      tokens: ids.length,
      learned: learnedOf(document),
      parts,
    });
  }
  return found;
}
