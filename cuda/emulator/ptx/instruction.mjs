/**
 * One instruction while it is translated. Every modifier must be asked for by the code that
 * translates it: what nobody asked for is not understood, and that is an error, never ignored.
 */
import { PtxError } from './parse.mjs';
import { isType } from './types.mjs';

export class Instruction {
  constructor(statement) {
    this.statement = statement;
    this.name = statement.name;
    this.operands = statement.operands;
    this.unused = [...statement.modifiers];
  }

  fail(message) {
    return new PtxError(this.statement.line, `${message}: ${this.statement.text}`);
  }

  /** Whether the modifier is there; it counts as understood from now on. */
  has(modifier) {
    const at = this.unused.indexOf(modifier);
    if (at < 0) return false;
    this.unused.splice(at, 1);
    return true;
  }

  /** The one of these that is there, or undefined. */
  take(...modifiers) {
    return modifiers.find((modifier) => this.has(modifier));
  }

  /** The one of these that must be there. */
  need(...modifiers) {
    const found = this.take(...modifiers);
    if (found === undefined) throw this.fail(`none of .${modifiers.join(', .')}`);
    return found;
  }

  /** Without effect here: hints, and what holds anyhow. */
  skip(...patterns) {
    this.unused = this.unused.filter(
      (modifier) =>
        !patterns.some((p) => (p instanceof RegExp ? p.test(modifier) : p === modifier)),
    );
  }

  /** All type modifiers in their order. */
  types() {
    const found = this.unused.filter(isType);
    this.unused = this.unused.filter((modifier) => !isType(modifier));
    return found;
  }

  /** The only type. */
  type() {
    const found = this.types();
    if (found.length !== 1) throw this.fail(`${found.length} types where one is understood`);
    return found[0];
  }

  operand(i) {
    if (i >= this.operands.length) throw this.fail(`no operand ${i + 1}`);
    return this.operands[i];
  }
}
