/** Branches, returns and calls. */

function branch(i, c) {
  i.has('uni');
  return `goto ${c.label(i.operand(0))};`;
}

/** brx.idx: by number into a list of labels. */
function branchTable(i, c) {
  i.need('idx');
  i.has('uni');
  const targets = c.module.targets.get(c.fn)?.get(i.operand(1));
  if (!targets) throw i.fail('no list of targets');
  const cases = targets.map((target, n) => `case ${n}: goto ${c.label(target)};`);
  // Past the end is undefined; the last target ends the switch for the compiler.
  cases[cases.length - 1] = `default: goto ${c.label(targets.at(-1))};`;
  return `switch (uint32_t(${c.bits(i.operand(0), 'u32')})) { ${cases.join(' ')} }`;
}

function leave(i, c) {
  i.has('uni');
  if (i.name === 'exit' && c.fn.kind !== 'entry') throw i.fail('an exit inside a function');
  return 'return;';
}

/** call (result), name, (arguments): each a .param variable of the caller. */
function call(i, c) {
  i.has('uni');
  const operands = [...i.operands];
  const list = (text) =>
    text
      .slice(1, -1)
      .split(',')
      .map((item) => item.trim())
      .filter(Boolean);
  const results = operands[0].startsWith('(') ? list(operands.shift()) : [];
  const name = operands.shift();
  const values = operands.length > 0 ? list(operands[0]) : [];
  if (name === '__assertfail') return `Fail("fault", ${c.site}, "a device assert");`;
  const callee = c.module.functions.get(name);
  if (!callee) throw i.fail('a call of a function that is not here');
  const pointers = [...results, ...values].map((item) => {
    const symbol = c.symbol(item);
    if (!symbol) throw i.fail(`no parameter ${item}`);
    return `reinterpret_cast<unsigned char*>(${symbol.place})`;
  });
  return `${callee}(${['thread', ...pointers].join(', ')});`;
}

export const control = {
  bra: branch,
  brx: branchTable,
  ret: leave,
  exit: leave,
  call,
};
