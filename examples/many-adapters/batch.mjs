// One base, many adapters: a batch in which each row has its own.
import fs from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import {
  Decoder,
  DecoderWeights,
  defineAdapter,
  GroupedLora,
  KvCache,
  LoraAdapter,
  loadAdapters,
  ModelTape,
  openHfModel,
  scope,
} from 'lowrank';

const json = (...names) => JSON.parse(fs.readFileSync(path.join(...names), 'utf8'));

export class ManyAdapters {
  /** For each adapted layer, the adapters of all names. */
  #groups = new Map();
  /** What stands in the place of an adapter in a layer of the decoder, by module. */
  #served = new Map();
  /** The adapter of each row of the batch that runs. */
  #rows = [];

  constructor(folder) {
    const model = openHfModel(folder);
    const weights = DecoderWeights.load(model, { format: { format: 'nf4' } });
    this.decoder = new Decoder(model.decoder, weights);
    const files = ['tokenizer.json', 'tokenizer_config.json'];
    this.tokenizer = new Tokenizer(...files.map((name) => json(folder, name)));
    // A method without tensors of its own: its forward pass is that of the layer's group.
    this.method = defineAdapter({
      method: 'served',
      reference: 'nobody: many adapters in one batch',
      defaults: { place: '' },
      trained: [],
      mergeable: false,
      shapes: () => ({}),
      init: () => ({}),
      forward: (t, { x, w, bias, config }) => {
        const options = { training: false, ...(bias && { bias: bias.tensor }) };
        const group = this.#groups.get(config.place);
        return t.own(group.forward(x.tensor, w, this.#rows, options).y);
      },
    });
    this.names = [];
  }

  /** Reads a PEFT folder of LoRA. */
  add(name, folder) {
    for (const [module, { config, parameters }] of loadAdapters(this.decoder, folder)) {
      const { loraA, loraB } = parameters;
      const [inFeatures, outFeatures] = [loraA.shape[1], loraB.shape[0]];
      if (!this.#groups.has(module)) {
        this.#groups.set(module, new GroupedLora({ inFeatures, outFeatures }));
        this.#served.set(module, this.method.create({ inFeatures, outFeatures, place: module }));
      }
      const { loraAlpha, rslora = false } = config;
      this.#groups.get(module).add(name, new LoraAdapter({ loraA, loraB, loraAlpha, rslora }));
    }
    this.names.push(name);
  }

  /** Ids of a prompt, behind the token that begins a text. */
  encode(text) {
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    return [this.decoder.config.eosTokenIds[0], ...ids];
  }

  /**
   * Continues prompts of one length, greedily, in one batch.
   * @param requests [{ adapter, ids, tokens }], where adapter is a name, or null for the base
   * @returns the ids that follow each
   */
  async generate(requests) {
    const { config, weights } = this.decoder;
    const [B, T] = [requests.length, requests[0].ids.length];
    const most = Math.max(...requests.map(({ tokens }) => tokens));
    const { device } = weights;
    const cache = new KvCache(config, { batch: B, capacity: T + most, device });
    try {
      const texts = requests.map(() => []);
      let [ids, width] = [Int32Array.from(requests.flatMap((request) => request.ids)), T];
      for (let i = 0; i < most; i++) {
        this.#rows = requests.map(({ adapter }) => adapter);
        const logits = scope(() => {
          const tape = new ModelTape({ recording: false });
          const call = { adapters: this.#served, cache };
          const { features } = this.decoder.forward(tape, { ids, B, T: width }, call);
          return this.decoder.logits(tape, features, call).tensor; // [B, width, vocabulary]
        });
        const values = await logits.read();
        logits.dispose();
        const V = config.vocabSize;
        const next = requests.map((_, b) => {
          const at = ((b + 1) * width - 1) * V;
          return argmax(values.subarray(at, at + V));
        });
        next.forEach((id, b) => {
          if (i < requests[b].tokens && !texts[b].ended) {
            if (config.eosTokenIds.includes(id)) texts[b].ended = true;
            else texts[b].push(id);
          }
        });
        [ids, width] = [Int32Array.from(next), 1];
      }
      return texts;
    } finally {
      cache.dispose();
    }
  }
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
