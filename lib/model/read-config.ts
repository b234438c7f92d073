/**
 * `config.json` of a Hugging Face model folder, for every supported architecture.
 */

import { Fields, type JsonObject } from '../checkpoint/files/json-file.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { architectures } from './architectures/all.js';
import type { Architecture } from './config/architecture.js';
import type { DecoderConfig } from './config/decoder-config.js';

/** Names of the architectures that are read. */
export const supportedArchitectures: readonly string[] = architectures.map(({ name }) => name);

const kSupported = architectures
  .map(({ className, modelType }) => `${className} (model_type "${modelType}")`)
  .join(', ');

/**
 * Reads and checks `config.json`, as transformers 4 or transformers 5 writes it. A key that is left out means the
 * default of its architecture.
 *
 * @param path path of the config.json
 * @throws LowrankError `ERR_UNSUPPORTED` another architecture or feature · `ERR_FILE` malformed ·
 *   `ERR_FILE_NOT_FOUND`
 */
/** Checks a parsed `config.json`. */
export function parseDecoderConfig(op: string, what: string, object: JsonObject): DecoderConfig {
  const fields = new Fields(op, what, object);
  const architecture = architectureOf(op, what, fields);
  return architecture.read(fields);
}

/** The architecture with a name of {@link supportedArchitectures}. */
export function architectureNamed(name: string): Architecture {
  const found = architectures.find((each) => each.name === name);
  if (found !== undefined) return found;
  const text = `the architecture must be one of ${supportedArchitectures.join(', ')}, got ${printable(name)}`;
  throw new LowrankError('ERR_UNSUPPORTED', text);
}

function architectureOf(op: string, what: string, fields: Fields): Architecture {
  const unsupported = (name: string): never => {
    const text = `${op}: ${what} must describe a supported architecture: ${kSupported}, got ${name}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op });
  };
  const classes = fields.absent('architectures') ? [] : fields.strings('architectures', 16);
  const byClass = architectures.find(({ className }) => classes.includes(className));
  if (classes.length > 0 && byClass === undefined) {
    return unsupported(classes.map(printable).join(', '));
  }
  const modelType = fields.optionalString('model_type');
  const byType = architectures.find((each) => each.modelType === modelType);
  if (modelType !== undefined && byType === undefined) return unsupported(printable(modelType));
  if (byClass !== undefined && byType !== undefined && byClass !== byType) {
    fields.refuse('model_type', `"${byClass.modelType}" for ${byClass.className}`);
  }
  const found = byClass ?? byType;
  if (found !== undefined) return found;
  const text =
    `${op}: ${what} must name its architecture (architectures or model_type), got neither; ` +
    `supported are ${kSupported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}
