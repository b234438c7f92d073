// Notes as data: node examples/own-notes/collect.mjs FOLDER OUT.jsonl
//
// Takes every Markdown and text file below FOLDER, without front matter, one example a section.
import fs from 'node:fs';
import path from 'node:path';

const [folder, out] = process.argv.slice(2);
if (folder === undefined || out === undefined) {
  console.error('usage: node collect.mjs FOLDER OUT.jsonl');
  process.exit(2);
}

const notes = fs
  .readdirSync(folder, { recursive: true, encoding: 'utf8' })
  .filter((name) => /\.(md|txt)$/.test(name))
  .sort();

const sectionsOf = (text) =>
  text
    .replace(/^---\n[\s\S]*?\n---\n/, '')
    .split(/\n(?=# )/)
    .map((section) => section.trim())
    .filter((section) => section !== '');

const lines = notes.flatMap((name) =>
  sectionsOf(fs.readFileSync(path.join(folder, name), 'utf8')).map((text) =>
    JSON.stringify({ text }),
  ),
);
fs.writeFileSync(out, lines.map((line) => `${line}\n`).join(''));
console.log(`${lines.length} sections of ${notes.length} notes`);
