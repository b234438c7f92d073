// node examples/many-adapters/serve.mjs --adapters FOLDER [--model FOLDER] [--port 8080]
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { ManyAdapters } from './batch.mjs';

const { values } = parseArgs({
  options: {
    adapters: { type: 'string' },
    model: { type: 'string', default: 'examples/base-model/model' },
    port: { type: 'string', default: '8080' },
  },
});

const served = new ManyAdapters(values.model);
for (const name of fs.readdirSync(values.adapters).sort()) {
  const folder = path.join(values.adapters, name);
  if (fs.existsSync(path.join(folder, 'adapter_config.json'))) served.add(name, folder);
}

let queue = [];
let running = false;

/** Runs what waits, batch after batch: requests that came meanwhile join the next one. */
async function run() {
  if (running) return;
  running = true;
  while (queue.length > 0) {
    const { length } = queue[0].ids;
    const batch = queue.filter(({ ids }) => ids.length === length).slice(0, 16);
    queue = queue.filter((request) => !batch.includes(request));
    try {
      const texts = await served.generate(batch);
      batch.forEach(({ answer }, b) => {
        answer(200, { text: served.tokenizer.decode(texts[b]), batch: batch.length });
      });
    } catch (error) {
      for (const { answer } of batch) answer(500, { error: error.message });
    }
  }
  running = false;
}

/** A request that is worth a place in the queue; throws what is wrong with it. */
function read(body) {
  const { adapter = null, prompt, tokens = 20 } = JSON.parse(body);
  if (typeof prompt !== 'string') throw new Error('prompt must be a string');
  if (adapter !== null && !served.names.includes(adapter)) {
    throw new Error(`adapter must be one of ${served.names.join(', ')}, or null for the base`);
  }
  const ids = served.encode(prompt);
  const room = served.decoder.config.maxPositionEmbeddings - ids.length;
  if (!Number.isInteger(tokens) || tokens < 1 || tokens > room) {
    throw new Error(`tokens must be an integer from 1 to ${room}`);
  }
  return { adapter, ids, tokens };
}

const server = http.createServer(async (request, response) => {
  const answer = (status, result) => {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify(result)}\n`);
  };
  let body = '';
  for await (const part of request.setEncoding('utf8')) {
    body += part;
    if (body.length > 1e6) return answer(413, { error: 'the request is too long' });
  }
  try {
    queue.push({ ...read(body), answer });
  } catch (error) {
    return answer(400, { error: error.message });
  }
  setImmediate(run);
});

server.listen(Number(values.port), '127.0.0.1', () => {
  console.log(`${served.names.length} adapters on http://127.0.0.1:${server.address().port}/`);
});
