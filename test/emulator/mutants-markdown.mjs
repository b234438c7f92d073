/** The mutation proof as a list, a row a mutant: test/emulator/mutation-proof.md. */

const INTRO = `# Every mutant of the CUDA kernels

Written by \`npm run test:mutants -- --markdown test/emulator/mutation-proof.md\`; do not edit it by hand.
[docs/mutation-proof.md](../../docs/mutation-proof.md) says how to read it.
`;

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const code = (text) => `\`${cell(text)}\``;

export function markdownOf(results, total) {
  const files = [...new Set(results.map(({ file }) => file))];
  const tables = files.map((file) => {
    const rows = results
      .filter((result) => result.file === file)
      .map(
        ({ line, kind, what, outcome }) =>
          `| ${line} | ${kind} | ${code(what)} | ${cell(outcome)} |`,
      );
    return `## ${file}\n\n| line | kind | taken out | outcome |\n| --- | --- | --- | --- |\n${rows.join('\n')}\n`;
  });
  return `${INTRO}\n${total}.\n\n${tables.join('\n')}`;
}
