import type { Architecture } from '../config/architecture.js';
import { gemma2 } from './gemma2.js';
import { gemma3 } from './gemma3.js';
import { gptOss } from './gpt-oss.js';
import { llama } from './llama.js';
import { mistral } from './mistral.js';
import { mixtral } from './mixtral.js';
import { phi3 } from './phi3.js';
import { qwen2 } from './qwen2.js';
import { qwen3 } from './qwen3.js';
import { qwen3Moe } from './qwen3-moe.js';

/** Every architecture that is read, one file each. */
export const architectures: readonly Architecture[] = [
  llama,
  mistral,
  qwen2,
  qwen3,
  phi3,
  gemma2,
  gemma3,
  mixtral,
  gptOss,
  qwen3Moe,
];
