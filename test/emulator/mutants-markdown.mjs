/** The mutation proof as a page: docs/mutation-proof.md. */

const INTRO = `# The mutation proof of the CUDA kernels

Written by \`npm run test:mutants -- --markdown docs/mutation-proof.md\`; not by hand.

Would the tests notice a missing barrier? This page answers for every one of them. A script takes each
barrier, wait, commit, fence and bounds guard out of the kernels in turn and runs the kernel cases
(\`test/emulator/cases.ts\`) that come past it in the emulator's check mode ([emulator.md](emulator.md)),
on emulated devices of compute capability 8.0 and 9.0 with a card's multiprocessors and with few, under
up to seven schedules. A mutant is *caught* if the emulator reports a finding, if the result has other
bits than the original's, or if a case does not end in 20 times what it takes, and 30 s. The table says what
catches it first. One that nothing can catch is *equivalent*, and says why.

| kind | the mutant |
| --- | --- |
| ordering | the statement is gone |
| bound | the comparison has the outcome of an index inside; of the lesser of index and bound the index is taken |
| loop | one turn more: \`<\` becomes \`<=\` |
| zero-fill | what lies outside is copied or computed all the same |

Every comparison of the kernels is a mutant but those that \`test/emulator/mutants.mjs\` lists as
comparing values or picking a form of the kernel. Before the first mutant the script puts in one that
changes nothing, and stops unless that one is reported as a survivor.
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
