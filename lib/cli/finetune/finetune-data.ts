/** Which data `lowrank finetune` trains on, and what it shows of it. */

import type { DataOptions } from '../../data/data-source.js';
import { exampleKinds } from '../../data/examples.js';
import { bundledText } from '../../environment/package-folder.js';
import type { DataPreview, ShownText } from '../../finetune/preview.js';
import { grouped, visible } from '../../report/terminal.js';
import type { Arguments } from '../command/arguments.js';

/** The section of the help. */
export const dataHelp = `Data (docs/training/data.md)
  --data PATH         UTF-8 text; or .jsonl, .csv or .tsv with text, prompt and completion, messages, or
                      prompt, chosen and rejected; or a folder of such files; may be repeated
  --eval-data PATH    evaluate on this; may be repeated                   [the last tenth of the data]
  --data-format F     text, jsonl, csv or tsv                             [by the ending of the file]
  --separator TEXT    what separates documents in a text; "\\n\\n" (a blank line) by default, "" for none
  --kind KIND         text, completion, messages or preference, where lines have the fields of several
  --as-chat           prompt and completion are turns of a chat, in the model's template
  --chat-template F   file with a template, instead of the model's
  --skip-long         leave out examples that are longer than --seq-len, instead of stopping
  --no-packing        one example a sequence; by default several share one and do not see each other
  --loss L            lm: the next token of what is learned; dpo: which of two answers is better     [lm]
  --dpo-beta X        how strictly dpo keeps to the model without adapter [0.1]
  --show-data N       show the first N examples as the model sees them, and stop
`;

export const dataOptions = {
  data: { type: 'string', multiple: true },
  'eval-data': { type: 'string', multiple: true },
  'data-format': { type: 'string' },
  separator: { type: 'string' },
  kind: { type: 'string' },
  'as-chat': { type: 'boolean' },
  'chat-template': { type: 'string' },
  'skip-long': { type: 'boolean' },
  'no-packing': { type: 'boolean' },
  loss: { type: 'string' },
  'dpo-beta': { type: 'string' },
  'show-data': { type: 'string' },
} as const;

/** @throws UsageError */
export function readDataOptions(parsed: Arguments): DataOptions & {
  readonly chatTemplate?: string;
} {
  const [data, evalData] = [parsed.texts('data'), parsed.texts('eval-data')];
  const template = parsed.text('chat-template');
  const kinds = Object.keys(exampleKinds) as (keyof typeof exampleKinds)[];
  const has = (name: string) => parsed.text(name) !== undefined;
  return {
    data: data.length > 0 ? data : [bundledText()],
    ...(evalData.length > 0 ? { evalData } : {}),
    ...(has('data-format')
      ? { dataFormat: parsed.choice('data-format', 'text', ['text', 'jsonl', 'csv', 'tsv']) }
      : {}),
    separator: (parsed.text('separator') ?? '\n\n').replaceAll('\\n', '\n'),
    ...(has('kind') ? { kind: parsed.choice('kind', 'text', kinds) } : {}),
    chat: parsed.flag('as-chat'),
    ...(template === undefined ? {} : { chatTemplate: template }),
    seqLen: parsed.integer('seq-len', 128, 2, 1_000_000),
    skipLong: parsed.flag('skip-long'),
    noPacking: parsed.flag('no-packing'),
    loss: parsed.choice('loss', 'lm', ['lm', 'dpo']),
  };
}

/** β of `--loss dpo`; undefined for another loss. @throws UsageError */
export function readBeta(parsed: Arguments, { loss }: DataOptions): number | undefined {
  const beta = parsed.number('dpo-beta', 0.1, 'a positive number', (value) => value > 0);
  if (loss === 'dpo') return beta;
  const given = parsed.text('dpo-beta');
  if (given !== undefined) throw parsed.refuse('dpo-beta', 'left out without --loss dpo', given);
  return undefined;
}

const kDim = ['\u001b[2m', '\u001b[22m'] as const;

/**
 * The texts of a preview.
 * @param dimmed for a terminal: what is not learned is dim; elsewhere what is learned is in ⟦brackets⟧
 */
export function shownData(preview: DataPreview, dimmed: boolean): string {
  const [train, heldOut] = preview.sequences;
  const shown = preview.texts.map((text) => shownText(text, dimmed));
  const counts =
    `${grouped(train)} sequences of ${preview.seqLen} tokens to train on, ${grouped(heldOut)} to evaluate on; ` +
    `${grouped(preview.learned)} tokens are learned`;
  return `${shown.join('\n')}\n${counts}\n`;
}

function shownText({ file, line, answer, tokens, learned, parts }: ShownText, dimmed: boolean) {
  const place = line === 0 ? file : `${file}:${line}`;
  const which = answer === undefined ? '' : `, ${answer}`;
  const head = `── ${visible(place)}${which}: ${tokens} tokens, ${learned} learned`;
  const body = parts.map((part) => {
    const text = visible(part.text);
    if (dimmed) return part.learned ? text : `${kDim[0]}${text}${kDim[1]}`;
    return part.learned ? `⟦${text}⟧` : text;
  });
  return `${head}\n${body.join('')}\n`;
}
